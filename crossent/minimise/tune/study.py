"""A search that several processes share and none can lose: Optuna's study in a file.

Optuna keeps the trials (``JournalStorage``: lines that are only ever added, so that a killed process leaves whole ones
behind), says what is to be tried next (TPE, Bergstra et al. 2011; Watanabe 2023), which trial is not worth finishing
(Wilcoxon's signed-rank test, in pairs against the best so far), and when searching on would fit the noise (Makarova et
al. 2022). What is here is the rest: what belongs to a study, and trials that a killed process left running.

**Which trial is what.** The settings of a trial depend on the seed, on its place in the search and on what has been
found before, and on nothing else. So one process with one seed makes the same trials again, and so does one that was
killed and resumed: a trial that was lost is run again in its old place, and the number it had is left behind.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shlex
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, require
from crossent.files import refusal
from crossent.measure.intervals.cluster import cluster_mean
from crossent.measure.sums.hashing import stream
from crossent.minimise.recipe import Recipe
from crossent.minimise.tune.space import Space
from crossent.record import Number, Table

optuna = require("optuna", "tune", "tuning")
journal = require("optuna.storages.journal", "tune", "tuning")
terminator = require("optuna.terminator", "tune", "tuning")
importance = require("optuna.importance", "tune", "tuning")
_Sampler: Any = optuna.samplers.BaseSampler
State: Any = optuna.trial.TrialState
StorageError: Any = optuna.exceptions.StorageInternalError

NAME = "crossent tune"
START = "the recipe to start from"
"""What stands for the settings of the first trial."""
SURE = 0.02
"""Below this p a trial is pruned. Blocks of one fold share a network, whose luck the test does not see; and it may be
held four times in a trial. Both ask for less than the usual 0.1."""
SILENT = 600.0
"""Seconds without a sign of life after which a trial of another machine is taken for lost."""
LEAST_TRIALS = 20
"""Trials before the terminator is asked, as its authors do."""
LEAST_TO_WEIGH = 8
"""Trials judged on all folds before settings are weighed against each other."""
SHUFFLES = 99
"""How often losses are dealt out to trials anew, to see what importances come of chance."""


class Study:
    """Trials, and what is known from them.

    Attributes of a trial (Optuna's ``user_attrs``): ``index``, its place in the search; ``state`` "complete", "pruned",
    "failed", "stopped" or "lost"; ``settings`` as on the command line; ``sentence``; ``seconds``; ``folds`` done;
    ``low`` and ``high`` of the loss; ``again``, the number of the lost trial that it is; ``process`` and ``alive``.
    """

    def __init__(
        self, storage: str | os.PathLike[str] | None, belongs: dict[str, str], seed: int, first: dict[str, Any]
    ) -> None:
        """Open the study in a storage, or begin it there.

        Args:
            storage: a file, .db or .sqlite for SQLite, any other for a journal; the URL of a database; None for memory.
            belongs: what a study is of, each part with a digest of it; one that holds others is refused.
            seed: of the settings that are tried.
            first: what Optuna would call the recipe of the first trial, as far as it lies in the space.
        """
        self.seed = seed
        self.process = f"{platform.node()} {os.getpid()}"
        self.said_alive = time.monotonic()
        with _quiet():
            try:
                self.optuna = optuna.create_study(
                    storage=_storage(storage),
                    study_name=NAME,
                    sampler=_in_place(seed, first),
                    pruner=optuna.pruners.WilcoxonPruner(p_threshold=SURE),
                    load_if_exists=True,
                )
            except DataError:
                raise
            except OSError as trouble:
                raise DataError(refusal(trouble, str(storage))) from trouble
            except Exception as trouble:  # JSON, SQLAlchemy and a driver each have their own way to say it
                raise DataError(
                    f"the storage {str(storage)!r} cannot be opened: {' '.join(str(trouble).split())[:300]}"
                ) from trouble
        known = self.optuna.user_attrs.get("belongs")
        if known is None:
            self.optuna.set_user_attr("belongs", belongs)
        elif other := [part for part in belongs if known.get(part) != belongs[part]]:
            raise DataError(
                f"the study in {str(storage)!r} is of other things than this one: its {' and '.join(other)} "
                f"{'differ' if len(other) > 1 else 'differs'}. Losses would not be comparable. Name another --storage, "
                "or go on with what it was begun with."
            )

    # What comes next

    def mend(self) -> None:
        """Put trials whose process is gone back into the search; once each, for a trial may be what kills it."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(State.RUNNING,)):
            if not self._lost(trial):
                continue
            try:
                self.optuna.tell(trial.number, state=State.FAIL)
            except (ValueError, RuntimeError):
                continue  # another process was quicker
            if "again" in trial.user_attrs:
                continue
            again = {"again": trial.number, "index": _index(self.optuna, trial.number, trial.user_attrs)}
            with _quiet():
                self.optuna.enqueue_trial(dict(trial.params), user_attrs=again)

    def begin(self) -> Any:
        """The next trial: one that was lost, or a new one."""
        with _quiet():
            trial = self.optuna.ask()
        trial.set_user_attr("process", self.process)
        trial.set_user_attr("index", _index(self.optuna, trial.number, trial.user_attrs))
        self.alive(trial, at_once=True)
        return trial

    def recipe(self, trial: Any, space: Space, base: Recipe) -> Recipe:
        """What a trial tries; the one in the first place is ``base``. Written down before it can fail."""
        with _quiet():
            drawn = space.drawn(trial, base, first=trial.user_attrs["index"] == 0)
        written = " ".join(f"--set {shlex.quote(setting)}" for setting in drawn)
        trial.set_user_attr("settings", written or START)
        return base.parsed(drawn)

    def alive(self, trial: Any, at_once: bool = False) -> None:
        """Let others know, twice a minute, that a trial is being worked on."""
        if at_once or time.monotonic() - self.said_alive > 30:
            self.said_alive = time.monotonic()
            trial.set_user_attr("alive", time.time())

    def prunes(self, trial: Any, losses: dict[int, float]) -> bool:
        """Write down the losses of blocks of rows, and say whether the trial is surely worse than the best."""
        with _quiet():
            for block, loss in losses.items():
                trial.report(loss, block)
            worse = trial.should_prune()
        best = self.best
        if not worse or best is None:
            return False
        # The test is of ranks. That the mean is worse as well makes sure that no pruned trial is ever the best.
        return self.gap(trial, best).value > 0

    def end(self, trial: Any, state: str, value: float | None = None, **known: Any) -> None:
        """Write down how a trial ended; one with a value counts for what is tried next."""
        for name, what in {"state": state, **known}.items():
            trial.set_user_attr(name, what)
        with _quiet():
            if value is None:
                self.optuna.tell(trial, state=State.FAIL)
            else:
                self.optuna.tell(trial, value)

    def _lost(self, trial: Any) -> bool:
        known = trial.user_attrs
        node, _, number = known.get("process", " 0").rpartition(" ")
        if node == platform.node() and int(number):
            return int(number) == os.getpid() or not _runs(int(number))
        return time.time() - known.get("alive", trial.datetime_start.timestamp()) > SILENT

    # What has been found

    @property
    def trials(self) -> list[Any]:
        """Every trial that was begun."""
        return self.optuna.get_trials(deepcopy=False, states=(State.RUNNING, State.COMPLETE, State.FAIL))

    @property
    def begun(self) -> int:
        """How many places of the search are taken: trials without those that were lost."""
        return len(self.trials) - sum(_state(trial) == "lost" for trial in self.trials)

    @property
    def complete(self) -> list[Any]:
        """Trials judged on all folds, in the order of their places."""
        found = [trial for trial in self.trials if _state(trial) == "complete"]
        return sorted(found, key=lambda trial: trial.user_attrs["index"])

    @property
    def best(self) -> Any:
        """The complete trial of the lowest loss, the first of equal ones; None before there is one."""
        return min(self.complete, key=lambda trial: trial.value, default=None)

    @property
    def first(self) -> Any:
        """The trial of the recipe that was there before the search; None if it was not completed."""
        return next((trial for trial in self.complete if trial.user_attrs["index"] == 0), None)

    def gap(self, one: Any, other: Any) -> Number:
        """How much more trial ``one`` costs than ``other``, in nats: the mean over blocks that both were judged on."""
        trials = self.optuna.get_trials(deepcopy=False)
        a, b = (trials[trial.number].intermediate_values for trial in (one, other))
        blocks = sorted(a.keys() & b.keys())
        gaps = np.array([a[block] - b[block] for block in blocks])
        scale = max(abs(a[block]) for block in blocks)
        found = cluster_mean(gaps, scale=scale)
        return Number(found.value, "nats", *found.interval(), n=len(blocks))

    def table(self) -> Table:
        """Every trial, failures with their sentence, in the order in which they were begun.

        ``low`` and ``high`` are the interval of the loss, over rows; ``gap`` with its own is how much more the trial
        costs than the best one, in pairs over blocks of rows.
        """
        trials, best = self.trials, self.best
        known = [trial.user_attrs for trial in trials]
        gaps = [None if best is None or trial.value is None else self.gap(trial, best) for trial in trials]
        return {
            "trial": [trial.number for trial in trials],
            "began": [trial.datetime_start.isoformat(timespec="seconds") for trial in trials],
            "state": [_state(trial) for trial in trials],
            "cross_entropy": [trial.value for trial in trials],
            "low": [each.get("low") for each in known],
            "high": [each.get("high") for each in known],
            "gap": [gap and gap.value for gap in gaps],
            "gap_low": [gap and gap.low for gap in gaps],
            "gap_high": [gap and gap.high for gap in gaps],
            "folds": [each.get("folds", 0) for each in known],
            "seconds": [each.get("seconds") for each in known],
            "settings": [each.get("settings", "") for each in known],
            "sentence": [
                each.get("sentence", _LOST["again" in each] if _state(trial) == "lost" else "")
                for each, trial in zip(known, trials, strict=True)
            ],
        }

    def importance(self) -> Table | None:
        """How much of what makes a trial good lies in which setting, in shares (PED-ANOVA, Watanabe et al. 2023).

        It compares the settings of the best tenth of all trials with those of all, and the best of few trials have
        something in common by chance. ``chance`` is the share that a setting stays below in 19 of 20 shuffles of the
        losses among the trials, where they have nothing to do with any setting. None before there are eight trials.
        """
        done = [trial for trial in self.trials if trial.state == State.COMPLETE]
        if len(self.complete) < LEAST_TO_WEIGH:
            return None
        losses = np.array([trial.value for trial in done])
        try:
            shares = self._shares(done, losses)
            shuffles = (stream(self.seed, f"shuffle {number}").permutation(losses) for number in range(SHUFFLES))
            others = [self._shares(done, shuffled) for shuffled in shuffles]
        except (ValueError, RuntimeError):  # nothing varied
            return None
        ordered = sorted(shares, key=lambda setting: -shares[setting])
        return {
            "setting": ordered,
            "importance": [shares[setting] for setting in ordered],
            "chance": [float(np.quantile([other[setting] for other in others], 0.95)) for setting in ordered],
        }

    def _shares(self, done: list[Any], losses: NDArray[np.float64]) -> dict[str, float]:
        """The importance of each setting, had the trials had these losses."""
        loss_of = {trial.number: float(loss) for trial, loss in zip(done, losses, strict=True)}
        with _quiet():
            found = importance.get_param_importances(self.optuna, target=lambda trial: loss_of[trial.number])
        shares: dict[str, float] = {}
        for name, share in found.items():  # a number within an alternative is part of its setting
            setting = name.partition(":")[0]
            shares[setting] = shares.get(setting, 0.0) + share
        return shares

    def still_to_win(self) -> tuple[float, float] | None:
        """What can still be won at most, and what the folds leave in doubt, both in nats; None while it is too early.

        The first is the bound on the regret of a Gaussian process over the space, the second the standard error of a
        cross-validated loss. Searching on after the first has fallen below the second fits the noise of the folds
        (Makarova et al. 2022, equation 5).
        """
        best = self.best
        done = [trial for trial in self.trials if trial.state == State.COMPLETE]
        if best is None or len(done) < LEAST_TRIALS or len(best.user_attrs["losses"]) < 2:
            return None
        with _quiet():
            try:
                bound = terminator.RegretBoundEvaluator(seed=self.seed % 2**32).evaluate(done, self.optuna.direction)
            except ValueError:  # no setting is in every trial
                return None
        losses = np.array(best.user_attrs["losses"])
        folds = len(losses)
        return float(bound), math.sqrt((1 / folds + 1 / (folds - 1)) * losses.var())


def expected(values: list[float], further: float) -> float:
    """What ``further`` trials are expected to win over the least of ``values``, were they drawn like these.

    Of n + 1 draws each is as likely as another to be the last and the least, so that one trial more wins a (n + 1)-th
    of the distance d from the least to the next, whatever losses are distributed like. Several win d log(1 + further
    / n): so the least falls in an exponential tail (Rényi 1953), and more slowly near a floor. TPE draws better and
    better trials, and the best one was lucky as well: the two pull against each other.

    >>> round(expected([0.30, 0.20, 0.25, 0.40], 4), 4)  # 0.05 log 2
    0.0347
    """
    if len(values) < 2:
        return math.nan
    least, following = sorted(values)[:2]
    return min((following - least) * math.log1p(further / len(values)), least)


_LOST = (
    "Its process ended without a word; it was begun again.",
    "Its process ended without a word, for the second time; it may be what ends them, and was left alone.",
)


def _state(trial: Any) -> str:
    if trial.state == State.RUNNING:
        return "running"
    return trial.user_attrs.get("state", "lost")


def _index(study: Any, number: int, known: dict[str, Any]) -> int:
    """The place of a trial in the search: its number, not counting trials that were begun again."""
    if "index" in known:
        return int(known["index"])
    earlier = (trial for trial in study.get_trials(deepcopy=False) if trial.number < number)
    return number - sum("again" in trial.user_attrs for trial in earlier)


def _in_place(seed: int, first: dict[str, Any]) -> Any:
    """A sampler whose every trial is drawn by TPE from the seed and its place; the one in place 0 is ``first``."""

    class InPlace(_Sampler):
        def before_trial(self, study: Any, trial: Any) -> None:
            place = _index(study, trial.number, trial.user_attrs)
            drawn = int(stream(seed, f"trial {place}").integers(2**32))
            self.fixed = first if place == 0 else {}
            self.tpe = optuna.samplers.TPESampler(seed=drawn)
            self.tpe.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {} if self.fixed else self.tpe.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, space: dict[str, Any]) -> dict[str, Any]:
            return self.tpe.sample_relative(study, trial, space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            if name in self.fixed:
                return self.fixed[name]
            return self.tpe.sample_independent(study, trial, name, distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            """Nothing is remembered but what the storage holds."""

    return InPlace()


def _storage(place: str | os.PathLike[str] | None) -> Any:
    if place is None or "://" in str(place):
        return place
    path = Path(place).expanduser().absolute()
    if path.is_dir():
        raise DataError(f"--storage {str(place)!r} is a folder; name a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.read_bytes()[:4096] if path.exists() else b""
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        if held and not held.startswith(b"SQLite format 3\0"):
            raise DataError(f"--storage {str(place)!r} is no SQLite database; it is left as it is.")
        return f"sqlite:///{path}"
    if held and not _is_journal(held):
        raise DataError(f"--storage {str(place)!r} is no journal of trials; it is left as it is.")
    lock = journal.JournalFileSymlinkLock(str(path))
    if held:
        _trim(path, lock)
    return journal.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=lock))


def _is_journal(held: bytes) -> bool:
    first, newline, _ = held.partition(b"\n")
    try:
        return "op_code" in json.loads(first)
    except (ValueError, TypeError):
        return not newline and first.startswith(b'{"op_code"')  # its very first line was cut short


def _trim(path: Path, lock: Any) -> None:
    """Take off half a line that a killed writer, or a full disk, has left at the end.

    Under the lock: nobody else is writing it just now.
    """
    lock.acquire()
    try:
        with open(path, "rb+") as file:
            whole = file.read()
            if not whole.endswith(b"\n"):
                file.truncate(whole.rfind(b"\n") + 1)
    finally:
        lock.release()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Optuna says of itself: that parts are experimental, or go away in its next version but one."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "`?optuna.terminator", category=FutureWarning)
            warnings.filterwarnings("ignore", "PedAnova.*computes the importances of params to achieve low")
            yield
    finally:
        optuna.logging.set_verbosity(before)
