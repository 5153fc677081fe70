"""Names that come from someone's data, made fit for a page, a picture or a terminal."""

from __future__ import annotations

import textwrap
import unicodedata

# Marks that turn the direction of writing; a single one in a name would turn the rest of a line as well.
_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def printable(name: object) -> str:
    r"""Write a name on one line; control characters, which a terminal would obey, become �.

    >>> printable("two\nlines"), printable("\x1b[31mred"), printable(None), printable(7)
    ('two lines', '�[31mred', '–', '7')
    """
    if name is None:
        return "–"
    line = " ".join(str(name).split())
    return "".join("�" if _disobedient(letter) else letter for letter in line)


def clip(name: object, width: int) -> str:
    """Shorten a name to ``width`` columns with an ellipsis; a wide (Chinese, Japanese, …) letter takes two.

    >>> clip("a rather long name", 10), clip("日本語日本語", 7), clip("short", 10)
    ('a rather …', '日本語…', 'short')
    """
    line = printable(name)
    if sum(map(_columns, line)) <= width:
        return line
    kept, used = "", 1
    for letter in line:
        used += _columns(letter)
        if used > width:
            break
        kept += letter
    return kept + "…"


def folded(name: str, width: int) -> str:
    """Write a name on as many lines of ``width`` columns as it takes, broken behind a mark where there is one.

    >>> folded("cross-entropy", 9), folded("discrimination", 8), folded("日本語", 4)
    ('cross-\\nentropy', 'discrimi\\nnation', '日本\\n語')
    """
    lines = [""]
    for letter in name:
        if sum(map(_columns, lines[-1] + letter)) > width:
            cut = 1 + max(lines[-1].rfind(mark) for mark in " -_/.") or len(lines[-1])
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
        lines[-1] += letter
    return "\n".join(lines)


def wrapped(line: str, width: int) -> str:
    """Break a sentence into lines of at most ``width`` letters, but never between a number and its percent sign.

    >>> print(wrapped("the interval holds 95 % of the time", 22))
    the interval holds
    95 % of the time
    """
    kept = line.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(kept, max(width, 1), break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}%", " %")


def _disobedient(letter: str) -> bool:
    return unicodedata.category(letter) in {"Cc", "Cs"} or ord(letter) in _TURNING


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in {"W", "F"} else 1
