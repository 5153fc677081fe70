"""Losses, each a few lines on the statistics of a row. They add up and scale: ``NLL() + 1e-4 * LogZ()``."""

from crossent.compute.losses.algebra import Loss as Loss
from crossent.compute.losses.contrast import Margin as Margin
from crossent.compute.losses.contrast import Unlikelihood as Unlikelihood
from crossent.compute.losses.focus import Focal as Focal
from crossent.compute.losses.focus import Poly1 as Poly1
from crossent.compute.losses.likelihood import NLL as NLL
from crossent.compute.losses.likelihood import ClassWeighted as ClassWeighted
from crossent.compute.losses.likelihood import Smoothed as Smoothed
from crossent.compute.losses.regulariser import Confidence as Confidence
from crossent.compute.losses.regulariser import LogZ as LogZ
from crossent.compute.losses.robust import GeneralisedCE as GeneralisedCE

LOSSES = (NLL, Smoothed, ClassWeighted, Focal, Poly1, GeneralisedCE, LogZ, Confidence, Unlikelihood, Margin)
"""Every loss there is: the laws in tests/laws hold for each of them."""
