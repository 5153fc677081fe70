"""The same tally on many machines: Ray Data gives files out to workers, and their tallies are merged.

    what to read    the driver looks at the headers and at the first batch; what they decide (columns, form, kind of
                    label, names of the classes) holds for every worker
    shares          a file is a share; a large Parquet file several, of whole row groups and 4,194,304 rows or more
    one share       a task of Ray Data: the batches of sources/, each row checked as ever, into one ``Tally``
    together        share after share in the files' order, whatever order workers end in: ``merge``

Rows are read by this package's readers and not by those of Ray Data, whose blocks forget which row of which file a row
was; so that a file is worth the same here and there, and a bad row is refused in the same sentence. A tally's sums do
not depend on how rows were split (``sums.compensated``): the same files give the same bits on two cores, on a thousand,
and in one process. What workers send back for a share is its tally, some hundred kB (of several classes
some MB), and the row ids of 8,388,608 rows at most if there is a column of them.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from crossent.errors import DataError, MissingExtra, require, some
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sources import BATCH_ROWS, samples
from crossent.measure.sources.files import PURPOSE, File, find
from crossent.measure.sources.rows import Reader
from crossent.measure.sources.tables import scan
from crossent.measure.tally.tally import Tally

ENGINES = ("local", "ray")
SHARE_ROWS = 1 << 22
"""Rows of a Parquet file that are worth a task of their own: some 0.2 s of work or more."""

RETRIES = 3
"""How often a share is given to another worker after one was lost."""


@dataclass(frozen=True)
class Share:
    """What one task reads: a file or some row groups of it, and how many rows there are in the files before it."""

    file: File
    before: int = 0


def tallied_by_ray(
    path: Any,
    options: dict[str, Any],
    empty: Callable[[Predictions], Tally],
    progress: Callable[[float], None] | None = None,
) -> tuple[Tally, Predictions, list[str]]:
    """Add up files on the workers of Ray; give the tally, the first batch and what there is to say of the rows.

    ``path`` and ``options`` are those of ``sources.batches``; ``empty`` gives the tally of no rows for such batches.
    Ray is that of ``ray.init()`` if it was called, or of the address in ``RAY_ADDRESS``, or is started on this machine
    and stays for the next call. Files have to be where every worker can read them.

    Raises DataError, the sentence of the first row in the files' order that is wrong, or that workers were lost again
    and again; MissingExtra without Ray.
    """
    require("ray", "ray", "engine='ray'")
    files = [replace(one, path=os.path.abspath(one.path)) if one.store is None else one for one in find(path)]
    source = str(path) if isinstance(path, str) or not isinstance(path, Sequence) else some([str(one) for one in path])
    if samples.recognised(files[0]):
        return _tallied_samples(files, source, options, empty, progress)
    reader = Reader.open(files, source, **options)
    first = next((batch for file in files for batch in reader.batches(file, BATCH_ROWS, lambda share: None)), None)
    if first is None:
        reader.close(files, source)
        raise AssertionError("a reader without rows closes with an error")
    fresh, tally = reader.for_others(), empty(first)
    shares = _shares(files, fresh)
    whole = fresh.for_others()
    for number, (share, answer) in enumerate(zip(shares, spread(partial(_added, fresh, tally), shares), strict=True)):
        if isinstance(answer, Exception):
            _say_again(whole, share)
            raise answer
        part, seen = answer
        whole.join(seen, share.file)
        tally = tally.merge(part)
        if progress is not None:
            progress((number + 1) / len(shares))
    return tally, first, list(dict.fromkeys([*whole.door.notes, *whole.close(files, source)]))


def _tallied_samples(
    files: list[File],
    source: str,
    options: dict[str, Any],
    empty: Callable[[Predictions], Tally],
    progress: Callable[[float], None] | None,
) -> tuple[Tally, Predictions, list[str]]:
    """Samples of lm-evaluation-harness: each file is one worker's, who sends back the few numbers of each line.

    What choices and ids there are shows in all files together, so that the rows are made of them here.
    """

    def read(files: list[File]) -> Iterator[list[samples.Sample]]:
        for number, found in enumerate(spread(_samples_of, [Share(file) for file in files])):
            if isinstance(found, Exception):
                raise found
            if progress is not None:
                progress((number + 1) / len(files))
            yield found

    form, told = options["form"], {name: value for name, value in options.items() if name != "form"}
    first: Predictions | None = None
    notes: dict[str, None] = {}
    for batch in samples.batches(files, source, form, told, BATCH_ROWS, read):
        if first is None:
            first, tally = batch, empty(batch)
        tally = tally.add(batch)
        notes |= dict.fromkeys(batch.notes)
    assert first is not None
    return tally, first, list(notes)


def _samples_of(share: Share) -> list[samples.Sample] | Exception:
    try:
        _seen_here(share)
        return samples.samples_of(share.file)
    except (DataError, MissingExtra) as trouble:
        return trouble


def _seen_here(share: Share) -> None:
    if share.file.store is None and not os.path.exists(share.file.path):
        raise DataError(
            f"{share.file} is not on the machine of one of Ray's workers, which read files themselves. Put it "
            "where all of them find it by one name: a shared folder, or an object store (s3://…)."
        )


def _say_again(whole: Reader, share: Share) -> None:
    """Read a share here, with all that was seen before it: the first wrong row is refused as one process refuses it."""
    whole.before = share.before
    for _ in whole.batches(share.file, BATCH_ROWS, lambda share: None):
        pass


def _shares(files: list[File], reader: Reader) -> list[Share]:
    """Cut the files into shares; where rows have no ids but their place, count the rows before each."""
    rows: list[int | None] = []
    parts: list[list[File]] = []
    for file in files:
        cut = _row_groups(file) if file.kind == "Parquet" else [(file, None)]
        parts.append([part for part, _ in cut])
        rows.append(cut[-1][1])
    if reader.chosen.row is None and len(files) > 1 and None in rows:
        rows = list(spread(partial(_counted, reader.chosen.all[0]), [Share(file) for file in files]))
    before, shares = 0, []
    for cut_file, count in zip(parts, rows, strict=True):
        shares += [Share(part, before) for part in cut_file]
        before += count or 0
    return shares


def _row_groups(file: File) -> list[tuple[File, int | None]]:
    """Runs of row groups of a Parquet file, and how many rows there are up to the end of each."""
    with file.reading(), file.open() as stream:
        about = require("pyarrow.parquet", "cli", PURPOSE).ParquetFile(stream).metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    found: list[tuple[File, int | None]] = []
    groups: list[int] = []
    start = end = 0
    for group, size in enumerate(sizes):
        groups.append(group)
        end += size
        if end - start >= SHARE_ROWS or group == len(sizes) - 1:
            found.append((replace(file, groups=tuple(groups), first=start), end))
            groups, start = [], end
    return found or [(file, 0)]


def _counted(column: str, share: Share) -> int:
    """How many rows a file has; of one that cannot be read, up to there: reading it will say so."""
    count = 0
    try:
        for table in scan(share.file, [column], [], BATCH_ROWS):
            count += table.num_rows
    except DataError:
        pass
    return count


def _added(reader: Reader, empty: Tally, share: Share) -> tuple[Tally, Reader] | Exception:
    """The tally of a share and the reader that saw it, or what is wrong with its first wrong row."""
    try:
        _seen_here(share)
        mine, tally = reader.for_others(), empty
        mine.before = share.before
        for batch in mine.batches(share.file, BATCH_ROWS, lambda share: None):
            tally = tally.add(batch)
    except (DataError, MissingExtra) as trouble:
        return trouble
    return tally, mine


def spread(work: Callable[[Share], Any], shares: list[Share]) -> Iterator[Any]:
    """Let Ray Data do the work on every share, on any worker; give the answers in the order of the shares."""
    ray = require("ray", "ray", "engine='ray'")
    data = require("ray.data", "ray", "engine='ray'")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    held = ray.put((work, shares))
    begun = _counter(ray)

    def task(row: dict[str, Any]) -> dict[str, Any]:
        number = row["id"]
        todo, given = ray.get(held)
        if (times := ray.get(begun.again.remote(number))) > RETRIES:
            return {"share": number, "answer": pickle.dumps(_lost(given[number], times))}
        return {"share": number, "answer": pickle.dumps(todo(given[number]))}

    early: dict[int, Any] = {}
    wanted = 0
    with _quietly():
        tasks = data.range(len(shares), override_num_blocks=len(shares)).map(task)
        tasks.context.enable_progress_bars = False
        for row in tasks.iter_rows():
            # What our own task pickled a moment ago, on a worker of the user's own cluster: no file, no stranger.
            early[int(row["share"])] = pickle.loads(row["answer"])
            while wanted in early:
                yield early.pop(wanted)
                wanted += 1


def _counter(ray: Any) -> Any:
    """Start what counts how often a share was begun: Ray Data would for ever begin one that ends its worker."""

    class Begun:  # in here, so that its process need not load crossent
        def __init__(self) -> None:
            self.times: dict[int, int] = {}

        def again(self, share: int) -> int:
            """How often it was begun before."""
            self.times[share] = self.times.get(share, -1) + 1
            return self.times[share]

    return ray.remote(Begun).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


def _lost(share: Share, workers: int) -> DataError:
    return DataError(
        f"{share.file}: Ray lost {workers} workers over it, mostly because memory was short. Start Ray with fewer "
        "CPUs on each machine, or read the file without engine= (--engine)."
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep Ray Data from telling every step."""
    log = logging.getLogger("ray.data")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
