"""Cross-entropy for PyTorch: compute it, measure it, minimise it, report it.

    compute    cross_entropy, binary_cross_entropy_with_logits, linear_cross_entropy, kl_divergence, entropy, …
    measure    evaluate: what a model's probabilities are worth
    minimise   fit: train, calibrate and test a network on a table; tune: search for its recipe
    parallel   cross-entropies and distillation over many machines, and what a mean over them divides by
    report     report.write: one page a person looks at, drawn from a record

Names are loaded on first use: a program that only draws reports never imports torch, and one that only computes
losses never imports what the command line needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossent.compute import BCELoss as BCELoss
    from crossent.compute import BCEWithLogitsLoss as BCEWithLogitsLoss
    from crossent.compute import ContinuousBernoulli as ContinuousBernoulli
    from crossent.compute import CrossEntropyLoss as CrossEntropyLoss
    from crossent.compute import Fraction as Fraction
    from crossent.compute import HLGauss as HLGauss
    from crossent.compute import LinearCrossEntropyLoss as LinearCrossEntropyLoss
    from crossent.compute import Link as Link
    from crossent.compute import Ordinal as Ordinal
    from crossent.compute import Target as Target
    from crossent.compute import TwoHot as TwoHot
    from crossent.compute import binary_cross_entropy as binary_cross_entropy
    from crossent.compute import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
    from crossent.compute import cross_entropy as cross_entropy
    from crossent.compute import cross_entropy_between as cross_entropy_between
    from crossent.compute import distillation as distillation
    from crossent.compute import entropy as entropy
    from crossent.compute import information_gain as information_gain
    from crossent.compute import js_divergence as js_divergence
    from crossent.compute import kl_divergence as kl_divergence
    from crossent.compute import linear_cross_entropy as linear_cross_entropy
    from crossent.compute import linear_distillation as linear_distillation
    from crossent.compute import linear_row_numbers as linear_row_numbers
    from crossent.compute import mutual_information as mutual_information
    from crossent.compute import renyi_divergence as renyi_divergence
    from crossent.compute import renyi_entropy as renyi_entropy
    from crossent.compute import row_numbers as row_numbers
    from crossent.compute import sparse as sparse
    from crossent.compute.head import LazyLogits as LazyLogits
    from crossent.compute.head import Materialised as Materialised
    from crossent.compute.head import eager_head as eager_head
    from crossent.compute.head import lazy_head as lazy_head
    from crossent.measure import Calibrator as Calibrator
    from crossent.measure import calibrate as calibrate
    from crossent.measure import compare as compare
    from crossent.measure import evaluate as evaluate
    from crossent.measure import undo_shift as undo_shift
    from crossent.minimise import Run as Run
    from crossent.minimise import fit as fit
    from crossent.minimise import load as load
    from crossent.minimise.contest.contest import compare_losses as compare_losses
    from crossent.minimise.estimators import BoundedRegressor as BoundedRegressor
    from crossent.minimise.estimators import CrossEntropyClassifier as CrossEntropyClassifier
    from crossent.minimise.tune.tune import tune as tune

__version__ = "0.1.0"

_HOME = {
    "BCELoss": "crossent.compute",
    "BCEWithLogitsLoss": "crossent.compute",
    "ContinuousBernoulli": "crossent.compute",
    "CrossEntropyLoss": "crossent.compute",
    "Fraction": "crossent.compute",
    "HLGauss": "crossent.compute",
    "LinearCrossEntropyLoss": "crossent.compute",
    "LazyLogits": "crossent.compute.head",
    "Link": "crossent.compute",
    "Materialised": "crossent.compute.head",
    "Ordinal": "crossent.compute",
    "Target": "crossent.compute",
    "TwoHot": "crossent.compute",
    "binary_cross_entropy": "crossent.compute",
    "binary_cross_entropy_with_logits": "crossent.compute",
    "cross_entropy": "crossent.compute",
    "cross_entropy_between": "crossent.compute",
    "distillation": "crossent.compute",
    "eager_head": "crossent.compute.head",
    "entropy": "crossent.compute",
    "information_gain": "crossent.compute",
    "js_divergence": "crossent.compute",
    "kl_divergence": "crossent.compute",
    "lazy_head": "crossent.compute.head",
    "linear_cross_entropy": "crossent.compute",
    "linear_distillation": "crossent.compute",
    "linear_row_numbers": "crossent.compute",
    "mutual_information": "crossent.compute",
    "renyi_divergence": "crossent.compute",
    "renyi_entropy": "crossent.compute",
    "row_numbers": "crossent.compute",
    "sparse": "crossent.compute",
    "Calibrator": "crossent.measure",
    "calibrate": "crossent.measure",
    "compare": "crossent.measure",
    "evaluate": "crossent.measure",
    "undo_shift": "crossent.measure",
    "Run": "crossent.minimise",
    "fit": "crossent.minimise",
    "load": "crossent.minimise",
    "compare_losses": "crossent.minimise.contest.contest",
    "BoundedRegressor": "crossent.minimise.estimators",
    "CrossEntropyClassifier": "crossent.minimise.estimators",
    "tune": "crossent.minimise.tune.tune",
    "DataError": "crossent.errors",
    "MissingExtra": "crossent.errors",
    "Record": "crossent.record",
    "compute": "crossent",
    "measure": "crossent",
    "minimise": "crossent",
    "parallel": "crossent",
    "report": "crossent",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"crossent has no {name!r}; it has {', '.join(__all__)}")
    home = _HOME[name]
    found = (
        importlib.import_module(f"crossent.{name}")
        if home == "crossent"
        else getattr(importlib.import_module(home), name)
    )
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
