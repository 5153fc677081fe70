"""How crossent writes predictions: a table, Parquet or CSV, with one row per prediction.

    row         what identifies the row in the data it came from
    label       what came: a class, or a value in the target's own unit (absent where it is not known yet)
    label_<…>   (soft labels, instead) the share of each class
    split       train, validation or test (absent where there is only one)
    p_<…>       the probability of each class; for a range one column, p_1, the expected fraction of it
    prediction  (range only) the predicted mean, low + p_1 (high − low), in the target's unit
    low, high   (range only, where asked for) the ends of an interval that is to hold the number

What a table cannot say (the task, the range, the order of the classes) stands in a Parquet file's metadata,
key ``crossent``, as JSON. A CSV has no such place, so a range has to be told when it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossent.errors import DataError, require, some
from crossent.files import replacing
from crossent.measure.predictions.columns import as_array, column_names
from crossent.measure.predictions.naming import PREFIX, class_text, matching_order
from crossent.measure.sources.files import PURPOSE

_PARQUET = (".parquet", ".pq")
_CSV = (".csv",)


def write_predictions(
    path: str | os.PathLike[str],
    probabilities: Any,
    *,
    task: str,
    labels: Any = None,
    rows: Any = None,
    splits: Any = None,
    intervals: tuple[Any, Any] | None = None,
    classes: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    source: str | None = None,
    target: str | None = None,
) -> None:
    """Write predictions as the table described above; the suffix, .parquet or .csv, says which kind.

    ``probabilities`` (n, classes), or for task "range" (n,), the expected fraction; float32 stays float32. Columns of a
    frame that are called after the ``classes`` may stand in another order.
    ``labels`` (n,) as they stand in the data (class names, or values of a range), or (n, classes) shares, None where
    they are not known; ``rows`` (n,) row ids, else 0, 1, …; ``splits`` (n,) text; ``intervals`` the two ends (n,) of a
    range's intervals, in its own unit. ``source`` and ``target`` name the data and its column. The file is written
    whole or not at all, and the same predictions give the same bytes (of one pyarrow version).
    """
    pyarrow = require("pyarrow", "cli", PURPOSE)
    path = Path(path)
    if path.suffix.lower() not in _PARQUET + _CSV:
        raise DataError(f"predictions are written as .parquet or .csv, and {str(path)!r} ends in {path.suffix!r}.")
    p = _in_order(probabilities, classes)
    columns: dict[str, Any] = {"row": np.arange(len(p)) if rows is None else as_array(rows)}
    if labels is not None:
        labels = _in_order(labels, classes)
        if labels.ndim == 1:
            columns["label"] = labels
        else:
            columns |= {f"label_{class_text(name)}": labels[:, j] for j, name in enumerate(classes or [])}
    if splits is not None:
        columns["split"] = as_array(splits)
    about: dict[str, Any] = {"task": task, "source": source, "target": target}
    if task == "range":
        if p.ndim != 1 or low is None or high is None:
            raise DataError("for a range give probabilities (n,), the expected fraction, with low and high.")
        columns["p_1"] = p
        columns["prediction"] = low + p.astype(np.float64) * (high - low)
        if intervals is not None:
            columns["low"], columns["high"] = (np.asarray(ends, dtype=np.float64) for ends in intervals)
        about |= {"low": float(low), "high": float(high)}
    else:
        names = [class_text(name) for name in classes or []]
        if p.ndim != 2 or len(names) != p.shape[1]:
            raise DataError(f"probabilities should be (n, {len(names)}), one column per class, and are {p.shape}.")
        columns |= {PREFIX + name: p[:, j] for j, name in enumerate(names)}
        if len(set(names)) < len(names):
            raise DataError(f"two classes have one name in {some(names, 10)}. Give each a name of its own.")
        about["classes"] = names
    for name, column in columns.items():
        if len(column) != len(p):
            raise DataError(f"there are {len(p):,} rows of probabilities and {len(column):,} in {name!r}.")
    table = pyarrow.table({name: pyarrow.array(np.ascontiguousarray(cells)) for name, cells in columns.items()})
    about = {name: value for name, value in about.items() if value is not None}
    with replacing(path) as temporary:
        if path.suffix.lower() in _PARQUET:
            meta = {"crossent": json.dumps(about, ensure_ascii=False, sort_keys=True)}
            require("pyarrow.parquet", "cli", PURPOSE).write_table(
                table.replace_schema_metadata(meta), temporary, compression="zstd"
            )
        else:
            require("pyarrow.csv", "cli", PURPOSE).write_csv(table, temporary)


def _in_order(values: Any, classes: Sequence[Any] | None) -> Any:
    """An array, its columns in the order of the classes if it was a frame that names them."""
    array, columns = as_array(values), column_names(values)
    if array.ndim != 2 or columns is None or classes is None:
        return array
    order = matching_order([class_text(name) for name in classes], columns)
    return array if order is None else array[:, order]
