"""The head and the loss in one: logits are made a few rows at a time, used, and forgotten.

budget       how many rows at a time
product      those rows: hidden states times head, and the way back of their gradient
blocks       the same a block of classes at a time, with all logits in the memory of the head's gradient
operators    parts and pulls of rows that are made there, as operators that torch knows
statistics   autograd around them: every loss that looks at a row through its statistics
number       a mean or a sum, whose gradient is made in the forward pass
columns      the few losses that look at the columns themselves, links that are trained, divergences from a teacher
compiled     the same for a compiler: operators, to which the function is a text
outline      that text, where a compiler looks on
derivative   derivatives of any order of a few rows at a time
"""

from crossent.compute.linear import compiled as compiled
from crossent.compute.linear.budget import BUDGET as CHUNK_BYTES  # noqa: F401
from crossent.compute.linear.budget import TWO_ROWS as TWO_ROWS
from crossent.compute.linear.budget import rows_at_a_time as rows_at_a_time
from crossent.compute.linear.columns import Columns as Columns
from crossent.compute.linear.columns import chunk_size as chunk_size
from crossent.compute.linear.columns import row_losses as columns_losses  # noqa: F401
from crossent.compute.linear.number import number as number
from crossent.compute.linear.number import total_of_columns as total_of_columns
from crossent.compute.linear.statistics import row_losses as row_losses
from crossent.compute.linear.statistics import row_numbers as row_numbers
from crossent.compute.linear.statistics import through_link as through_link
