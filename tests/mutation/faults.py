"""All faults that the lane plants."""

from tests.mutation.families import FAMILIES
from tests.mutation.kernels import KERNELS
from tests.mutation.losses import LOSSES
from tests.mutation.rows import ROWS

FAULTS = (*KERNELS, *ROWS, *LOSSES, *FAMILIES)
