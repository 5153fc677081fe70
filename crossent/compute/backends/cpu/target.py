"""The entries of a gradient that belong to target columns, in float64: the ones that cancel anywhere else."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.precision import UNSHIFT, kernel, power
from crossent.compute.backends.cpu.tree import TILE, copy


class Row(NamedTuple):
    """What the gradient needs to know of a row: its statistics and its cotangents, in float64.

    ``a`` is the sum over the target columns; ``c`` is divided by the number of allowed columns; ``beyond`` is
    log1p(rest) - entropy.
    """

    rest: float
    measure: float
    beyond: float
    a: float
    b: float
    c: float
    d: float


@kernel
def collect(
    r: int, rows: int, fields: NDArray, uniform: int, dot: int, a: NDArray, b: NDArray, c: NDArray, d: NDArray,
    known: NDArray,
) -> None:  # fmt: skip
    """Rows r … r + rows side by side in known (8, rows): the numbers of ``Row``, and what powers are multiplied by.

    ``uniform`` and ``dot`` say where in fields those statistics begin, -1 if nobody asked. What is not asked for stays
    as it is: zeros. (One call for many rows: a call for each would cost more than its arithmetic.)
    """
    rest, measure, beyond = known[0], known[1], known[2]
    a_row, b_row, c_row, d_row, factor = known[3], known[4], known[5], known[6], known[7]
    fields, a = fields[:, r : r + rows], a[r : r + rows]
    copy(fields[1], rest[:rows])
    copy(a[:, 0], a_row[:rows])
    for k in range(1, a.shape[1]):
        for t in range(rows):
            a_row[t] += a[t, k]
    if b.size:
        copy(b[r:], b_row[:rows])
    if uniform >= 0:
        c_row[:rows] = c[r : r + rows] / fields[uniform + 1]
        copy(fields[uniform + 2], measure[:rows])
    if dot >= 0:
        copy(d[r:], d_row[:rows])
        beyond[:rows] = fields[dot] / (1.0 + rest[:rows])
    for t in range(rows):
        factor[t] = (a_row[t] + b_row[t] + c_row[t] * measure[t]) / (1.0 + rest[t]) * UNSHIFT


@kernel
def row_of(known: NDArray, t: int) -> Row:
    """Row t of what was collected."""
    return Row(known[0, t], known[1, t], known[2, t], known[3, t], known[4, t], known[5, t], known[6, t])


@kernel
def at_target(z: Any, peak: Any, alpha: float, u: float, row: Row) -> float:
    """dz of a column whose targets' cotangents add up to alpha; u is its class weight.

    1 - p is (rest + (1 - e)) / (1 + rest) with e = e^(z - peak): for the peak itself exactly rest / (1 + rest), and for
    any other column a sum in which the peak's 1 is in rest. Neither loses digits, as 1 - p does.
    """
    e = np.float64(power(z, peak)) * UNSHIFT
    whole = 1.0 + row.rest
    p = e / whole
    uniform = row.c * (row.measure * p - (u if z > -np.inf else 0.0))
    surprise = row.d * p * ((np.float64(peak) - np.float64(z)) + row.beyond) if p > 0.0 else 0.0
    return (row.a - alpha) * p - alpha * ((row.rest + (1.0 - e)) / whole) + row.b * p + uniform + surprise


@kernel
def exact(hit: NDArray, peak: NDArray, alpha: NDArray, u: NDArray, known: NDArray, out: NDArray) -> None:
    """The entries of the columns whose logits are ``hit``, as ``at_target`` makes them."""
    for t in range(TILE):
        out[t] = at_target(hit[t], peak[t], alpha[t], u[t], row_of(known, t))
