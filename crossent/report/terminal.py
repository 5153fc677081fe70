"""A record on a terminal, by rich. What does not fit is left out, never squeezed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossent.errors import require
from crossent.record import Record
from crossent.report import comparison, contest, search, table, text
from crossent.report.label import clip, folded, printable, wrapped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_MOST_CLASSES = 20
_MOST_ROWS = 10
_MOST_SLICES = 20
_MOST_TRIALS = 12
_WIDE = 100  # columns of a terminal from which on everything fits
_LONG = 48  # letters of a name beyond which it is cut
_READABLE = 100  # columns of prose beyond which the eye loses the line
_WITHOUT_UNICODE = str.maketrans({"−": "-", "–": "-", "—": "-", "…": "~", "×": "x", "’": "'"})


def show(record: Record, console: Console | None = None) -> None:
    """Print the record: headline, notes, numbers, what is left to win, classes, costliest rows.

    Narrow terminals see fewer columns of the tables; a file or a pipe sees the same without colours.

    Args:
        record: what to print.
        console: where to; by default the standard output.

    Raises:
        MissingExtra: rich is not installed.

    >>> show(Record("evaluation", "an empty one"))
    <BLANKLINE>
    an empty one
    <BLANKLINE>
    This record holds no cross-entropy.
    """
    require("rich", "cli", "printing a record")
    from rich.console import Console

    screen = console or Console()
    _say(screen, "")
    _say(screen, printable(record.title), "bold")
    _say(screen, "")
    _say(screen, text.headline(record), "bold red" if text.is_impossible(record) else "")
    if limits := contest.limits(record):
        screen.print()
        _say(screen, limits, "dim")
    for note in record.facts.get("notes") or []:
        screen.print()
        _say(screen, f"Note: {printable(note)}", "yellow")
    _print_section(screen, "", _lines(text.summary(record), screen))
    for title, sheet in comparison.sheets(record, _MOST_ROWS) + contest.sheets(record):
        _print_section(screen, title, _sheet(sheet, screen))
    _print_section(screen, "The trials", _sheet(search.sheet_of_trials(record, _MOST_TRIALS), screen))
    _print_section(screen, "Which settings mattered", _sheet(search.sheet_of_importance(record), screen))
    if searched := " ".join(search.sentences(record)):
        screen.print()
        _say(screen, searched)
    _print_section(screen, "Where the remaining nats are", _lines(text.left(record), screen))
    _print_section(screen, "By slice", _sheet(table.slices(record, _MOST_SLICES), screen))
    _print_section(screen, "By class", _sheet(table.per_class(record, _MOST_CLASSES), screen))
    _print_section(screen, "The rows that cost most", _sheet(table.costliest(record, _MOST_ROWS), screen))


def _say(screen: Console, prose: str, style: str = "") -> None:
    from rich.text import Text

    # Text objects all the way: a class called "[red]" is a name, not an order to rich.
    screen.print(Text(wrapped(_speakable(prose, screen), min(screen.width, _READABLE)), style=style))


def _print_section(screen: Console, title: str, content: RenderableType | None) -> None:
    from rich.text import Text

    if content is None:
        return
    screen.print()
    if title:
        screen.print(Text(title, style="bold"))
    screen.print(content)


def _lines(lines: list[text.Line], screen: Console) -> RenderableType | None:
    """Numbers by name, and what they mean where there is room for it."""
    from rich.table import Table
    from rich.text import Text

    if not lines:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    explained = screen.width >= _WIDE
    if explained:
        grid.add_column(style="dim", max_width=_READABLE)
    for line in lines:
        grid.add_row(*(Text(_speakable(cell, screen)) for cell in (line if explained else line[:2])))
    return grid


def _sheet(sheet: table.Sheet | None, screen: Console) -> RenderableType | None:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if sheet is None:
        return None
    shown = _fitting([column for column in sheet.columns if column.essential or screen.width >= _WIDE], screen.width)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    names = [column for column in shown if not column.numeric]
    # Names share what the numbers leave, so that no name pushes a number off the screen.
    taken = sum(_width(column) for column in shown if column.numeric)
    rooms = _rooms(names, screen.width - taken - 2 * len(shown))
    for column in shown:
        title = Text(_speakable(column.title, screen))
        grid.add_column(title, justify="right" if column.numeric else "left", no_wrap=not _spaced(column))
    cells = [
        column.cells if column.numeric else [folded(clip(cell, _LONG), rooms[column.title]) for cell in column.cells]
        for column in shown
    ]
    for row in zip(*cells, strict=True):
        grid.add_row(*(Text(_speakable(cell, screen)) for cell in row))
    if not sheet.left_out:
        return grid
    return Group(grid, Text(_speakable(sheet.left_out, screen), style="dim"))


def _fitting(columns: list[table.Column], width: int) -> list[table.Column]:
    """Columns that have room beside each other, the last numbers left out where not all have."""
    shown = list(columns)
    while (
        sum(_width(column) if column.numeric else min(_width(column), 8) for column in shown) + 2 * len(shown) > width
    ):
        numbers = [column for column in shown if column.numeric]
        if len(numbers) < 2:
            break
        shown.remove(numbers[-1])
    return shown


def _width(column: table.Column) -> int:
    """How wide a column has to be for no number to be squeezed."""
    return max(map(len, [*_lines_of(column), *column.cells]))


def _rooms(names: list[table.Column], left: int) -> dict[str, int]:
    """How wide each column of names may be, by its title: those that need little leave the rest to the others."""
    rooms = {}
    needs = sorted((max(map(len, [column.title, *column.cells])), column.title) for column in names)
    for place, (need, title) in enumerate(needs):
        rooms[title] = max(min(need, left // (len(needs) - place), _LONG), 8)
        left -= rooms[title]
    return rooms


def _lines_of(column: table.Column) -> list[str]:
    """A title as narrow as it may be written."""
    return column.title.split() if _spaced(column) else [column.title]


def _spaced(column: table.Column) -> bool:
    """Titles of two words may wrap; cells, which hold no spaces where they are numbers, then stay whole."""
    return column.numeric and " " in column.title


def _speakable(line: str, screen: Console) -> str:
    """Replace what the terminal's own encoding lacks: old Windows consoles and pipes would stop at it."""
    encoding = screen.encoding or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        line = line.translate(_WITHOUT_UNICODE).encode(encoding, "replace").decode(encoding)
    return line
