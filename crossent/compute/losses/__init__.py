"""Losses, each a few lines on the statistics of a row. They add up and scale: ``NLL() + 1e-4 * LogZ()``."""

from crossent.compute.losses.algebra import Loss as Loss
from crossent.compute.losses.contrast import Unlikelihood as Unlikelihood
from crossent.compute.losses.focus import Asymmetric as Asymmetric
from crossent.compute.losses.focus import Focal as Focal
from crossent.compute.losses.focus import Poly1 as Poly1
from crossent.compute.losses.likelihood import NLL as NLL
from crossent.compute.losses.likelihood import ClassWeighted as ClassWeighted
from crossent.compute.losses.likelihood import Smoothed as Smoothed
from crossent.compute.losses.margin import LDAM as LDAM
from crossent.compute.losses.margin import ArcFace as ArcFace
from crossent.compute.losses.margin import Margin as Margin
from crossent.compute.losses.regulariser import Confidence as Confidence
from crossent.compute.losses.regulariser import LogZ as LogZ
from crossent.compute.losses.robust import GeneralisedCE as GeneralisedCE
from crossent.compute.losses.robust import SymmetricCE as SymmetricCE
from crossent.compute.losses.robust import TaylorCE as TaylorCE
from crossent.compute.losses.score import Brier as Brier
from crossent.compute.losses.score import Hinge as Hinge

LOSSES = (
    NLL,
    Smoothed,
    ClassWeighted,
    Focal,
    Asymmetric,
    Poly1,
    GeneralisedCE,
    SymmetricCE,
    TaylorCE,
    LogZ,
    Confidence,
    Unlikelihood,
    Margin,
    LDAM,
    ArcFace,
    Brier,
    Hinge,
)
"""Every loss there is: the laws in tests/laws hold for each of them."""
