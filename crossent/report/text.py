"""A record in words: the headline and the key numbers with what they mean.

Sentences about chance are careful: what an interval that holds zero cannot show is never said to be so, nor
said not to be so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from crossent.record import Number, Record
from crossent.report import comparison, contest, digits, search
from crossent.report.label import clip, printable

_MEANINGS = {
    "cross_entropy": (
        "Cross-entropy",
        "Mean of −log of the probability given to the true label; also called log loss. 0 is perfect.",
    ),
    "cross_entropy_bits": ("Cross-entropy in bits", "The same, divided by log 2."),
    "cross_entropy_floored": (
        "Floored cross-entropy",
        "The same with every probability raised to at least the floor, so that no row is infinite.",
    ),
    "impossible_rows": ("Impossible rows", "Rows whose label had probability exactly 0."),
    "label_entropy": (
        "Label entropy",
        "What someone pays who knows only how often each label comes.",
    ),
    "label_entropy_bias": (
        "Bias of the label entropy",
        "By so much an entropy of frequencies falls short on average; its interval allows for that.",
    ),
    "information_gained": (
        "Information gained",
        "Label entropy minus cross-entropy: what the model knows beyond the frequencies.",
    ),
    "skill": (
        "Skill",
        "The share of the label entropy that the model knows: 0 % is no better than the frequencies.",
    ),
    "uncertainty": ("Uncertainty", "The label entropy in nats: what there is to know."),
    "discrimination": ("Discrimination", "What the model knows once its probabilities are calibrated."),
    "miscalibration": (
        "Miscalibration",
        "KL divergence of the model from its calibrated self: what calibration could still win. "
        "What a fit wins by chance is given back, so it can fall slightly below 0.",
    ),
    "truth_entropy": (
        "Entropy of the truth",
        "What rows cost under their own true distribution: no model can have a cross-entropy below it.",
    ),
    "kl_divergence": (
        "KL from the truth",
        "Cross-entropy less the entropy of the truth: what the model adds to what cannot be foretold.",
    ),
    "bits_per_byte": ("Bits per byte", "The whole loss in bits, divided by the length of the text in bytes."),
    "perplexity": (
        "Perplexity",
        "e to the cross-entropy: as uncertain as between so many equally probable answers.",
    ),
    "accuracy": ("Accuracy", "Rows whose most probable class is their label."),
    "top_3_accuracy": ("Top-3 accuracy", "Rows whose label is among the three most probable classes."),
    "top_5_accuracy": ("Top-5 accuracy", "Rows whose label is among the five most probable classes."),
    "brier": ("Brier score", "Mean squared distance of the probabilities from the label. 0 is perfect."),
    "ece": (
        "Calibration error (ECE)",
        "Secondary: mean distance of confidence from frequency in 15 bins. It can fall while the loss rises.",
    ),
    "smooth_ece": (
        "Smooth calibration error",
        "Secondary: the same by smoothing instead of bins (Błasiok and Nakkiran 2024).",
    ),
    "mae": ("Mean absolute error", "How far the predicted mean is off on average, in the target's own unit."),
    "rmse": ("Root mean squared error", "The same, large misses weighing more; in the target's own unit."),
    "training_cross_entropy": (
        "Training cross-entropy",
        "On rows that the networks learnt from, before calibration.",
    ),
    "validation_cross_entropy": (
        "Held-out cross-entropy",
        "By networks that had not seen the row; it chose when to stop and how to calibrate: likely a little too good.",
    ),
    "uncalibrated_cross_entropy": (
        "Uncalibrated cross-entropy",
        "On the same rows, had the calibration been left out.",
    ),
    "coverage": ("Held by intervals", "Test rows whose number lies in its interval, of which 90 % should."),
    "next_minute": (
        "The next minute",
        "What one more minute of training is expected to win; 0 where the held-out loss no longer falls.",
    ),
}

# Where a label is a number in a range, it counts as a fraction of it, and a fraction is never quite foretold.
_MEANINGS_IN_A_RANGE = {
    "cross_entropy": (
        "Cross-entropy",
        "Mean of −log of the probability, each label a fraction of the range; above 0 even for perfect forecasts.",
    ),
    "label_entropy": ("Label entropy", "What someone pays who knows only the labels' average."),
    "skill": (
        "Skill",
        "Information gained as a share of the label entropy; below 100 % even for perfect forecasts.",
    ),
    "information_gained": (
        "Information gained",
        "Label entropy minus cross-entropy: what the model knows beyond the average.",
    ),
}


def parts_in_bits(record: Record) -> str:
    """Write the decomposition as a sum, in bits; nothing where the record has none.

    >>> parts = {"uncertainty": 0.693, "discrimination": 0.25, "miscalibration": -0.01}
    >>> parts_in_bits(Record("evaluation", "", numbers={name: Number(x, "nats") for name, x in parts.items()}))
    '1.000 − 0.361 − 0.014 = 0.625'
    """
    names = ("uncertainty", "discrimination", "miscalibration")
    if not all(name in record.numbers for name in names):
        return ""
    known, gained, wasted = (record.numbers[name].to("bits").value for name in names)
    total = known - gained + wasted
    places = max(digits.decimals(total), 3)
    known, gained, wasted, total = (round(x, places) for x in (known, gained, wasted, total))
    terms = (
        ("", known),
        (" − " if gained >= 0 else " + ", abs(gained)),
        (" + " if wasted >= 0 else " − ", abs(wasted)),
    )
    return f"{''.join(sign + digits.spell(term, places) for sign, term in terms)} = {digits.spell(total, places)}"


class Line(NamedTuple):
    """One number of a record for a reader: what it is called, its value with interval, what it means."""

    label: str
    value: str
    explanation: str


def headline(record: Record) -> str:
    """Say in a few sentences what was found: the loss, what the model knows, what calibration could win.

    Args:
        record: any record, whole or not; a sentence is left out when its numbers are missing.

    >>> loss, low, high = 0.072, 0.045, 0.110
    >>> record = Record("fit", "digits", numbers={"cross_entropy": Number(loss, "nats", low, high, n=360)})
    >>> print(headline(record))
    On 360 test rows the model's cross-entropy is 0.072 nats (0.104 bits) per row; 95 % interval 0.045 to
    0.110.
    """
    if record.kind == "comparison":
        return comparison.headline(record)
    if record.kind == "losses":
        return contest.headline(record)
    sentences = (_loss(record), _knowledge(record), _calibration(record), _error(record))
    return " ".join(sentence for sentence in sentences if sentence)


def summary(record: Record) -> list[Line]:
    """Give every number of the record as a (label, value, explanation) row, in the order a reader wants them.

    >>> summary(Record("evaluation", "a test", numbers={"accuracy": Number(0.5, "share", n=4)}))
    [Line(label='Accuracy', value='50 %', explanation='Rows whose most probable class is their label.')]
    """
    if record.kind == "losses":
        return []  # its tables hold the same number of every loss
    # A number that this version has no words for goes last, under the name the record gives it.
    words = comparison.MEANINGS | _MEANINGS | search.MEANINGS
    known = [name for name in words if name in record.numbers]
    unknown = [name for name in record.numbers if name not in words]
    meanings = words | (_MEANINGS_IN_A_RANGE if record.facts.get("task") == "range" else {})
    lines = []
    for name in known + unknown:
        label, explanation = meanings.get(name, (printable(name).replace("_", " ").capitalize(), ""))
        lines.append(Line(label, digits.written(record.numbers[name]), explanation))
    return lines


def left(record: Record) -> list[Line]:
    """Where the remaining nats of a fit are, part by part.

    >>> table = {"part": ["noise"], "nats": [0.1], "low": [None], "high": [None], "meaning": ["Nobody gets below it."]}
    >>> left(Record("fit", "a test", tables={"left": table}))
    [Line(label='noise', value='0.100 nats', explanation='Nobody gets below it.')]
    """
    table = record.tables.get("left", {})
    columns = [table.get(name, []) for name in ("part", "nats", "low", "high", "meaning")]
    return [
        Line(clip(part, 40), digits.written(Number(nats, "nats", low, high)), printable(meaning))
        for part, nats, low, high, meaning in zip(*columns, strict=False)
    ]


def is_impossible(record: Record) -> bool:
    """Say whether some label had probability exactly 0, so that the cross-entropy is infinite."""
    loss = record.numbers.get("cross_entropy")
    rows = record.numbers.get("impossible_rows")
    return (loss is not None and loss.value == math.inf) or (rows is not None and rows.value > 0)


def measured_rows(record: Record) -> str:
    """Name the rows that were measured: "360 test rows", "1 row", "90 rows in 6 groups", "90,000 rows in about 9,120
    groups", or "the rows" when nobody counted them.
    """
    loss = record.numbers.get("cross_entropy")
    count = loss.n if loss is not None and loss.n is not None else record.facts.get("rows")
    split = printable(record.facts.get("split") or ("test" if record.kind == "fit" else ""))
    kind = "" if split in {"", "all"} else f"{split} "
    if not isinstance(count, int):
        return f"the {kind}rows"
    groups = record.facts.get("groups")
    about = record.facts.get("groups_estimated")
    together = f" in about {about:,} groups" if isinstance(about, int) else ""
    together = f" in {groups:,} {'group' if groups == 1 else 'groups'}" if isinstance(groups, int) else together
    return f"{count:,} {kind}{'row' if count == 1 else 'rows'}{together}"


def _loss(record: Record) -> str:
    loss = record.numbers.get("cross_entropy")
    if loss is None:
        return "This record holds no cross-entropy."
    if is_impossible(record):
        return _infinite_loss(record)
    if not math.isfinite(loss.value):
        return f"On {measured_rows(record)} the model's cross-entropy is undefined (not a number)."
    return f"On {measured_rows(record)} the model's cross-entropy is {_in_nats_and_bits(loss)}."


def _infinite_loss(record: Record) -> str:
    rows = record.numbers.get("impossible_rows")
    if rows is None or rows.value < 1:
        culprits = "some label had probability exactly 0"
    elif rows.value == 1:
        culprits = "to the label of 1 of them the model gave probability exactly 0"
    else:
        culprits = f"to the labels of {rows.value:,.0f} of them the model gave probability exactly 0"
    sentence = f"The model's cross-entropy on {measured_rows(record)} is infinite: {culprits}."
    floored = record.numbers.get("cross_entropy_floored")
    if floored is None or not math.isfinite(floored.value):
        return sentence
    floor = record.facts.get("floor")
    raised = f"at least {digits.spell(floor)}" if isinstance(floor, (int, float)) else "at least the floor"
    return f"{sentence} With every probability raised to {raised} it is {_in_nats_and_bits(floored)}."


def _in_nats_and_bits(loss: Number) -> str:
    between = digits.interval(loss)
    certainty = f"; 95 % interval {between}" if between else ""
    return f"{digits.value(loss)} ({digits.value(loss.to('bits'))}) per row{certainty}"


def _knowledge(record: Record) -> str:
    entropy = record.numbers.get("label_entropy")
    gain = record.numbers.get("information_gained")
    if entropy is None or gain is None or not math.isfinite(entropy.value + gain.value):
        return ""
    if entropy.value <= 0:
        return "All labels are the same, so there was nothing to know."
    holds = f"{digits.spell(entropy.value)} bits"
    # Part of a range's label entropy is left even by perfect forecasts, so it is not something to be known.
    if record.facts.get("task") == "range":
        known, opening = "saves", f"Knowing only the labels' average costs {holds};"
    else:
        known, opening = "knows", f"Labels alone hold {holds};"
    worse = gain.value <= 0 if gain.high is None else gain.high < 0
    if worse:
        return f"{opening} the model does worse than that, by {digits.spell(-gain.value)} bits."
    if gain.low is not None and gain.low <= 0:
        between = digits.interval(gain)
        known = "does better" if known == "saves" else "knows any of them"
        return f"{opening} that the model {known}, these rows cannot show (95 % interval {between} bits)."
    share = digits.percent(gain.value / entropy.value)
    places = digits.decimals(entropy.value)
    return f"{opening} the model {known} {digits.spell(gain.value, places)} of them ({share})."


def _calibration(record: Record) -> str:
    excess = record.numbers.get("miscalibration")
    if excess is None or not math.isfinite(excess.value):
        return ""
    if excess.low is None or excess.high is None:
        return f"Miscalibration is put at {digits.value(excess)}; without an interval, chance may explain it."
    between = digits.interval(excess)
    # No calibration moves a zero: with impossible rows the parts are those of the floored probabilities.
    opening = "Above the floor, calibration" if is_impossible(record) else "Calibration"
    if excess.low > 0:
        return f"{opening} could still win {digits.value(excess)} per row (95 % interval {between})."
    if excess.high < 0:
        return f"{opening} has nothing to win: it made the loss worse (95 % interval {between} nats)."
    return f"{opening} could win nothing that these rows can show (95 % interval {between} nats)."


def _error(record: Record) -> str:
    mae, rmse = record.numbers.get("mae"), record.numbers.get("rmse")
    if mae is None or record.facts.get("task") != "range":
        return ""
    low, high = record.facts.get("low"), record.facts.get("high")
    span = f", in a range of {low:g} to {high:g}" if low is not None and high is not None else ""
    both = f"; its root mean squared error (RMSE) is {digits.value(rmse)}" if rmse is not None else ""
    return f"The predicted mean is off by {digits.value(mae)} on average (MAE{span}){both}."
