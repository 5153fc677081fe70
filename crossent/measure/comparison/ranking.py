"""All models of a comparison against the baseline, in one record: numbers, tables, verdicts, and what to know first.

The numbers of the record are those of one model, the cheapest that is not the baseline; the tables hold all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from crossent.errors import some
from crossent.measure.comparison import contrast
from crossent.measure.comparison.contrast import Ground
from crossent.measure.comparison.join import Head, Joined
from crossent.measure.comparison.rival import Rival
from crossent.measure.intervals.cluster import ClusterMean, holm
from crossent.measure.sums.likelihood import floor_said
from crossent.record import Number, Record, Table

FEW = 30
"""Clusters below which intervals can hold less often than they say: 81 % at the worst of what was simulated."""
_PARTS = ("cross_entropy", "discrimination", "miscalibration")


def ranking(
    first: Head,
    joined: Joined,
    ground: Ground,
    rivals: list[Rival],
    impossible: list[int],
    floor: float,
    title: str | None,
    notes: list[str],
) -> Record:
    """Write the record of what was found; ``impossible`` counts each model's rows of probability 0."""
    baseline, others = rivals[0], rivals[1:]
    n, alone = len(joined.rows), 0.05 / len(others)
    found = [contrast.parts(ground, baseline, other) for other in others]
    adjusted = holm([parts["cross_entropy"].p_value for parts in found])
    entropy, noise = _entropies(ground, joined.labels, baseline)
    tables: dict[str, Table] = {"models": _models(ground, rivals, found, impossible, adjusted, entropy, noise, alone)}
    tables["parts"] = _parts(rivals, found, entropy, alone)
    if ground.slices:
        tables["slices"] = _slices(ground, baseline, others)
    focus = min(range(len(others)), key=lambda k: found[k]["cross_entropy"].value)
    model, parts = others[focus], found[focus]
    differ = not contrast.same(baseline, model)
    if differ:
        tables["rows"] = contrast.dearest(ground, baseline, model)
    numbers = _numbers(ground, baseline, model, parts, adjusted[focus], alone)
    if first.task != "text":
        numbers["uncertainty"] = Number(entropy, "nats", n=n)
    if any(impossible):
        numbers["impossible_rows"] = Number(max(impossible), "rows", n=n)
    curve = contrast.concentration(ground, baseline, model) if differ else None
    facts: dict[str, Any] = {
        "task": first.task,
        "rows": n,
        "baseline": baseline.name,
        "model": model.name,
        "models": [one.name for one in rivals],
        "verdict": _verdict(parts["cross_entropy"], model, baseline, alone),
        "verdicts": {
            o.name: _verdict(p["cross_entropy"], o, baseline, alone) for o, p in zip(others, found, strict=True)
        },
        "comparisons": len(others),
        "left_out": joined.left_out,
    }
    if first.task != "text":
        facts["calibrated_with"] = "; ".join(f"{one.name}: {one.calibrated_with}" for one in rivals)
    if ground.clusters is not None:
        facts["clusters"] = parts["cross_entropy"].clusters
    if ground.slices:
        facts["slices"] = len(tables["slices"]["slice"])
    if any(impossible):
        facts["floor"] = floor
    facts["notes"] = [*joined.notes, *notes, *_notes(ground, rivals, model, impossible, parts["cross_entropy"], floor)]
    return Record(
        kind="comparison",
        title=title or f"{_listed([one.name for one in rivals])} compared",
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        numbers=numbers,
        tables=tables,
        curves={"concentration": curve} if curve is not None else {},
        facts=facts,
    )


def _entropies(ground: Ground, labels: NDArray[Any], baseline: Rival) -> tuple[float, float | None]:
    """The entropy of the labels' frequencies, and the mean entropy of labels that are distributions."""
    w = ground.share()
    if labels.dtype.kind != "f":
        frequencies = np.bincount(labels, w).astype(np.float64)
        return float(_entropy(frequencies[None])[0]), None
    shares = np.stack([1 - labels, labels], axis=1) if labels.ndim == 1 else labels
    return float(_entropy((w @ shares)[None])[0]), float(w @ _entropy(shares))


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sum(entr(p), axis=1))


def _numbers(
    ground: Ground, baseline: Rival, model: Rival, parts: Mapping[str, ClusterMean], p_value: float | None, miss: float
) -> dict[str, Number]:
    """The baseline against the model that the record is about."""
    whole = parts["cross_entropy"]
    n, numbers = whole.rows, {}
    ends = whole.interval(miss)
    exact = [float(np.max(one.costs)) for one in (model, baseline)]
    if not any(map(math.isinf, exact)):
        numbers["difference"] = Number(whole.value, "nats", *ends, n)
        numbers["difference_bits"] = numbers["difference"].to("bits")
    else:
        if not all(map(math.isinf, exact)):
            numbers["difference"] = Number(math.inf if math.isinf(exact[0]) else -math.inf, "nats", n=n)
        numbers["difference_floored"] = Number(whole.value, "nats", *ends, n)
    if p_value is not None:
        numbers["p_value"] = Number(p_value, "1", n=n)
    if (each := contrast.per_byte(ground, baseline, model)) is not None:
        in_bits = Number(each.value, "nats", *each.interval(miss), n).to("bits")
        numbers["difference_bits_per_byte"] = replace(in_bits, unit="bits per byte")
    for name in _PARTS[1:] if len(parts) > 1 else ():
        numbers[f"{name}_difference"] = Number(parts[name].value, "nats", *parts[name].interval(miss), n)
    low, high = ends
    needed = whole.rows_needed
    if low is not None and high is not None and low <= 0 <= high and needed is not None and math.isfinite(needed):
        numbers["rows_needed"] = Number(float(f"{max(needed, n):.1e}"), "rows", n=n)
    if not contrast.same(baseline, model) and (turn := contrast.rows_to_turn(ground, baseline, model)) is not None:
        numbers["rows_to_turn"] = Number(turn, "rows", n=n)
    return numbers


def _verdict(whole: ClusterMean, model: Rival, baseline: Rival, miss: float) -> str:
    """ "better", "worse", "undecided", or "same" where no row differs."""
    low, high = whole.interval(miss)
    if contrast.same(baseline, model):
        return "same"
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "better" if high < 0 else "worse"


def _models(
    ground: Ground,
    rivals: list[Rival],
    found: list[dict[str, ClusterMean]],
    impossible: list[int],
    adjusted: list[float | None],
    entropy: float,
    noise: float | None,
    miss: float,
) -> Table:
    """A line per model, the cheapest first; differences against the baseline, whose own are None."""
    w, lines = ground.share(), []
    for place, one in enumerate(rivals):
        own = ground.mean(one.floored)
        low, high = own.interval()
        line: dict[str, Any] = {"model": one.name, "cross_entropy": own.value, "low": low, "high": high}
        whole = found[place - 1]["cross_entropy"] if place else None
        line["difference"] = None if whole is None else whole.value
        line["difference_low"], line["difference_high"] = (None, None) if whole is None else whole.interval(miss)
        line["p_value"] = None if whole is None else whole.p_value
        line["p_adjusted"] = adjusted[place - 1] if place else None
        line["verdict"] = "baseline" if whole is None else _verdict(whole, one, rivals[0], miss)
        if one.calibrated is not None:
            best = float(w @ one.calibrated)
            line |= {"discrimination": entropy - best, "miscalibration": own.value - best}
        if noise is not None:
            line["kl_divergence"] = own.value - noise
        if any(impossible):
            line["impossible_rows"] = impossible[place]
        lines.append(line)
    return _table(sorted(lines, key=lambda line: line["cross_entropy"]))


def _parts(rivals: list[Rival], found: list[dict[str, ClusterMean]], entropy: float, miss: float) -> Table:
    lines = []
    for other, parts in zip(rivals[1:], found, strict=True):
        for name, mean in parts.items():
            low, high = mean.interval(miss)
            line = {"model": other.name, "part": name, "difference": mean.value, "low": low, "high": high}
            lines.append(line | {"p_value": mean.p_value})
    return _table(lines)


def _slices(ground: Ground, baseline: Rival, others: list[Rival]) -> Table:
    lines = []
    for other in others:
        lines += [{"model": other.name, **line} for line in contrast.slices(ground, baseline, other)]
    tests = sum(line["mean"].error is not None for line in lines)
    adjusted = holm([line["mean"].p_value for line in lines])
    for line, p in zip(lines, adjusted, strict=True):
        mean: ClusterMean = line.pop("mean")
        low, high = mean.interval(0.05 / max(tests, 1))
        line |= {"rows": mean.rows, "difference": mean.value, "low": low, "high": high}
        line |= {"p_value": mean.p_value, "p_adjusted": p}
        if ground.clusters is not None:
            line["clusters"] = mean.clusters
    return _table(lines)


def _listed(names: list[str]) -> str:
    """The models of a title: two or three by name.

    >>> _listed(["old", "new"]), _listed(["a", "b", "c"]), _listed(["a", "b", "c", "d"])
    ('old and new', 'a, b and c', '4 models')
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) < 4 else f"{len(names)} models"


def _table(lines: list[dict[str, Any]]) -> Table:
    return {name: [line[name] for line in lines] for name in lines[0]}


def _notes(
    ground: Ground, rivals: list[Rival], model: Rival, impossible: list[int], whole: ClusterMean, floor: float
) -> list[str]:
    """What a reader must know before trusting a figure; ``whole`` is the difference that ``model`` makes."""
    notes = []
    if any(impossible):
        told = ", ".join(f"{one.name}: {count:,}" for one, count in zip(rivals, impossible, strict=True) if count)
        where = sorted({place for one in rivals for place in np.flatnonzero(np.isinf(one.costs)).tolist()})
        both = " Where both are infinite their difference is undefined." if sum(map(bool, impossible)) > 1 else ""
        notes.append(
            f"Some labels had probability exactly 0 ({told}; row{'s' * (len(where) > 1)} "
            f"{some(ground.rows[where].tolist())}), so that cross-entropy is infinite.{both} "
            f"Everything else is of probabilities raised to at least {floor_said(floor)}, in all models."
        )
    if whole.error is None and not contrast.same(rivals[0], model):
        notes.append(
            "All rows are in one group, so that nothing tells how groups differ: no interval and no p-value."
            if ground.clusters is not None and whole.clusters < 2
            else f"{model.name} and {rivals[0].name} differ by the same amount everywhere, so that nothing tells how "
            "rows differ: no interval."
        )
    elif whole.error is not None and whole.freedom < FEW - 1:
        of = "groups" if ground.clusters is not None else "rows"
        notes.append(
            f"The interval rests on {whole.clusters:,} {of}, which count as {whole.freedom + 1:.2g} equal ones: it is "
            "rough, the more so the more they differ."
        )
    if len(rivals) > 2:
        notes.append(
            f"{len(rivals) - 1} models were held against {rivals[0].name}: intervals of the differences hold together "
            "95 % of the time (Bonferroni), and p-values are adjusted by Holm's method."
        )
    if ground.slices:
        notes.append(
            "Intervals of the slices hold together 95 % of the time (Bonferroni), and their p-values are adjusted by "
            "Holm's method, over all slices and models."
        )
    return notes
