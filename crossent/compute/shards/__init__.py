"""Rows whose columns lie on several machines: ``part`` on each, ``merge`` of all, ``pull`` on each.

merge    what ranks tell each other of a row, and the cotangents of a whole row as they are for some of its columns
rows     losses of such rows, and autograd around them
head     losses of a head's rows, whose logits nobody keeps
divergence  what a divergence between two such rows asks of them
"""

from crossent.compute.shards.divergence import Spread as Spread
from crossent.compute.shards.head import linear_row_losses as linear_row_losses
from crossent.compute.shards.head import linear_row_numbers as linear_row_numbers
from crossent.compute.shards.merge import Shard as Shard
from crossent.compute.shards.rows import row_losses as row_losses
from crossent.compute.shards.rows import row_numbers as row_numbers
