"""From files to batches of predictions: every row is looked at once, and what the first rows decide holds for all."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, require, some
from crossent.files import told_of
from crossent.measure.predictions.columns import MISSING, refuse_copies, refuse_missing_ids, texts
from crossent.measure.predictions.naming import name_pair
from crossent.measure.predictions.predictions import Door, Predictions
from crossent.measure.predictions.truth import Coded
from crossent.measure.sources import samples
from crossent.measure.sources.arrays import coded_cells, lengths, numbers, plain_ids
from crossent.measure.sources.chosen import Chosen, choose
from crossent.measure.sources.files import PURPOSE, File, Path_, find
from crossent.measure.sources.tables import FOLDER, MARKS, header, scan

BATCH_ROWS = 65_536
"""Rows of a batch: 1 MiB of binary probabilities, which stays in the cache between one look at them and the next."""

IDS_KEPT = 1 << 23
"""Row ids that are remembered, 64 MiB of them, to see whether one comes twice; ids that only grow need no memory."""


def read_predictions(
    path: Path_ | Sequence[Path_],
    label: str | Sequence[str] | None = None,
    probability: str | Sequence[str] | None = None,
    row: str | None = None,
    split: str | None = None,
    normalise: bool = False,
    *,
    weight: str | None = None,
    group: str | None = None,
    by: str | Sequence[str] | None = None,
    bytes: str | None = None,
    form: str | None = None,
    truth: str | None = None,
    classes: Sequence[Any] | None = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Predictions:
    """Read predictions whole: the batches of ``batches``, put together. Arguments and errors are those.

    Cost: one pass over the columns named, and all of them in memory.
    """
    parts = list(
        batches(
            path, label=label, probability=probability, row=row, split=split, normalise=normalise, weight=weight,
            group=group, by=by, bytes=bytes, form=form, truth=truth, classes=classes, task=task, low=low, high=high,
            progress=progress,
        )
    )  # fmt: skip
    return Predictions.concatenate(parts)


def batches(
    path: Path_ | Sequence[Path_],
    *,
    label: str | Sequence[str] | None = None,
    probability: str | Sequence[str] | None = None,
    row: str | None = None,
    split: str | None = None,
    normalise: bool = False,
    weight: str | None = None,
    group: str | None = None,
    by: str | Sequence[str] | None = None,
    bytes: str | None = None,
    form: str | None = None,
    truth: str | None = None,
    classes: Sequence[Any] | None = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Predictions]:
    """Read predictions batch by batch, crossent's own or any other framework's; memory does not grow with rows.

    ``path`` is a file (.parquet, .feather, .csv, .tsv, .jsonl, .npz; text also packed: .csv.gz), a folder, a pattern,
    an address in an object store (``s3://…``), or several of them; folders called ``city=Paris`` below what is named
    are a column. The sample files of lm-evaluation-harness are recognised (samples.py).

    ``label`` names the column of labels ("label"), or one per class; ``probability`` one column, the probability of the
    positive class (or the expected fraction of a range), or one per class (all that begin with ``p_``), or a column of
    lists; each may be a pattern such as ``p_*``. ``row`` is the column of row ids ("row" if it is there), ``weight``,
    ``group``, ``by`` (several) and ``bytes`` (whole numbers, or the text itself) those of what ``Predictions`` carries.
    ``split`` chooses among the values of the column "split"; without it the test rows are taken, which ``notes`` then
    says, and "all" takes every row. ``form``, ``truth``, ``classes``, ``task``, ``low``, ``high`` and ``normalise`` are
    as in ``Predictions.from_arrays``.

    Names of classes, the form and the kind of label are those of the first batch. Where a single column of
    probabilities meets labels that are text, the labels are read once beforehand, for their names. The notes are
    complete in the last batch. ``progress`` is told the share of the bytes that has been read.

    Raises DataError, a sentence with file and row, for a file that cannot be read or holds anything but predictions;
    MissingExtra without pyarrow. Cost: one pass over the columns named, some 10 ns a row of two classes from Parquet.
    """
    files = find(path)
    source = some([told_of(path)] if isinstance(path, str) or not isinstance(path, Sequence) else [*map(told_of, path)])
    if samples.recognised(files[0]):
        told = {
            "label": label, "probability": probability, "row": row, "split": split, "truth": truth, "classes": classes,
            "task": task, "weight": weight, "group": group, "by": by, "bytes": bytes, "low": low, "high": high,
            "normalise": normalise,
        }  # fmt: skip
        yield from samples.batches(files, source, form, told, batch_rows)
        return
    reader = Reader.open(
        files, source, label=label, probability=probability, row=row, split=split, normalise=normalise, weight=weight,
        group=group, by=by, bytes=bytes, form=form, truth=truth, classes=classes, task=task, low=low, high=high,
        batch_rows=batch_rows,
    )  # fmt: skip
    sizes = [file.size for file in files]
    last: Predictions | None = None
    for number, file in enumerate(files):

        def seen(share: float, before: int = sum(sizes[:number]), size: int = sizes[number]) -> None:
            if progress is not None:
                progress((before + share * size) / max(sum(sizes), 1))

        for found in reader.batches(file, batch_rows, seen):
            if last is not None:
                yield last
            last = found
    notes = reader.close(files, source, batch_rows)
    if last is not None:
        yield replace(last, notes=notes)


def splits_in(path: Path_ | Sequence[Path_]) -> list[str]:
    """Name the splits that the rows of files are of, [] where no column says."""
    found: dict[str, None] = {}
    for file in find(path):
        if not samples.recognised(file) and "split" in header(file)[0]:
            for table in scan(file, ["split"], [], BATCH_ROWS):
                found |= dict.fromkeys(texts(coded_cells(table.column("split").unique())))
    return sorted(found)


class Reader:
    """Turns Arrow's batches into checked ones; everything that was decided on the way stands in it.

    ``chosen`` are the columns, ``numeric`` those that hold numbers, ``door`` the checks, ``splits`` and ``ids`` what
    was seen of those columns; ``before`` counts the rows of the files before.
    """

    def __init__(
        self, chosen: Chosen, numeric: list[str], door: Door, splits: _Splits, ids: _Ids | None, source: str
    ) -> None:
        self.chosen, self.numeric, self.door, self.splits, self.ids = chosen, numeric, door, splits, ids
        self.source = source
        self.before = 0

    @classmethod
    def open(
        cls, files: list[File], source: str, *, label: Any, probability: Any, row: str | None, split: str | None,
        normalise: bool, weight: str | None, group: str | None, by: Any, bytes: str | None, form: str | None,
        truth: str | None, classes: Sequence[Any] | None, task: str | None, low: float | None, high: float | None,
        batch_rows: int = BATCH_ROWS,
    ) -> Reader:  # fmt: skip
        """Look at the headers, and find out which columns are meant; the arguments are those of ``batches``."""
        held, about = header(files[0])
        task = task or about.get("task")
        classes = classes if classes is not None else about.get("classes")
        if task == "range":
            low, high = (about.get("low") if low is None else low), (about.get("high") if high is None else high)
        named = classes if probability is None else None
        chosen = choose(files[0], held, label, probability, row, weight, group, by, bytes, named)
        if split is not None and chosen.split is None:
            raise DataError(f"{files[0]} has no column 'split', so that {split!r} cannot be chosen: leave split out.")
        for file in files[1:]:
            chosen.check(file)
        numeric = chosen.numeric(number_labels=task == "range" or truth not in (None, "class"))
        if classes is None and task != "range" and truth in (None, "class"):
            classes = _names_of_two(files, chosen, batch_rows, task)
        several = len(chosen.probabilities) > 1
        door = Door(
            classes, task, low, high, form, truth, normalise=normalise,
            columns=chosen.probabilities if several or not held[chosen.probabilities[0]].startswith("lists") else None,
            label_columns=chosen.labels if len(chosen.labels) > 1 else None,
        )  # fmt: skip
        return cls(chosen, numeric, door, _Splits(split), _Ids() if chosen.row else None, about.get("source") or source)

    def batches(self, file: File, rows: int, seen: Callable[[float], None]) -> Iterator[Predictions]:
        """Read a file: check its rows, leave out those of other splits."""
        start = file.first
        for table in scan(file, self.chosen.all, self.numeric, rows, seen):
            where = np.arange(start, start + table.num_rows)
            start += table.num_rows
            if self.chosen.split is not None:
                mask = self.splits.mask(table.column(self.chosen.split))
                if not mask.all():
                    table, where = table.filter(require("pyarrow", "cli", PURPOSE).array(mask)), where[mask]
            if not table.num_rows:
                continue
            try:
                yield self._batch(file, table, where)
            except DataError as trouble:
                raise DataError(f"{file}: {trouble}{_hint(file, self.chosen, self.door.task)}") from trouble
        self.before += start

    def _batch(self, file: File, table: Any, where: NDArray[np.int64]) -> Predictions:
        chosen = self.chosen
        ids = where + self.before
        if chosen.row is not None:
            ids = plain_ids(table.column(chosen.row))
        shown = where if chosen.row is None else ids

        def place(i: int) -> str:
            return f"row {shown[i]}"

        if self.ids is not None:
            self.ids.add(ids, where)
        columns = chosen.probabilities
        p = numbers(table, columns, place)
        if len(chosen.labels) == 1 and not chosen.several_labels and chosen.labels[0] not in self.numeric:
            y = coded_cells(table.column(chosen.labels[0]))
        else:
            y = numbers(table, chosen.labels, place)
        beside = {
            "weights": None if chosen.weight is None else numbers(table, [chosen.weight], place),
            "groups": None if chosen.group is None else coded_cells(table.column(chosen.group)),
            "bytes": None if chosen.bytes is None else lengths(table, chosen.bytes, place),
        }
        slices = {name: coded_cells(table.column(name)) for name in chosen.by}
        return self.door.admit(p, y, ids, place, **beside, slices=slices, source=self.source, split=self.splits.chosen)

    def for_others(self) -> Reader:
        """Give a reader that holds to what was decided and has seen no rows, for rows that are read elsewhere."""
        other = copy.deepcopy(self)
        other.door.rows, other.door.weight = 0, 0.0
        other.splits, other.ids = _Splits(self.splits.asked), _Ids() if self.ids is not None else None
        return other

    def join(self, other: Reader, file: File) -> None:
        """Take what another reader saw of the rows that come next; refuse names that do not fit those before."""
        try:
            self.door.join(other.door)
        except DataError as trouble:
            raise DataError(f"{file}: {trouble}{_hint(file, self.chosen, self.door.task)}") from trouble
        self.splits.counts += other.splits.counts
        self.splits.chosen = other.splits.chosen or self.splits.chosen
        if self.ids is not None and other.ids is not None:
            self.ids.join(other.ids)

    def close(self, files: list[File], source: str, rows: int = BATCH_ROWS) -> tuple[str, ...]:
        """Say what only the whole can show: that there was nothing in it, or some of it twice; give the notes."""
        if not self.door.rows:
            self.splits.refuse(files[0] if len(files) == 1 else source)
            raise DataError(f"{files[0]} has a header and no rows.")
        try:
            self.door.close()
            copies = self.ids.copies() if self.ids is not None else None
            if copies is not None and self.chosen.row is not None:
                _name_copies(files, self.chosen.row, copies, rows)
        except DataError as trouble:
            raise DataError(f"{source!r}: {trouble}") from trouble
        return (*self.splits.notes(), *self.door.notes, *(self.ids.notes if self.ids is not None else []))


def _hint(file: File, chosen: Chosen, task: str | None) -> str:
    if file.kind in MARKS and task is None and len(chosen.probabilities) == 1 and "prediction" in chosen.held:
        return f" A {file.kind} cannot say that a target is a range; add task='range' with low= and high= if it is."
    return ""


def _names_of_two(files: list[File], chosen: Chosen, rows: int, task: str | None) -> list[str] | None:
    """Read the labels, and nothing else, for the names of two classes that no column name tells."""
    if len(chosen.probabilities) > 1 or chosen.several_labels or chosen.held[chosen.labels[0]] not in ("text", FOLDER):
        return None
    if chosen.held[chosen.probabilities[0]].startswith("lists"):
        return None
    known: set[str] = set()
    column = chosen.labels[0]
    for file in files:
        for table in scan(file, [column], [], rows):
            cells = coded_cells(table.column(column))
            assert isinstance(cells, Coded)
            known |= {value for value in cells.values if value not in (None, "")}
            if len(known) > 2:
                return None  # the rows will say which label is one too many
            if known <= {"0", "1"}:
                break  # these have their names, and if others follow they are refused
    if not known or known <= {"0", "1"}:
        return None
    try:
        return name_pair(sorted(known), {}, None, chosen.probabilities[0])[0]
    except DataError as trouble:
        if known & {"0", "1"}:
            return None  # the rows will say where the other one is
        raise DataError(f"{files[0]}: {trouble}{_hint(files[0], chosen, task)}") from trouble


class _Splits:
    """Chooses the rows of one split, and counts the others."""

    def __init__(self, asked: str | None) -> None:
        self.asked, self.counts = asked, Counter[str]()
        self.chosen: str | None = asked

    def mask(self, column: Any) -> NDArray[np.bool_]:
        cells = coded_cells(column)
        values = cells.values if isinstance(cells, Coded) else np.unique(cells).tolist()
        codes = cells.codes if isinstance(cells, Coded) else np.searchsorted(values, cells)
        names = [*(MISSING if value in (None, "") else str(value) for value in values), MISSING]  # of code -1
        for name, count in zip(names, np.bincount(codes % len(names), minlength=len(names)), strict=True):
            self.counts[name] += int(count)
        self.chosen = self.asked or "test"
        if self.chosen == "all":
            return np.ones(len(codes), bool)
        return np.array([name == self.chosen for name in names])[codes]

    def _present(self) -> str:
        return ", ".join(f"{name} ({count:,})" for name, count in sorted(self.counts.items()) if count)

    def refuse(self, shown: object) -> None:
        if self.counts:
            raise DataError(
                f"{shown} has no rows in the split {self.chosen!r}; it has {self._present()}. Ask for one of these "
                "with split= (--split), or for all rows with split all."
            )

    def notes(self) -> list[str]:
        if self.asked is not None or len(+self.counts) < 2:
            return []
        return [f"The file holds the splits {self._present()}; none was asked for, and the test rows were measured."]


class _Ids:
    """Sees whether a row id comes twice: whole numbers that only grow need no memory, others 64 bits each."""

    def __init__(self) -> None:
        self.kept: list[NDArray[Any]] = []
        self.rows, self.growing, self.bottom, self.top = 0, True, 2**63, -(2**63)
        self.notes: list[str] = []

    def add(self, ids: NDArray[Any], where: NDArray[np.int64]) -> None:
        """Look at the ids of a batch; ``where`` are its rows' places in the file."""
        whole = ids.dtype.kind in "iu"
        self.growing = self.growing and whole and int(ids[0]) > self.top and bool((ids[1:] > ids[:-1]).all())
        if self.growing:
            self.bottom, self.top = min(self.bottom, int(ids[0])), int(ids[-1])
        else:
            refuse_missing_ids(ids, where)
            refuse_copies(ids)
        self._keep(ids.astype(np.int64) if whole else hashed(ids), ids.size)

    def join(self, other: _Ids) -> None:
        """Take ids that were looked at elsewhere and come after these."""
        self.growing = self.growing and other.growing and other.bottom > self.top
        self.top = max(self.top, other.top)
        kept = 0
        for ids in other.kept:
            kept += ids.size
            self._keep(ids, ids.size)
        if other.rows > kept:
            self._keep(None, other.rows - kept)

    def _keep(self, numbers: NDArray[Any] | None, size: int) -> None:
        self.rows += size
        if numbers is not None and self.rows <= IDS_KEPT:
            self.kept.append(numbers)
        elif not self.growing and not self.notes:
            self.notes.append(
                f"Row ids were compared with each other in the first {IDS_KEPT:,} rows, and after that within batches "
                "only."
            )

    def copies(self) -> NDArray[np.uint64] | None:
        """The numbers of ids that came several times."""
        if self.growing:
            return None
        numbers = np.concatenate([hashed(ids) if ids.dtype != np.uint64 else ids for ids in self.kept])
        kept, times = np.unique(numbers, return_counts=True)
        return kept[times > 1] if kept.size < numbers.size else None


def hashed(ids: NDArray[Any]) -> NDArray[np.uint64]:
    """A number of 64 bits for each id; 7 and "7" are one id."""
    return np.asarray(require("pandas", "cli", PURPOSE).util.hash_array(ids.astype(str).astype(object)))


def _name_copies(files: list[File], row: str, copies: NDArray[np.uint64], rows: int) -> None:
    """Read the ids once more to say which come twice."""
    found = [
        ids[np.isin(hashed(ids), copies)].astype(str)
        for file in files
        for ids in (plain_ids(table.column(row)) for table in scan(file, [row], [], rows))
    ]
    refuse_copies(np.concatenate(found))
