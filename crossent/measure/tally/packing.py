"""A tally as one row of bytes and back: what ranks of a training send each other, and what a checkpoint keeps.

A header of JSON (what kind of value stands where, the shape and dtype of each array) and behind it the arrays, pressed
by zlib: of every array first the first byte of all its numbers, then the second, and so on. Most numbers of a tally are
counts, or what rounding took from them, which is nothing: their bytes are 0 but for one or two, and lie together.
Nothing is lost. Nothing of it can run when it is read, which could not be said of a pickle that hides in a checkpoint's
tensor. A pickle of a tally holds the same bytes.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.sums.cells import Cells
from crossent.measure.sums.compensated import Compensated
from crossent.measure.sums.distinct import Distinct
from crossent.measure.sums.folds import Folds
from crossent.measure.sums.groups import Groups
from crossent.measure.sums.histograms import Histograms
from crossent.measure.sums.sample import Sample
from crossent.measure.sums.sums import Layout, Sums
from crossent.measure.tally.tally import Tally
from crossent.measure.values.slices import Slices

_HELD = (Tally, Sums, Layout, Compensated, Distinct, Cells, Sample, Groups, Folds, Histograms, Slices)
_KINDS = {kind.__name__: kind for kind in _HELD}
_SIZE = 8  # bytes that say how long the header is
_EFFORT = 6

_Bytes = NDArray[np.uint8]


def packed(tally: Tally) -> _Bytes:
    """Write a tally as bytes, uint8 (n,); some hundred kB, whatever the number of rows.

    >>> from crossent.measure.predictions.predictions import Predictions
    >>> rows = Predictions.from_arrays([0.9, 0.2], [1, 0])
    >>> again = unpacked(packed(Tally.like(rows).add(rows)))
    >>> again.rows, again.classes
    (2, ('0', '1'))
    """
    arrays: list[NDArray[Any]] = []
    header = json.dumps(_plain(tally, arrays)).encode()
    body = zlib.compress(b"".join(map(_by_byte, arrays)), _EFFORT)
    return np.frombuffer(b"".join([np.array([len(header)]).tobytes(), header, body]), np.uint8).copy()


def unpacked(row: _Bytes) -> Tally:
    """Read a tally from its bytes; raises DataError, a sentence, where they are none."""
    try:
        size = _SIZE + int(row[:_SIZE].view(np.int64)[0])
        pressed = zlib.decompressobj()
        body = np.frombuffer(pressed.decompress(row[size:].tobytes()), np.uint8)
        found, end = _value(json.loads(row[_SIZE:size].tobytes()), body, 0)
        if not isinstance(found, Tally) or end != body.size or not pressed.eof or pressed.unused_data:
            raise ValueError("there is more or less than a tally")
    except (ValueError, TypeError, KeyError, IndexError, zlib.error) as trouble:
        raise DataError(
            f"these {row.size:,} bytes are no tally of this version of crossent ({trouble}): it was saved by another "
            "version, or is damaged. Measure again."
        ) from trouble
    return found


def _by_byte(array: NDArray[Any]) -> bytes:
    """The first bytes of all numbers, then the second ones, …"""
    return np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.itemsize).T.tobytes()


def _plain(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """What JSON can say of a value; its arrays are put aside, in the order they come in."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": [value.dtype.str, *value.shape]}
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: _plain(getattr(value, field.name), arrays) for field in fields(value)}
        return {"is": type(value).__name__, "with": held}
    if isinstance(value, tuple):
        return {"tuple": [_plain(part, arrays) for part in value]}
    if isinstance(value, dict):
        return {"dict": {name: _plain(part, arrays) for name, part in value.items()}}
    return value.item() if isinstance(value, np.generic) else value


def _value(plain: Any, row: _Bytes, place: int) -> tuple[Any, int]:
    """The value again, and where the arrays behind its own begin."""
    if not isinstance(plain, dict):
        return plain, place
    if "array" in plain:
        dtype, shape = np.dtype(plain["array"][0]), plain["array"][1:]
        if dtype.hasobject:
            raise ValueError("an array of objects")
        size = math.prod(shape) * dtype.itemsize
        held = row[place : place + size].reshape(dtype.itemsize, -1)
        return np.ascontiguousarray(held.T).view(dtype).reshape(shape), place + size
    if "tuple" in plain:
        parts = []
        for part in plain["tuple"]:
            value, place = _value(part, row, place)
            parts.append(value)
        return tuple(parts), place
    values = {}
    for name, part in plain["with" if "is" in plain else "dict"].items():
        values[name], place = _value(part, row, place)
    return (_KINDS[plain["is"]](**values) if "is" in plain else values), place
