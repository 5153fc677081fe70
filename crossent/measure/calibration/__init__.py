"""Calibration: probabilities that mean what they say, and only where that can be shown.

rows · steps · calibrator   what is fitted to; what is applied; the chain of them and its file
scaling                     one temperature and one bias per class; the cross-fit of the decomposition
families                    the candidates: how the numbers of their steps are found
venn_abers                  the staircases of one of them, exactly
choice                      calibrate: the guarded choice among them
undo                        a known prior shift, class weights, a sampling rate: in closed form
calibrated                  a whole file of predictions, its probabilities changed
module                      the same chain in torch, to put behind a network
"""

from crossent.measure.calibration.calibrator import Calibrator as Calibrator
from crossent.measure.calibration.choice import Choice as Choice
from crossent.measure.calibration.choice import calibrate as calibrate
from crossent.measure.calibration.choice import choose as choose
from crossent.measure.calibration.scaling import KINDS as KINDS
from crossent.measure.calibration.scaling import Scaling as Scaling
from crossent.measure.calibration.scaling import cross_fit as cross_fit
from crossent.measure.calibration.scaling import cross_fit_log as cross_fit_log
from crossent.measure.calibration.scaling import recalibrate as recalibrate
from crossent.measure.calibration.undo import undo_shift as undo_shift
