"""Predictions in files: the one place that knows how crossent writes them, and that reads anybody's.

files     a file, a folder, a pattern, an address in an object store
tables    Parquet, Arrow, CSV, JSON lines and NumPy arrays as Arrow batches
chosen    which columns are meant
rows      the batches, checked; all of them at once
samples   sample files of lm-evaluation-harness
written   how crossent writes predictions
"""

from crossent.measure.sources.rows import BATCH_ROWS as BATCH_ROWS
from crossent.measure.sources.rows import batches as batches
from crossent.measure.sources.rows import read_predictions as read_predictions
from crossent.measure.sources.written import write_predictions as write_predictions
