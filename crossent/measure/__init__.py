"""What a model's probabilities are worth: log loss with its uncertainty, where it comes from, row by row.

form · truth · naming · columns  what the numbers are, what came, which column is which class, what stands beside
predictions · sources            rows in, checked at the door: arrays and frames; files in batches
interval                         95 % of a mean of skewed rows, of a share, of an entropy
likelihood                       cross-entropy, information gained, skill, accuracy, Brier, mean errors
calibration                      better probabilities where that can be shown; known shifts undone
decomposition · reliability      what calibration could still win; the curve that shows it
by_class · slices                class by class, slice by slice; the costliest rows
evaluation                       all of it in one record
engine · metric · packing        the same on many machines, and inside training
cluster · join · rival           means of rows that belong together; the same rows of several models; what they cost one
contrast · ranking · comparison  a model against the baseline; all of them in one record; which is better
"""

from crossent.measure.calibration import Calibrator as Calibrator
from crossent.measure.calibration import calibrate as calibrate
from crossent.measure.calibration import cross_fit as cross_fit
from crossent.measure.calibration import recalibrate as recalibrate
from crossent.measure.calibration import undo_shift as undo_shift
from crossent.measure.comparison import compare as compare
from crossent.measure.evaluation import evaluate as evaluate
from crossent.measure.predictions import Predictions as Predictions
from crossent.measure.sources import read_predictions as read_predictions
from crossent.measure.sources import write_predictions as write_predictions
