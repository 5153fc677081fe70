"""Probabilities, log-probabilities, logits: which of them came, and whether they are what they are said to be.

    probabilities       entries in [0, 1], each row adds up to 1
    log-probabilities   their logarithms; −inf is a probability of 0
    logits              anything whose softmax is meant; one column is the log-odds of the second class

Which one is meant is said by name, or read off the rows where they cannot be taken for anything else: rows that add up
to 1 are probabilities, rows whose exponentials do are log-probabilities, and rows of both signs that reach above 1 and
add up to anything are logits. One column has no sum to tell by, so that there anything outside [0, 1] has to be named.

A row of probabilities adds up to 1 but for a rounding. Inside ``SUM_TOLERANCE`` it is divided by its sum, and a note
says so; beyond it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, some

FORMS = ("probabilities", "log-probabilities", "logits")

SUM_TOLERANCE = 1e-3
"""How far from 1 a row may add up. A row whose sum is off by ε has a cross-entropy off by some ε nats,
which at 1e-3 is below what most test sets resolve; and probabilities stored in 16 bits or printed with four
decimals stay inside it, while logits, percentages and one-against-rest scores do not."""

BFLOAT16_TOLERANCE = 2**-8
"""The same for bfloat16, which rounds each entry by up to 2⁻⁹ of itself, and so a sum by up to 0.002."""

MASK = 1e30
"""A logit so far below the largest of its row is a mask (the lowest float32, say), and its probability is 0."""

ABOVE_ONE = 1e-6
"""How far above 1 an entry may lie: a few roundings of float32, which softmax leaves; it is read as 1."""

DIVIDED = "Each row of probabilities was divided by its sum before anything was measured."

_CHANCE = 0.01  # more rows of logits than this do not add up to 1 by chance; fewer rows of probabilities are not broken

_Grid = NDArray[np.float64]
Place = Callable[[int], str]
"""Says where a row is, for an error: "row 17", or "row 17 of 'b.csv'"."""


def rounded(tolerance: float) -> str:
    """Say that rows were divided by sums that were 1 but for a rounding."""
    return (
        f"Rows whose probabilities added up to 1 only to rounding (within {tolerance:.1g}) were divided by their sum."
    )


def as_numbers(p: NDArray[Any], what: str = "the probabilities") -> _Grid:
    """Turn cells into float64, or say that they are no numbers."""
    if p.dtype.kind == "c":
        raise DataError(f"{what} should be numbers, and some are not: they are complex.")
    try:
        return p.astype(np.float64, copy=False)
    except (TypeError, ValueError) as trouble:
        raise DataError(f"{what} should be numbers, and some are not: {_first_of_text(p) or trouble}.") from trouble


def _first_of_text(cells: NDArray[Any]) -> str | None:
    """Name the first cell that is no number, by its place."""
    for place, cell in np.ndenumerate(cells):
        try:
            float(cell)
        except (TypeError, ValueError):
            at = ", ".join(f"{axis} {i}" for axis, i in zip(("row", "column"), place, strict=False))
            return f"{str(cell)!r} ({at}, counted from 0)"
    return None


def in_all(count: int) -> str:
    """Say how many rows a sentence that names the first of them is about.

    >>> in_all(1), in_all(1200)
    ('the only such row', '1,200 rows in all')
    """
    return "the only such row" if count == 1 else f"{int(count):,} rows in all"


def infer(p: _Grid, tolerance: float = SUM_TOLERANCE) -> str | None:
    """Say which of FORMS the entries are, (n,) or (n, classes); None if they could be several or none.

    Broken probabilities are "probabilities", so that what is broken about them can be said.

    >>> infer(np.array([[0.5, 0.5]])), infer(np.log([[0.5, 0.5]])), infer(np.array([[-1.0, 3.5]]))
    ('probabilities', 'log-probabilities', 'logits')
    >>> infer(np.array([[0.5, 0.5], [1.3, -0.3]])), infer(np.array([[-0.7, 0.4]]))
    ('probabilities', None)
    """
    least, most = float(p.min()), float(p.max())
    if p.ndim == 1 or not least < 0 or math.isnan(most):
        return "probabilities"
    with np.errstate(invalid="ignore", over="ignore"):
        if np.mean(np.abs(p.sum(axis=1) - 1) <= tolerance) > _CHANCE:
            return "probabilities"
        if most <= ABOVE_ONE:
            return "log-probabilities" if np.mean(np.abs(np.exp(p).sum(axis=1) - 1) <= tolerance) > 0.5 else None
    return "logits" if most > 1 + ABOVE_ONE else None


def probabilities(
    p: NDArray[Any], place: Place, columns: list[str], *, scores: bool = False, tolerance: float = SUM_TOLERANCE
) -> tuple[_Grid, str | None]:
    """Check probabilities, (n,) of the second class or (n, classes); give them as (n, classes), and a note if need be.

    With ``scores`` every row is divided by its sum, whatever that is. Two passes where nothing is wrong.
    """
    p = as_numbers(p)
    least, most = float(p.min()), float(p.max())
    limit = math.inf if scores and p.ndim == 2 else 1 + ABOVE_ONE
    if not (least >= 0 and most <= limit and most < math.inf):  # NaN is caught too
        _refuse_entries(p, place, columns, limit)
    if p.ndim == 1:
        both = np.empty((2, p.size))
        np.minimum(p, 1.0, out=both[1])
        np.subtract(1.0, both[1], out=both[0])
        return both.T, None
    total = _row_sums(p)
    if scores:
        if not (total > 0).all():
            raise DataError(f"{place(int(np.argmin(total)))} is all zeros and cannot be divided by its sum.")
        return p / total[:, None], DIVIDED
    off = np.abs(total - 1)
    worst = float(off.max())
    if worst > tolerance:
        i = int(np.argmax(off > tolerance))
        named = not all(name.isdecimal() for name in columns)
        taken = f" They were taken from the columns {some(columns, 12)}." if named else ""
        raise DataError(
            f"the probabilities of a row should add up to 1 (within {tolerance:.3g}), and those of {place(i)} add up "
            f"to {total[i]:.6g} ({in_all(int(np.sum(off > tolerance)))}).{taken} If a column is missing, add it; if "
            "these are scores that only need dividing by their sum, ask for that with normalise=True (--normalise)."
        )
    if worst <= (exact := _exact(p.shape[1])):
        return (np.minimum(p, 1.0) if most > 1 else p), None
    found = np.where((off > exact)[:, None], p / total[:, None], p)
    return np.minimum(found, 1.0, out=found), rounded(tolerance)


def log_probabilities(
    p: _Grid, place: Place, columns: list[str], tolerance: float = SUM_TOLERANCE
) -> tuple[_Grid, str | None]:
    """Check logarithms of probabilities, (n,) or (n, classes); give them as (n, classes), and a note if need be."""
    if not float(p.max()) <= ABOVE_ONE:  # NaN is caught too
        _refuse(
            p, place, columns, np.isnan(p), "every log-probability should be a number, and here is one that is not", ""
        )
        fix = "If these are logits, say so: form='logits' (--form logits)."
        _refuse(p, place, columns, p > ABOVE_ONE, "a log-probability is 0 or less, and here is one that is not", fix)
    p = np.minimum(p, 0.0)
    if p.ndim == 1:
        with np.errstate(divide="ignore"):
            rest = np.where(p > -math.log(2), np.log(-np.expm1(p)), np.log1p(-np.exp(p)))
        return _masked(np.stack([rest, p], axis=1)), None
    total = _row_sums(np.exp(p))
    off = np.abs(total - 1)
    worst = float(off.max())
    if worst > tolerance:
        i = int(np.argmax(off > tolerance))
        raise DataError(
            f"the exponentials of a row of log-probabilities should add up to 1 (within {tolerance:.3g}), and those of "
            f"{place(i)} add up to {total[i]:.6g} ({in_all(int(np.sum(off > tolerance)))}). If these are logits, "
            "say so: form='logits' (--form logits); that divides by the sum."
        )
    p = _masked(p)
    if worst <= (exact := _exact(p.shape[1])):
        return p, None
    return np.where((off > exact)[:, None], p - np.log(total)[:, None], p), rounded(tolerance)


def logits(p: _Grid, place: Place, columns: list[str]) -> _Grid:
    """Turn logits (n, classes), or log-odds of the second class (n,), into log-probabilities (n, classes)."""
    _refuse(p, place, columns, np.isnan(p), "every logit should be a number, and here is one that is not", "")
    if p.ndim == 1:
        return _masked(-np.stack([np.logaddexp(0.0, p), np.logaddexp(0.0, -p)], axis=1))
    _refuse(
        p,
        place,
        columns,
        p == np.inf,
        "a logit is finite, or −inf for a probability of 0, and here is one that is not",
        "",
    )
    peak = p.max(axis=1, keepdims=True)
    if (none := peak[:, 0] == -np.inf).any():
        raise DataError(f"{place(int(np.argmax(none)))} has −inf in every column: one class at least must be possible.")
    with np.errstate(over="ignore"):
        shifted = p - peak
    shifted -= np.log(_row_sums(np.exp(shifted)))[:, None]
    return _masked(shifted)


def _masked(logs: _Grid) -> _Grid:
    """Turn what masks are made of into the 0 that is meant: no class is worth 10³⁰ nats."""
    return np.where(logs <= -MASK, -np.inf, logs) if float(logs.min()) <= -MASK else logs


def unclear(p: _Grid) -> DataError:
    """What to say when no form fits."""
    return DataError(
        "these numbers are no probabilities, and it is not clear whether they are log-probabilities or logits: entries "
        f"go from {p.min():.4g} to {p.max():.4g}, and rows do not add up to 1, nor do their exponentials. Name the "
        "form: form='probabilities', 'log-probabilities' or 'logits' (--form)."
    )


def _row_sums(p: _Grid) -> NDArray[np.float64]:
    """The sums of rows, column by column as they lie in memory. A single row lies otherwise, and NumPy would add it up
    in another order: a row has to be worth the same in every batch."""
    return p.sum(axis=1) if len(p) > 1 else np.asfortranarray(np.repeat(p, 2, axis=0)).sum(axis=1)[:1]


def _exact(classes: int) -> float:
    """A sum of float64 that is off by no more than this is as near to 1 as its own roundings let it be."""
    return max(classes, 4) * float(np.finfo(np.float64).eps)


def _refuse(p: _Grid, place: Place, columns: list[str], bad: NDArray[np.bool_], rule: str, fix: str) -> None:
    if not bad.any():
        return
    grid, bad = (p, bad) if p.ndim == 2 else (p[:, None], bad[:, None])
    i, j = np.unravel_index(int(np.argmax(bad)), bad.shape)
    column = f", column {columns[j]!r}" if j < len(columns) and columns[j] else ""
    raise DataError(
        f"{rule}: {place(int(i))}{column}: {grid[i, j]:.6g} "
        f"({in_all(bad.any(axis=1).sum())}).{' ' + fix if fix else ''}"
    )


def _refuse_entries(p: _Grid, place: Place, columns: list[str], limit: float) -> None:
    missing = "An empty cell reads as nan: fill it in, or leave the row out."
    rule = "every probability should be a number, and here is one that is not"
    _refuse(p, place, columns, ~np.isfinite(p), rule, missing)
    rule = "a probability lies between 0 and 1, and here is one that does not"
    _refuse(p, place, columns, (p < 0) | (p > limit), rule, _guess(p))


def _guess(p: _Grid) -> str:
    """Say what numbers outside [0, 1] most likely are."""
    outside = float(np.mean((p < 0) | (p > 1 + ABOVE_ONE)))
    if outside < 0.5:
        return "Most others do, so that these rows look broken: mend them where they are made, or leave them out."
    if p.min() >= 0 and p.max() <= 100 + ABOVE_ONE:
        return "If these are percentages, divide them by 100."
    if p.max() <= 0:
        return "If these are log-probabilities, say so: form='log-probabilities' (--form log-probabilities)."
    return "If these are logits, say so: form='logits' (--form logits)."
