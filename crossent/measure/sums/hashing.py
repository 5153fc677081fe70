"""A number between 0 and 2⁶⁴ for a whole number or a text, the same on every machine and in every batch.

It stands for the value where 64 bits are enough: to draw rows by, to sort groups into folds. The mixing is that of
SplitMix64 (Steele, Lea & Flood 2014), which turns neighbouring numbers into unrelated ones. And random numbers that
belong to a seed and a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SECOND_INVERSE, _FIRST_INVERSE = (np.uint64(pow(int(n), -1, 1 << 64)) for n in (_SECOND, _FIRST))

_NOTHING = np.uint64(0x2545F4914F6CDD1D)
"""The number of an empty text."""


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter numbers over all of 2⁶⁴, one to one."""
    z = numbers + _STEP
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


def unmixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Give back what was ``mixed``: of whole numbers that were ``hashed`` the numbers, of all else some order.

    >>> unmixed(hashed(np.array([3, 1, 2**40]))).tolist()
    [3, 1, 1099511627776]
    """
    z = numbers
    for shift, inverse in zip((31, 27, 30), (_SECOND_INVERSE, _FIRST_INVERSE, np.uint64(1)), strict=True):
        z = (z ^ (z >> np.uint64(shift)) ^ (z >> np.uint64(2 * shift))) * inverse
    return z - _STEP


def stream(seed: int, word: str) -> np.random.Generator:
    """Give random numbers for one purpose, named by a ``word``, so that no two purposes share a stream.

    Who simulates data with ``default_rng(seed)`` would otherwise find the folds tied to the numbers drawn.
    """
    return np.random.default_rng([seed, *word.encode()])


def hashed(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Give each of ``values`` (n,), whole numbers, floats or text, its number. Text that is a whole number, as Python
    writes it, has that number's: a CSV knows nothing but text.

    >>> words = hashed(np.array(["a", "bb", "a"]))
    >>> bool(words[0] == words[2] != words[1]), bool(words[0] == hashed(np.array(["a", "a longer word"]))[0])
    (True, True)
    >>> bool((hashed(np.array(["7", "-12", "007"])) == hashed(np.array([7, -12, 7])))[:2].all())
    True
    """
    if values.dtype.kind in "iub":
        return mixed(values.astype(np.int64).view(np.uint64))
    if values.dtype.kind == "f":
        return mixed(values.astype(np.float64).view(np.uint64))
    text = np.ascontiguousarray(values.astype(str))
    if not text.size or not text.dtype.itemsize:
        return np.full(text.shape, _NOTHING)
    letters = text.view(np.uint32).reshape(text.size, -1)
    found = np.zeros(text.size, np.uint64)
    for place in range(letters.shape[1]):
        letter = letters[:, place].astype(np.uint64)
        # A shorter text in a longer batch is padded with zeros, and those must not count.
        found = np.where(letter != 0, mixed(found ^ (letter << np.uint64(20))), found)
    found = np.where(letters[:, 0] != 0, mixed(found), _NOTHING)
    whole, numbers = _whole(letters)
    found[whole] = mixed(numbers.view(np.uint64))
    return found


def _whole(letters: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the texts, code points (n, length) filled up with zeros, are whole numbers, and which ones:
    up to 18 digits without a leading 0, or a single 0, and perhaps a minus sign before what is not 0."""
    first = letters[:, 0]
    below = first == ord("-")
    here = np.flatnonzero(below | (first - np.uint32(ord("0")) < 10))  # what is less wraps round
    if not here.size:
        return here, here
    letters, below = letters[here], below[here]
    length = np.count_nonzero(letters, axis=1)
    number, fits = np.zeros(here.size, np.int64), length - below <= 18
    for place in range(min(letters.shape[1], 19)):
        digit = letters[:, place] - np.uint32(ord("0"))
        used = (place < length) & ~(below & (place == 0))
        fits &= ~used | (digit < 10)
        number = np.where(used & fits, 10 * number + digit, number)
    leading = np.where(below, letters[:, min(1, letters.shape[1] - 1)], letters[:, 0])
    fits &= (leading != ord("0")) | ((length == 1) & ~below)
    fits &= (length > 1) | ~below
    return here[fits], np.where(below, -number, number)[fits]
