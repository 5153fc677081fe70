"""Who is compared by benchmarks/minimise.py: each learns from rows and says what it believes of others.

A peer is a function of the rows to learn from, the features of the rows to be tested, and what the set is about; it
gives probabilities (n, columns), as the library itself says them. All are used as their makers recommend, with seed 0,
and nothing is chosen by hand for a set:

logistic        scikit-learn's LogisticRegression behind skrub's ``tabular_pipeline``: words one-hot, missing numbers
                imputed and marked, all squashed to one scale
hgb             scikit-learn's HistGradientBoosting, at most 1000 trees, stopped by its own rule on held-out rows
xgboost         at most 1000 trees, the best number by 50 rounds of patience on held-out rows
catboost        likewise, which are its own default number and its own default patience
realmlp         pytabkit's RealMLP_TD as it comes: smoothed labels, the epoch with the least classification error
realmlp-ce      RealMLP_TD as its makers advise for log loss: no smoothing, the epoch with the least cross-entropy
                (classes only)
…-5             five of it, each stopped on a fifth of the rows that the others learned from; the mean of probabilities
lenet           two convolutions and two linear layers in plain torch (images only)
crossent        ``crossent.fit`` with its defaults

Held-out rows are a fifth of those to learn from, stratified, the same for all, and not learned from afterwards. Words
are categories to everything but logistic regression. Of images all but crossent and lenet get a column for each pixel.
A number in a range is learned as a coin that shows it: logistic regression and HistGradientBoosting take each row
twice, with the weights 1 − y and y; XGBoost (binary:logistic) and CatBoost (CrossEntropy) take fractions as they are;
RealMLP knows no such loss, regresses, and its answer is clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from minimise_sets import Rows, Set
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

ROUNDS, PATIENCE = 1000, 50
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class About:
    """What a peer may know beside the rows; the labels ``came`` only ``crossent.fit``, which tests by itself."""

    set: Set
    came: NDArray[Any]
    threads: int = 1


def two_columns(p: NDArray[Any]) -> Probabilities:
    """Write the probability of the second of two as both."""
    p = np.asarray(p, np.float64)
    return np.stack([1 - p, p], axis=1)


def doubled(known: Rows) -> tuple[Any, NDArray[np.int64], NDArray[np.float64] | None]:
    """Features, classes and weights. A row of a range comes twice, as a 0 and as a 1, where its weight is not 0."""
    if not known.in_range:
        return known.x, known.y, None
    at = np.tile(np.arange(len(known.y)), 2)
    y, weight = np.repeat([0, 1], len(known.y)), np.concatenate([1 - known.y, known.y])
    counts = weight > 0
    return known.take(at[counts]).x, y[counts], weight[counts]


def in_place(p: NDArray[Any], came: NDArray[Any], columns: int) -> Probabilities:
    """Put the columns of the classes that came in training where they belong; the others were given no chance."""
    full = np.zeros((len(p), columns))
    full[:, np.asarray(came, np.int64)] = p
    return full


def columns_of_pixels(x: Any) -> pd.DataFrame:
    """A table as it is; of images a column for each pixel, as if their order were not known."""
    return x if isinstance(x, pd.DataFrame) else pd.DataFrame(x.reshape(len(x), -1)).add_prefix("pixel_")


def categorical(table: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Take columns of words for categories, those of the rows known; a word never seen is missing."""
    words = {name: known[name].dropna().unique() for name in known if not pd.api.types.is_numeric_dtype(known[name])}
    seen = {name: table[name].where(table[name].isin(there)) for name, there in words.items()}
    table = table.copy()
    for name, there in words.items():
        table[name] = pd.Categorical(seen[name], categories=there)
    return table


def logistic(known: Rows, new: Any, about: About) -> Probabilities:
    from sklearn.linear_model import LogisticRegression
    from skrub import tabular_pipeline

    model = LogisticRegression(max_iter=1000)
    x, y, weight = doubled(known)
    if isinstance(x, pd.DataFrame):
        pipeline = tabular_pipeline(model, n_jobs=about.threads)
        pipeline.fit(x, y, logisticregression__sample_weight=weight)
        return in_place(pipeline.predict_proba(new), pipeline.classes_, about.set.columns)
    model.fit(x.reshape(len(x), -1), y)
    return in_place(model.predict_proba(new.reshape(len(new), -1)), model.classes_, about.set.columns)


def hgb(known: Rows, held_out: Rows, new: Any, about: About) -> Probabilities:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=ROUNDS, early_stopping=True, random_state=0)
    x, y, weight = doubled(known)
    x_val, y_val, weight_val = doubled(held_out)
    model.fit(x, y, weight, X_val=x_val, y_val=y_val, sample_weight_val=weight_val)
    return in_place(model.predict_proba(new), model.classes_, about.set.columns)


def xgboost(known: Rows, held_out: Rows, new: Any, about: About) -> Probabilities:
    from xgboost import XGBClassifier, XGBRegressor

    kind = XGBRegressor if known.in_range else XGBClassifier
    objective = {"objective": "binary:logistic", "eval_metric": "logloss"} if known.in_range else {}
    model = kind(
        n_estimators=ROUNDS, early_stopping_rounds=PATIENCE, enable_categorical=True, random_state=0,
        n_jobs=about.threads, **objective,
    )  # fmt: skip
    model.fit(known.x, known.y, eval_set=[(held_out.x, held_out.y)], verbose=False)
    return two_columns(model.predict(new)) if known.in_range else np.asarray(model.predict_proba(new), np.float64)


def catboost(known: Rows, held_out: Rows, new: Any, about: About) -> Probabilities:
    from catboost import CatBoost, CatBoostClassifier, Pool

    words = list(known.x.select_dtypes("category"))
    settings: dict[str, Any] = {
        "iterations": ROUNDS, "early_stopping_rounds": PATIENCE, "random_seed": 0, "thread_count": about.threads,
        "allow_writing_files": False, "verbose": False,
    }  # fmt: skip

    def pool(x: pd.DataFrame, y: Any = None) -> Any:
        x = x.copy()
        for name in words:
            x[name] = x[name].cat.add_categories("missing").fillna("missing").astype(str)
        return Pool(x, y, cat_features=words)

    model = (
        CatBoost({**settings, "loss_function": "CrossEntropy"}) if known.in_range else CatBoostClassifier(**settings)
    )
    model.fit(pool(known.x, known.y), eval_set=pool(held_out.x, held_out.y))
    return np.asarray(model.predict(pool(new), prediction_type="Probability"), np.float64)


def realmlp(known: Rows, held_out: Rows, new: Any, about: About, **settings: Any) -> Probabilities:
    from pytabkit import RealMLP_TD_Classifier, RealMLP_TD_Regressor

    kind = RealMLP_TD_Regressor if known.in_range else RealMLP_TD_Classifier
    model = kind(device="cpu", random_state=0, n_threads=about.threads, **({} if known.in_range else settings))
    words = list(known.x.select_dtypes("category"))
    fill = known.x.drop(columns=words).median()  # it takes no missing number
    gaps = [name for name in fill.index if known.x[name].isna().any()]

    def whole(x: pd.DataFrame) -> pd.DataFrame:
        marked = pd.DataFrame({f"{name} is missing": x[name].isna().astype(np.float64) for name in gaps}, index=x.index)
        return pd.concat([x.fillna(fill.to_dict()), marked], axis=1)

    model.fit(whole(known.x), known.y, whole(held_out.x), held_out.y, cat_col_names=words)
    if known.in_range:
        return two_columns(np.clip(np.asarray(model.predict(whole(new)), np.float64).ravel(), 0, 1))
    return np.asarray(model.predict_proba(whole(new)), np.float64)


def realmlp_ce(known: Rows, held_out: Rows, new: Any, about: About) -> Probabilities:
    return realmlp(known, held_out, new, about, val_metric_name="cross_entropy", use_ls=False)


def lenet(known: Rows, new: Any, about: About, epochs: int = 15) -> Probabilities:
    """90,460 weights, flips left to right, one cycle of the learning rate, AdamW; nothing is held out."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(about.threads)
    network = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 80), nn.ReLU(), nn.Linear(80, about.set.columns),
    )  # fmt: skip
    x, y, batch = torch.from_numpy(known.x), torch.from_numpy(known.y), 128
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs=epochs, steps_per_epoch=steps)
    for _ in range(epochs):
        for at in torch.randperm(len(x)).split(batch):
            pixels = x[at]
            flipped = torch.rand(len(at)) < 0.5
            pixels[flipped] = pixels[flipped].flip(-1)
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(pixels), y[at]).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        z = torch.cat([network(part) for part in torch.from_numpy(new).split(1000)])
    return z.double().softmax(1).numpy()


def fitted(known: Rows, new: Any, about: About, **choices: Any) -> Any:
    """Give the run of ``crossent.fit``, with its defaults but for what is chosen; of ``crossent.tune`` with trials."""
    import torch

    import crossent

    torch.set_num_threads(about.threads)
    here = about.set
    if here.limits is None:
        y, came = (np.array(here.classes)[labels] for labels in (known.y, about.came))
        kind: dict[str, Any] = {"kind": "classes"}
    else:
        low, high = here.limits
        y, came = (low + labels * (high - low) for labels in (known.y, about.came))
        kind = {"kind": "range", "limits": here.limits}
    asked = {"test": (new, came), "seed": 0, **kind, **choices}
    return crossent.tune(known.x, y, **asked).run if "trials" in choices else crossent.fit(known.x, y, **asked)


def said_by(run: Any, new: Any, here: Set) -> Probabilities:
    """Give what a run says of rows, with the columns of the set."""
    p = np.asarray(run.predict_proba(new), np.float64)
    return p if here.limits else in_place(p, [here.classes.index(name) for name in run.classes], here.columns)


def of_crossent(known: Rows, new: Any, about: About) -> Probabilities:
    return said_by(fitted(known, new, about), new, about.set)


Stopped = Callable[[Rows, Rows, Any, About], Probabilities]
Whole = Callable[[Rows, Any, About], Probabilities]


def prepared(stopped: Stopped, known: Rows, new: Any, about: About, parts: Any) -> Probabilities:
    """The mean of what the peer says when stopped on each part in turn, having learned from the other rows."""
    seen, asked = columns_of_pixels(known.x), columns_of_pixels(new)
    table, fresh = categorical(seen, seen), categorical(asked, seen)
    rows = Rows(table, known.y)
    said = [stopped(rows.take(learn), rows.take(held_out), fresh, about) for learn, held_out in parts]
    return np.mean(said, axis=0)


def once(stopped: Stopped) -> Whole:
    """Stop on a fifth of the rows."""

    def peer(known: Rows, new: Any, about: About) -> Probabilities:
        part = train_test_split(
            np.arange(len(known.y)), test_size=0.2, random_state=0, stratify=None if known.in_range else known.y
        )
        return prepared(stopped, known, new, about, [part])

    return peer


def five(stopped: Stopped) -> Whole:
    """Stop five models, each on another fifth of the rows."""

    def peer(known: Rows, new: Any, about: About) -> Probabilities:
        folds = (KFold if known.in_range else StratifiedKFold)(5, shuffle=True, random_state=0)
        return prepared(stopped, known, new, about, folds.split(known.x, known.y))

    return peer


@dataclass(frozen=True)
class Peer:
    """A peer, and the packages whose versions decide what it says."""

    learn: Whole
    packages: tuple[str, ...]
    tables: bool = True
    ranges: bool = True
    images: bool = False

    def takes(self, here: Set) -> bool:
        """Whether this peer is for sets of this kind."""
        return self.images if here.rows.x.ndim > 2 else self.tables and (self.ranges or here.limits is None)


PEERS: dict[str, Peer] = {
    "crossent": Peer(of_crossent, ("crossent", "torch", "skrub"), images=True),
    "logistic": Peer(logistic, ("scikit-learn", "skrub"), images=True),
    "hgb": Peer(once(hgb), ("scikit-learn",), images=True),
    "xgboost": Peer(once(xgboost), ("xgboost",), images=True),
    "catboost": Peer(once(catboost), ("catboost",), images=True),
    "realmlp": Peer(once(realmlp), ("pytabkit", "torch"), images=True),
    "realmlp-ce": Peer(once(realmlp_ce), ("pytabkit", "torch"), ranges=False, images=True),
    "hgb-5": Peer(five(hgb), ("scikit-learn",)),
    "xgboost-5": Peer(five(xgboost), ("xgboost",)),
    "catboost-5": Peer(five(catboost), ("catboost",)),
    "realmlp-ce-5": Peer(five(realmlp_ce), ("pytabkit", "torch"), ranges=False),
    "lenet": Peer(lenet, ("torch",), tables=False, images=True),
}
