"""Records built by hand, one for each kind of thing a report must be able to show."""

import math
import random

import pytest

from crossent.record import Curve, Number, Record


def _bits(nats, low, high, rows):
    return Number(nats, "nats", low, high, rows).to("bits")


def _numbers(loss, low, high, entropy, miscalibration, rows, **more):
    """The numbers every record has, consistent with one another; entropy in nats."""
    return {
        "cross_entropy": Number(loss, "nats", low, high, rows),
        "cross_entropy_bits": _bits(loss, low, high, rows),
        "label_entropy": Number(entropy / math.log(2), "bits", n=rows),
        "information_gained": _bits(entropy - loss, entropy - high, entropy - low, rows),
        "skill": Number(1 - loss / entropy, "share", 1 - high / entropy, 1 - low / entropy, rows),
        "uncertainty": Number(entropy, "nats", n=rows),
        "discrimination": Number(entropy - loss + miscalibration[0], "nats", n=rows),
        "miscalibration": Number(miscalibration[0], "nats", miscalibration[1], miscalibration[2], rows),
        **more,
    }


def _per_class(names, seed=0, dearest=0.4):
    chance = random.Random(seed)
    rows = [chance.randint(25, 45) for _ in names]
    return {
        "class": list(names),
        "rows": rows,
        "share": [count / sum(rows) for count in rows],
        "cross_entropy": [dearest * chance.random() ** 3 + 0.004 for _ in names],
        "mean_probability": [count / sum(rows) * chance.uniform(0.95, 1.05) for count in rows],
        "recall": [1 - 0.1 * chance.random() for _ in names],
        "precision": [1.0 if index % 3 == 0 else 1 - 0.1 * chance.random() for index in range(len(names))],
    }


def _costliest(names, rows, seed=0):
    chance = random.Random(seed)
    losses = sorted((0.4 + 4 * chance.random() for _ in range(rows)), reverse=True)
    pairs = [chance.sample(list(names), 2) for _ in losses]
    return {
        "row": [chance.randrange(360) for _ in losses],
        "label": [label for label, _ in pairs],
        "predicted": [predicted for _, predicted in pairs],
        "probability": [math.exp(-loss) for loss in losses],
        "cross_entropy": losses,
    }


def digits_fit():
    """A network of ten classes, trained, calibrated, tested: the main case."""
    names = [str(digit) for digit in range(10)]
    epochs = list(range(1, 61))
    training = [2.2 * math.exp(-epoch / 5) + 0.02 + 0.003 * math.sin(epoch) for epoch in epochs]
    validation = [2.1 * math.exp(-epoch / 5.5) + 0.065 + 0.0004 * epoch for epoch in epochs]
    return Record(
        kind="fit",
        title="digits.csv: digit",
        made="2026-03-14T09:26:53Z",
        numbers=_numbers(
            0.0721,
            0.0452,
            0.1101,
            math.log(10) - 0.001,
            (0.0012, -0.0041, 0.0069),
            360,
            accuracy=Number(0.9778, "share", 0.957, 0.989, 360),
            brier=Number(0.0341, "1", 0.022, 0.048, 360),
            validation_cross_entropy=Number(0.0668, "nats", 0.041, 0.098, 288),
            uncalibrated_cross_entropy=Number(0.0794, "nats", 0.044, 0.128, 360),
        ),
        tables={
            "per_class": _per_class(names),
            "costliest": _costliest(names, 12),
            "calibrators": {
                "name": ["none", "temperature", "vector", "isotonic"],
                "cross_entropy": [0.0731, 0.0668, 0.0672, 0.0811],
                "low": [0.0, -0.0121, -0.0119, -0.002],
                "high": [0.0, -0.0004, 0.0003, 0.018],
                "chosen": [False, True, False, False],
            },
        },
        curves={
            "training": Curve(epochs, training, "epoch", "cross-entropy (nats)"),
            "validation": Curve(epochs, validation, "epoch", "cross-entropy (nats)"),
            "reliability": Curve(
                [0.52, 0.71, 0.86, 0.95, 0.987, 0.997],
                [0.58, 0.67, 0.9, 0.967, 1.0, 1.0],
                "predicted",
                "observed",
                [0.37, 0.49, 0.74, 0.86, 0.94, 0.985],
                [0.77, 0.81, 0.965, 0.994, 1.0, 1.0],
                [19, 21, 30, 40, 60, 190],
            ),
        },
        facts={
            "task": "multi-class",
            "classes": names,
            "rows": 360,
            "source": "digits.csv",
            "split": "test",
            "calibrated_with": "temperature scaling, cross-fitted in 5 folds",
            "notes": [],
            "found": "The column 'digit' holds 10 different whole numbers: taken for classes.",
            "splits": {"train": 1149, "validation": 288, "test": 360},
            "epochs": 60,
            "best_epoch": 37,
            "stopped": "no better validation loss in 23 epochs",
            "calibration": "temperature",
            "seconds": 41.3,
            "seed": 0,
            "versions": {"crossent": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6"},
            "command": "crossent fit digits.csv --target digit --out runs/digits",
            "recipe": {
                "layers": [256, 256],
                "dropout": 0.1,
                "learning_rate": 0.002,
                "weight_decay": 0.01,
                "batch": 128,
                "loss": "cross_entropy",
                "label_smoothing": 0.0,
                "members": 4,
                "refit": False,
            },
        },
    )


def binary():
    """Someone's predictions of 0 and 1, badly calibrated, and these rows can tell."""
    predicted = [0.02, 0.07, 0.15, 0.24, 0.36, 0.48, 0.61, 0.74, 0.86, 0.96]
    observed = [0.08, 0.13, 0.22, 0.28, 0.38, 0.47, 0.55, 0.63, 0.76, 0.87]
    return Record(
        kind="evaluation",
        title="churn predictions",
        made="2026-03-14T09:26:53Z",
        numbers=_numbers(
            0.4313,
            0.4201,
            0.4427,
            0.6611,
            (0.0187, 0.0141, 0.0239),
            12000,
            accuracy=Number(0.8011, "share", 0.794, 0.808, 12000),
            brier=Number(0.139, "1", 0.135, 0.143, 12000),
        ),
        tables={
            "per_class": {
                "class": ["stays", "leaves"],
                "rows": [7512, 4488],
                "share": [0.626, 0.374],
                "cross_entropy": [0.3113, 0.6322],
                "mean_probability": [0.6311, 0.3689],
                "recall": [0.871, 0.684],
                "precision": [0.822, 0.76],
            },
            "slices": {
                "column": ["city", "city", "plan", "plan"],
                "slice": ["Ghent", "[red]Łódź", "monthly", "yearly"],
                "rows": [5000, 7000, 9000, 3000],
                "share": [0.417, 0.583, 0.75, 0.25],
                "share_of_loss": [0.55, 0.45, 0.91, None],
                "cross_entropy": [0.5692, 0.3328, 0.5234, math.inf],
                "low": [0.55, 0.31, 0.51, None],
                "high": [0.59, 0.35, 0.54, None],
                "label_entropy": [0.9, 0.8, 0.9, 0.1],
                "information_gained": [0.08, 0.32, 0.15, -math.inf],
                "skill": [0.087, 0.4, 0.161, None],
                "accuracy": [0.72, 0.86, 0.76, 0.98],
                "brier": [0.18, 0.11, 0.17, 0.03],
                "impossible_rows": [0, 0, 0, 2],
            },
            "costliest": _costliest(["stays", "leaves"], 8) | {"suspect": [True, False, True, *[False] * 5]},
        },
        curves={
            "reliability": Curve(
                predicted,
                observed,
                "predicted",
                "observed",
                [value - 0.025 for value in observed],
                [value + 0.025 for value in observed],
                [2600, 1900, 1500, 1200, 1000, 900, 800, 800, 700, 600],
            ),
            "recalibrated": Curve([0.02, 0.3, 0.96], [0.08, 0.33, 0.87], "predicted", "observed"),
            "reliability_null": Curve(
                [0.02, 0.3, 0.96], [0.02, 0.3, 0.96], "predicted", "observed", [0.01, 0.27, 0.93], [0.04, 0.34, 0.99]
            ),
            "concentration": Curve([0.0, 0.04, 0.08, 1.0], [0.0, 0.3, 0.42, 1.0], "share of rows", "share of the loss"),
        },
        facts={
            "task": "binary",
            "classes": ["stays", "leaves"],
            "rows": 12000,
            "source": "predictions.parquet",
            "calibrated_with": "isotonic regression, cross-fitted in 5 folds",
            "notes": [],
        },
    )


def in_a_range():
    """A fit of numbers between 0 and 50."""
    labels = [12.5, 49.0, 3.25, 30.0]
    losses = [3.11, 2.72, 2.05, 1.9]
    epochs = [1, 2, 3, 4, 5]
    return Record(
        kind="fit",
        title="housing.csv: price",
        made="2026-03-14T09:26:53Z",
        numbers=_numbers(
            0.5611,
            0.5502,
            0.5733,
            0.6689,
            (-0.0003, -0.0011, 0.0006),
            4128,
            brier=Number(0.011, "1", 0.0101, 0.0119, 4128),
            mae=Number(2.713, "target", 2.61, 2.82, 4128),
            rmse=Number(4.09, "target", 3.92, 4.27, 4128),
        ),
        tables={
            "costliest": {
                "row": [7, 1200, 31, 6],
                "label": labels,
                "predicted": [31.2, 18.125, 22.0, 5.5],
                "cross_entropy": losses,
            }
        },
        curves={
            "training": Curve(epochs, [0.66, 0.6, 0.57, 0.56, 0.55], "epoch", "cross-entropy (nats)"),
            "validation": Curve(epochs, [0.65, 0.6, 0.58, 0.57, 0.571], "epoch", "cross-entropy (nats)"),
            "reliability": Curve(
                [0.1, 0.3, 0.5, 0.8],
                [0.11, 0.29, 0.5, 0.81],
                "predicted",
                "observed",
                [0.09, 0.27, 0.48, 0.78],
                [0.13, 0.31, 0.52, 0.84],
                [1032] * 4,
            ),
        },
        facts={
            "task": "range",
            "low": 0,
            "high": 50,
            "rows": 4128,
            "source": "housing.csv",
            "split": "test",
            "found": "The column 'price' holds 3,842 different numbers from 0.15 to 50: taken for a number in a range.",
            "splits": {"train": 13209, "validation": 3303, "test": 4128},
            "epochs": 5,
            "best_epoch": 4,
            "stopped": "all epochs done",
            "calibration": "none",
            "seconds": 12.0,
            "seed": 1,
        },
    )


def impossible():
    """Three labels had probability exactly 0: the loss is infinite, and so is what hangs on it."""
    record = digits_fit()
    loss = math.inf
    numbers = record.numbers | {
        "cross_entropy": Number(loss, "nats", n=360),
        "cross_entropy_bits": Number(loss, "bits", n=360),
        "cross_entropy_floored": Number(0.213, "nats", 0.121, 0.354, 360),
        "impossible_rows": Number(3, "rows", n=360),
        "information_gained": Number(-loss, "bits", n=360),
        "skill": Number(-loss, "share", n=360),
        # The parts are those of the floored cross-entropy: no calibration moves a zero.
        "discrimination": Number(record["uncertainty"].value - 0.213 + 0.02, "nats", n=360),
        "miscalibration": Number(0.02, "nats", -0.01, 0.05, 360),
    }
    del numbers["validation_cross_entropy"], numbers["uncalibrated_cross_entropy"]
    dear = dict(record.tables["costliest"])
    dear["probability"] = [0.0] * 3 + dear["probability"][3:]
    dear["cross_entropy"] = [loss] * 3 + dear["cross_entropy"][3:]
    by_class = dict(record.tables["per_class"])
    by_class["cross_entropy"] = [loss, *by_class["cross_entropy"][1:8], loss, math.nan]
    by_class["rows"] = [*by_class["rows"][:9], 0]
    by_class["recall"] = [*by_class["recall"][:9], math.nan]
    return Record(
        "evaluation",
        "predictions of a rival",
        record.made,
        numbers,
        {"per_class": by_class, "costliest": dear},
        {"reliability": record.curves["reliability"]},
        {
            "task": "multi-class",
            "classes": record.facts["classes"],
            "rows": 360,
            "source": "rival.npz",
            "floor": 1e-6,
            "notes": [
                "3 rows gave probability exactly 0 to their label; no honest forecast is that sure.",
                "Probabilities of 11 rows summed to 1 only within 2e-3 and were rescaled.",
            ],
        },
    )


def hundred_classes():
    """More classes than a page shows, and a model that these rows cannot tell from the frequencies."""
    names = [f"species {index:03d}" for index in range(100)]
    return Record(
        "evaluation",
        "a hundred species",
        "2026-03-14T09:26:53Z",
        _numbers(4.58, 4.49, 4.67, 4.595, (0.41, 0.3, 0.52), 900, accuracy=Number(0.012, "share", 0.006, 0.022, 900)),
        {"per_class": _per_class(names, 5, 5.0), "costliest": _costliest(names, 30)},
        {
            "reliability": Curve(
                [0.011, 0.013, 0.014],
                [0.012, 0.011, 0.013],
                "predicted",
                "observed",
                [0.006, 0.005, 0.008],
                [0.02, 0.019, 0.021],
                [300] * 3,
            )
        },
        {"task": "multi-class", "classes": names, "rows": 900, "source": "species.csv"},
    )


def hostile():
    """Names that attack a page, a picture, a terminal or a narrow screen."""
    names = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=console.error(1)>',
        "[bold red]rich[/]",
        "$\\frac{1}{2}$",
        "日本語のとても長いクラスの名前です、どこまでも続きます",
        "نص عربي",
        "\x1b[31mred\x07\x00",
        "😀👩‍👩‍👧",
        '#040404 url(#p) id="x"',
        "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 4,
        "{{ 7 * 7 }}",
        "\ud800",
    ]
    record = digits_fit()
    facts = record.facts | {
        "classes": names,
        "source": "/data/" + "a-very-long-folder-name-without-any-space/" * 6 + "<b>file</b>.csv",
        "notes": ["A note about <script>alert(2)</script> & co.", "word" * 60],
        "command": "crossent fit " + "x" * 300,
        "found": "The column '<i>' holds [red]text[/red].",
    }
    return Record(
        "fit",
        "<script>alert(0)</script> & " + "Wort" * 30,
        record.made,
        record.numbers,
        {"per_class": _per_class(names), "costliest": _costliest(names, 9)},
        record.curves,
        facts,
    )


def one_row():
    """As little as a record can hold and still be a measurement."""
    return Record(
        "evaluation",
        "one row",
        "2026-03-14T09:26:53Z",
        {
            "cross_entropy": Number(0.5, "nats", n=1),
            "label_entropy": Number(0.0, "bits", n=1),
            "information_gained": Number(-0.72, "bits", n=1),
            "miscalibration": Number(math.nan, "nats"),
        },
        {"per_class": {"class": ["a"], "cross_entropy": [0.5]}},
        {
            "reliability": Curve([0.6], [1.0], "predicted", "observed"),
            "training": Curve([1], [0.7], "epoch", "nats"),
            "validation": Curve([1], [math.inf], "epoch", "nats"),
        },
        {"task": "binary"},
    )


def empty():
    """Nothing at all: a report of it is short, and no error."""
    return Record("evaluation", "")


CASES = {
    case.__name__: case
    for case in (digits_fit, binary, in_a_range, impossible, hundred_classes, hostile, one_row, empty)
}


@pytest.fixture(params=CASES)
def record(request):
    """Each of the records in turn."""
    return CASES[request.param]()


@pytest.fixture
def case():
    """One record by its name."""
    return lambda name: CASES[name]()
