"""What a model's probabilities are worth: log loss with its uncertainty, where it comes from, row by row.

predictions   rows in, checked at the door
sources       the same from files, in batches
sums          what rows add up to
intervals     how far off a mean may be
values        what the sums say: the log loss, where it comes from, class by class, slice by slice
tally         all of it in one value that adds up, on one machine or many
evaluation    everything in one record
metric        the same inside training
comparison    several models on the same rows
calibration   better probabilities where that can be shown; known shifts undone
"""

from crossent.measure.calibration import Calibrator as Calibrator
from crossent.measure.calibration import calibrate as calibrate
from crossent.measure.calibration import cross_fit as cross_fit
from crossent.measure.calibration import recalibrate as recalibrate
from crossent.measure.calibration import undo_shift as undo_shift
from crossent.measure.comparison.comparison import compare as compare
from crossent.measure.evaluation import evaluate as evaluate
from crossent.measure.predictions.predictions import Predictions as Predictions
from crossent.measure.sources import read_predictions as read_predictions
from crossent.measure.sources import write_predictions as write_predictions
from crossent.measure.tally.tally import Tally as Tally
