"""The same tally inside training: a metric of torchmetrics whose state is a ``Tally`` and whose reduction is ``merge``.

Every rank adds its own rows; ``compute`` gathers the ranks' tallies and merges them in the order of the ranks, so that
all have the same bits, which are those of one process over all rows; the folds that more than two classes are
recalibrated in follow the names of the rows (``update``). It is not an average of averages: ranks may have unequally
many rows, or none.

To torchmetrics the state is a single uint8 tensor, the tally as bytes (packing.py). A tally is several arrays of
several dtypes and sizes, some of which grow; as one tensor it goes through torchmetrics' own gathering (any backend,
any ``dist_sync_fn``, a process group), into ``state_dict`` and through ``torch.load(weights_only=True)``, which objects
sent by ``all_gather_object`` could not. It is made when somebody asks for it, not in every ``update``.

Rows are measured on the CPU in float64, by design: sums in the float32 of a GPU drift by 10⁻³ nats at 10⁸ tokens, and
the tally's histograms are NumPy's. So ``update`` waits for the device and copies the predictions, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.errors import DataError, require
from crossent.measure.evaluation import record_of, tally_for
from crossent.measure.predictions.columns import as_array
from crossent.measure.predictions.form import BFLOAT16_TOLERANCE, FORMS, SUM_TOLERANCE
from crossent.measure.predictions.predictions import Door, Predictions
from crossent.measure.sums.likelihood import FLOOR
from crossent.measure.tally.packing import packed, unpacked
from crossent.measure.tally.tally import Tally
from crossent.record import Record

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = require("torchmetrics", "torchmetrics", "CrossEntropyMetric").Metric

WAITING_ROWS = 1 << 13
WAITING_ENTRIES = 1 << 21
"""Rows, and entries of their probabilities, that are kept until it is worth adding them: 16 MiB, or 32 from logits."""


def merged(parts: Sequence[Tensor]) -> Tensor:
    """Merge tallies, uint8 (n,) each, in their order; one of 0 bytes is that of no rows."""
    tallies = [unpacked(part.cpu().numpy()) for part in parts if part.numel()]
    if not tallies:
        return torch.zeros(0, dtype=torch.uint8)
    whole = tallies[0]
    for tally in tallies[1:]:
        whole = whole.merge(tally)
    return torch.from_numpy(packed(whole)).to(parts[0].device)


class CrossEntropyMetric(Metric):
    """Everything that ``crossent.evaluate`` says of probabilities, as a torchmetrics ``Metric``.

    ``form`` says what predictions are: "logits", "log-probabilities" or "probabilities". ``task`` is "multi-class"
    (predictions (N, C) or (N, C, d₁, …), labels without the C) or "binary" (one prediction for each label, of any
    shape: every entry is a row); unsaid, the shapes decide where they can. ``class_dim`` is where the classes stand, −1
    for a language model's (N, tokens, C). ``classes`` are their names; labels are always indices. Rows whose label is
    ``ignore_index`` are left out. ``floor`` is that of ``evaluate``. ``parts=False`` leaves out the decomposition,
    which takes most of the time of ``compute``. ``options`` are those of every ``Metric`` (``process_group``,
    ``sync_on_compute``, …).

    ``compute()`` gives a tensor (float64) for each number of docs/record.md, ``record()`` the whole record, with
    intervals, tables and curves.

    >>> metric = CrossEntropyMetric()
    >>> metric.update(torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 2]))
    >>> found = metric.compute()
    >>> print(round(found["cross_entropy"].item(), 4), found["accuracy"].item(), found["brier"].dtype)
    0.6751 0.5 torch.float64
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(
        self,
        form: str = "logits",
        *,
        task: str | None = None,
        classes: Sequence[Any] | None = None,
        class_dim: int = 1,
        ignore_index: int | None = -100,
        floor: float = FLOOR,
        parts: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if form not in FORMS:
            raise DataError(f"form should be {', '.join(map(repr, FORMS[:-1]))} or {FORMS[-1]!r}, and is {form!r}.")
        if task not in (None, "binary", "multi-class"):
            raise DataError(f"task should be 'binary' or 'multi-class', and is {task!r}.")
        self.form, self.task, self.class_dim, self.ignore_index = form, task, class_dim, ignore_index
        self.classes = None if classes is None else [str(name) for name in classes]
        self.floor, self.parts = floor, parts
        self._tally: Tally | None = None
        self._waiting: list[Predictions] = []
        self._kind: tuple[Any, ...] = ()
        self._packed: Tensor | None = None
        self._seen = self._seen_before = 0
        self.add_state("tally", torch.zeros(0, dtype=torch.uint8), dist_reduce_fx=merged)

    @property
    def tally(self) -> Tensor:
        """The state: the tally of the rows so far as bytes, uint8 (n,) on the metric's device; n = 0 without rows."""
        if self._packed is None:
            self._add()
            row = np.zeros(0, np.uint8) if self._tally is None else packed(self._tally)
            self._packed = torch.from_numpy(row).to(self.device)
        return self._packed

    @tally.setter
    def tally(self, state: Tensor) -> None:
        self._packed, self._waiting, self._kind = state, [], ()
        self._tally = unpacked(state.detach().cpu().numpy()) if state.numel() else None

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        weight: Any = None,
        group: Any = None,
        row: Any = None,
        bytes: Any = None,
    ) -> None:
        """Add rows.

        ``target`` holds class indices (any integers, or truth values), or, floating, shares: (N, C, …) as ``preds``,
        and for two classes in one column the share of the second. ``weight`` is what a row counts, ``group`` which rows
        are not independent (a document's tokens), ``row`` what identifies it, ``bytes`` the length of what it
        predicted: of the rows' shape, or of its first dimensions (one for each document, say). Without ``row`` rows are
        counted, and number i of rank r of R is called i·R + r, as a ``DistributedSampler`` that does not shuffle deals
        them out. The folds that several classes are recalibrated in are drawn by these names, and so the parts depend
        on them, within their intervals.

        Raises DataError, a sentence with the row, for what is no prediction, as ``evaluate`` does, and for rows of
        probabilities that are said to be logits.
        """
        p, y, shape = self._rows(preds, target)
        count = math.prod(shape)
        keep: NDArray[np.bool_] | slice = slice(None)
        soft = y.is_floating_point()
        if not soft and self.ignore_index is not None and (ignored := y == self.ignore_index).any():
            kept = ~ignored
            p, y, keep = p[kept], y[kept], kept.cpu().numpy()
        rank, ranks = self._place()
        ids = (self._seen_before + self._seen + np.arange(count)) * ranks + rank

        def beside(values: Any, name: str) -> NDArray[Any] | None:
            return None if values is None else _spread(values, shape, name)[keep]

        given = beside(row, "row")
        ids = ids[keep] if given is None else given
        if not ids.size:
            self._seen += count
            return
        probabilities, labels = as_array(p), as_array(y)
        if self.form == "logits" and probabilities.ndim == 2 and _are_probabilities(probabilities):
            raise DataError(
                "these logits lie between 0 and 1 and each row adds up to 1: they are probabilities. Give the logits, "
                "or say form='probabilities'."
            )
        narrow = preds.dtype == torch.bfloat16
        k = probabilities.shape[1] if probabilities.ndim == 2 else 2
        if self.classes is not None and len(self.classes) != k:
            raise DataError(f"there are {k} classes in the predictions, and {len(self.classes)} are named.")
        door = Door(
            [str(c) for c in range(k)], form=self.form, truth="soft" if soft else "class",
            tolerance=BFLOAT16_TOLERANCE if narrow else SUM_TOLERANCE,
        )  # fmt: skip
        rows = door.admit(
            probabilities, labels, ids, weights=beside(weight, "weight"), groups=beside(group, "group"),
            bytes=beside(bytes, "bytes"),
        )  # fmt: skip
        rows = rows if self.classes is None else replace(rows, classes=self.classes)
        given_beside = tuple(cells is None for cells in (weight, group, bytes))
        kind = (rows.task, rows.classes, rows.soft, *given_beside)
        if kind != self._kind:
            self._add()
            if self._tally is not None:
                self._tally.add(rows)  # refuses rows that do not belong with those before
            self._kind = kind
        self._seen += count
        self._packed = None
        self._waiting.append(rows)
        waiting = sum(map(len, self._waiting))
        if waiting >= WAITING_ROWS or waiting * k >= WAITING_ENTRIES:
            self._add()

    def _rows(self, preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Predictions (n,) or (n, C), labels (n,) or (n, C), and the shape that the n rows had."""
        preds, target = preds.detach(), target.detach()
        if not preds.is_floating_point():
            raise DataError(f"predictions are {self.form}, floating numbers, and these are {preds.dtype}.")
        target = target.to(torch.int64) if target.dtype == torch.bool else target
        shapes = f"predictions are {tuple(preds.shape)} and targets {tuple(target.shape)}"
        task = self.task
        if task is None and preds.shape == target.shape:
            task = "binary" if preds.ndim <= 1 else "multi-class" if target.is_floating_point() else None
            if task is None:
                raise DataError(
                    f"{shapes}, whole numbers: if every entry is a row of its own (two classes) say task='binary'; "
                    "classes come without a dimension of classes, and shares of classes as floating numbers."
                )
        if task == "binary":
            if preds.shape != target.shape:
                raise DataError(f"{shapes}: for two classes there is one prediction for each target.")
            return preds.reshape(-1), target.reshape(-1), tuple(preds.shape)
        if preds.ndim < 2 or not -preds.ndim <= self.class_dim < preds.ndim:
            raise DataError(f"{shapes}: predictions of several classes are (N, C, …), here with C in {self.class_dim}.")
        p = preds.movedim(self.class_dim, -1)
        y = target.movedim(self.class_dim, -1) if target.shape == preds.shape else target
        shape = tuple(p.shape[:-1])
        if y.shape not in (p.shape, shape):
            raise DataError(
                f"{shapes}, with the classes in dimension {self.class_dim}: targets that are classes should be "
                f"{shape}. Say class_dim= if the classes stand elsewhere (−1 for (N, tokens, C))."
            )
        if y.shape == p.shape and not y.is_floating_point():
            raise DataError(f"{shapes}: shares of classes are floating numbers, and these are {target.dtype}.")
        if y.shape == shape and y.is_floating_point():
            raise DataError(f"{shapes}: classes are whole numbers, and these are {target.dtype}.")
        k = p.shape[-1]
        return p.reshape(-1, k), y.reshape(-1, k) if y.shape == p.shape else y.reshape(-1), shape

    def _place(self) -> tuple[int, int]:
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not there:
            return 0, 1
        return torch.distributed.get_rank(self.process_group), torch.distributed.get_world_size(self.process_group)

    def _add(self) -> None:
        """Add the rows that wait."""
        if self._waiting:
            rows = Predictions.concatenate(self._waiting)
            self._tally = (self._tally or tally_for(rows, self.floor)).add(rows)
            self._waiting = []

    def _whole(self) -> Tally:
        self._add()
        if self._tally is None:
            raise DataError("there are no rows to measure: update was not called, or every row was ignored.")
        return self._tally

    def compute(self) -> dict[str, Tensor]:
        """Give the value of every number, of all ranks: float64, without dimensions, on the metric's device."""
        tally = self._whole()
        numbers = tally.value() if self.parts else tally.numbers({})
        return {
            name: torch.tensor(float(number.value), dtype=torch.float64, device=self.device)
            for name, number in numbers.items()
        }

    def record(self, title: str | None = None) -> Record:
        """Give the record of the rows of all ranks, as ``crossent.evaluate`` does; every rank has to ask for it."""
        with self.sync_context(self.dist_sync_fn, should_sync=self.sync_on_compute and not self._is_synced):
            return record_of(self._whole(), title=title)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add rows, and give the numbers of these alone. That takes as long as ``compute``; ``update`` does not."""
        self._seen_before, self._seen = self._seen_before + self._seen, 0
        found = super().forward(*args, **kwargs)
        self._seen, self._seen_before = self._seen + self._seen_before, 0
        return found

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._seen = 0

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        self.tally = merged([incoming_state["tally"], self.tally])

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        gather = dist_sync_fn or require("torchmetrics.utilities.distributed", "torchmetrics", "").gather_all_tensors
        self.tally = merged(gather(self.tally, group=process_group or self.process_group))


def _spread(values: Any, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Give what stands beside rows of this shape, (n,): a cell for each row, or for each of its first dimensions."""
    cells = as_array(values)
    if cells.shape != shape[: cells.ndim]:
        raise DataError(f"the rows have the shape {shape} and {name} has {cells.shape}: give one for each row.")
    wide = cells.reshape(cells.shape + (1,) * (len(shape) - cells.ndim))
    return np.broadcast_to(wide, shape).reshape(-1)


def _are_probabilities(p: NDArray[Any]) -> bool:
    if p.min() < 0 or p.max() > 1:
        return False
    return bool((np.abs(p.sum(axis=1, dtype=np.float64) - 1) <= SUM_TOLERANCE).all())
