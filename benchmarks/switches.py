"""What each switch of ``crossent fit`` is worth: the defaults with one setting changed, on the same rows.

    python benchmarks/switches.py          all switches on all sets of the tables of docs/switches.md
    python benchmarks/switches.py --set satimage --switch mixup=0.2
    python benchmarks/switches.py --set NAME … --switch calibration=none
    python benchmarks/switches.py --page   writes docs/switches.md anew from the record

A figure is the test cross-entropy with the switch less that without, in nats, row by row, with the standard error of
the mean over tested rows: below 0 the switch wins. "another seed" changes nothing but the seed, so that it shows what
nothing is worth. ``calibration=none`` is asked of the run of the defaults itself, before its calibrator. Trees stand
beside plain cross-entropy alone: a switch of the loss takes them away, and is held against ``trees=no`` as well.

What was said of every tested row is kept under benchmarks/.cache/switches, and the record, benchmarks/records/
switches.json, is written after each answer: a run that was stopped goes on where it was, and two may work at a time on
different sets. What ``fit`` refuses is written down as it says it.

    NAME        a set of benchmarks/minimise_sets.py, of several splits the first five: of twice five folds, one round
    NAME-once   its first split alone
    adult-fifth   one row in five to learn from, evenly spaced, and all tested rows
    clothes     2,000 of Fashion-MNIST's pictures to learn from and 2,000 of those tested, both evenly spaced
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import minimise_sets
import numpy as np
from minimise import between, checked, compared, costs, keep, kept
from minimise_peers import About, fitted, said_by
from minimise_sets import SETS, Set

import crossent
from crossent.errors import DataError
from crossent.files import replacing
from crossent.measure import Calibrator
from crossent.measure.intervals.cluster import cluster_mean
from crossent.minimise.finish import versions

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "benchmarks" / ".cache" / "switches"
RECORD = ROOT / "benchmarks" / "records" / "switches.json"
PAGE = ROOT / "docs" / "switches.md"
MARKERS = ("<!-- switches: python benchmarks/switches.py --page -->", "<!-- end of switches -->")
CALIBRATION = ("<!-- calibration: python benchmarks/switches.py --page -->", "<!-- end of calibration -->")
SPLITS = 5
WIDTH = 120

DEFAULTS, UNCALIBRATED, NO_TREES, LINEAR = "defaults", "calibration=none", "trees=no", "model=linear"
SEEDS = {"another seed": 1, "a third seed": 2}
TUNE = "crossent tune --budget "

SWITCHES: dict[str, tuple[str, ...]] = {
    "nothing": tuple(SEEDS),
    "a search, and its time for more networks": (f"{TUNE}60s", f"{TUNE}180s", "members=16"),
    "what is mixed": (
        NO_TREES, "beside=no", "plain=no", "bins=0", "members=1", "members=4", "folds=10", "refit=yes", LINEAR,
    ),
    "rows never seen": ("mixup=0.2", "cutmix=0.2", "noise=0.1", "label_smoothing=0.02"),
    "the way down": (
        "optimiser=muon", "optimiser=schedulefree", "sharpness=0.05", "averaging=0", "learning_rate=0.001",
        "schedule=cosine epochs=40", "schedule=one-cycle epochs=40", "optimiser=sgd learning_rate=0.1",
        "model=linear optimiser=lbfgs",
    ),
    "size and restraint": ("dropout=0", "weight_decay=0", "weight_decay=1", "width=64", "depth=3"),
    "when to stop": ("stop=loss", "stop=none epochs=40"),
    "better probabilities": (UNCALIBRATED,),
    "rare classes": ("imbalance=weights", "imbalance=balanced", "imbalance=logit_adjusted"),
    "labels that may be wrong": ("loss=gce(0.3)", "loss=sce", "loss=bootstrapped"),
}  # fmt: skip
"""By what they are about."""
PICTURES: tuple[str, ...] = (
    "another seed", "mixup=0.2", "cutmix=1", "label_smoothing=0.02", "crop=0", "flip=no", "members=2", UNCALIBRATED,
)  # fmt: skip
"""Of images, which have no ramps, trees or linear models beside."""


def beside(switch: str) -> str | None:
    """What a switch is held against as well, since it takes more away than it says."""
    if switch.startswith(("loss=", "imbalance=", "label_smoothing=")):
        return NO_TREES
    return LINEAR if switch.startswith(f"{LINEAR} ") else None


def some(name: str) -> Set:
    """A set with at most five splits."""
    here = SETS[name]()
    return replace(here, splits=here.splits[:SPLITS])


def once(name: str) -> Set:
    """A set with its first split."""
    here = SETS[name]()
    return replace(here, splits=here.splits[:1])


def adult_fifth() -> Set:
    here = SETS["adult"]()
    learn, test = here.splits[0]
    return replace(here, splits=((learn[::5], test),))


def clothes() -> Set:
    here = SETS["fashion_mnist"]()
    learn, test = here.splits[0]
    return replace(here, splits=((learn[::30], test[::5]),))


TABLES: dict[str, Callable[[], Set]] = {
    "satimage": lambda: some("satimage"),
    "adult-fifth": adult_fifth,
    "digits-once": lambda: once("digits"),
    **{
        name: (lambda name=name: some(name))
        for name in ("chile", "fishing", "yogurt", "occupations", "medpar", "pima", "meals")
    },
}
"""On which every switch is asked."""
CALIBRATED = {name: (lambda name=name: some(name)) for name in SETS if name != "fashion_mnist"}
"""On which calibration is asked."""
PLACES = CALIBRATED | TABLES | {"clothes": clothes}


@dataclass(frozen=True)
class Answers:
    """Where what was said is kept, and by whom it is asked again."""

    cache: Path = CACHE

    def place(self, name: str, switch: str) -> Path:
        return self.cache / name / f"{switch}.npz"

    def of(self, name: str, here: Set, switch: str) -> tuple[Any, dict[str, Any]]:
        """Log-probabilities of the tested rows (n, columns), and what they took; asked for if they are not kept.

        Raises DataError where ``fit`` refuses.
        """
        place = self.place(name, switch)
        if not place.exists():
            said, before, about = learnt(here, **choices(switch))
            if switch in (DEFAULTS, UNCALIBRATED):
                place = self.place(name, DEFAULTS)
                keep(self.place(name, UNCALIBRATED), before, about)
            keep(place, said, about)
        return kept(self.place(name, switch), here)


def choices(switch: str) -> dict[str, Any]:
    """What ``fit``, or ``tune``, is asked for by a switch. A run of the defaults knows what it said uncalibrated."""
    if switch in (DEFAULTS, UNCALIBRATED):
        return {}
    if switch in SEEDS:
        return {"seed": SEEDS[switch]}
    if switch.startswith(TUNE):
        return {"trials": None, "budget": float(switch.removeprefix(TUNE).removesuffix("s"))}
    return {"settings": switch.split()}


def learnt(here: Set, **chosen: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Learn every split: probabilities of the tested rows (n, columns), also before calibration, and what it took."""
    said, before, calibrators = [], [], []
    load, began, processor = os.getloadavg()[0], time.perf_counter(), time.process_time()
    for learn, test in here.splits:
        known, new = here.rows.take(learn), here.rows.take(test)
        run = fitted(known, new.x, About(here, new.y, threads=1), **chosen)
        calibrators.append(run.calibrator.kind)
        said.append(said_by(run, new.x, here))
        before.append(said_by(replace(run, calibrator=Calibrator()), new.x, here))
    about = {
        "fingerprint": here.fingerprint,
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "load_before": round(load, 1),
        "calibrators": calibrators,
        "made": time.strftime("%Y-%m-%d"),
    }
    return *(checked(np.concatenate(each), str(chosen), here) for each in (said, before)), about


def line(here: Set, switch: str, answer: Callable[[str], tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """What the record has of a switch on a set: what it costs, and the pairs with the defaults."""
    usual, base = answer(DEFAULTS)
    logs, about = answer(switch)
    took = {key: about[key] for key in ("processor_seconds", "load_before", "calibrators", "made")}
    found = {"cross_entropy": float(costs(logs, here).mean()), **took}
    if switch == DEFAULTS:
        return found
    found |= compared(logs, usual, here) | {"times": about["processor_seconds"] / base["processor_seconds"]}
    if other := beside(switch):
        found |= {"against": {other: compared(logs, answer(other)[0], here)}}
    return found


def note(record: Path, name: str, here: Set, switch: str, found: Mapping[str, Any]) -> None:
    """Put a line into the record, which another process may have changed in the meantime."""
    whole = json.loads(record.read_text()) if record.exists() else {"sets": {}}
    whole |= {
        "what": "python benchmarks/switches.py: test cross-entropy in nats, a switch less the defaults, row by row",
        "machine": {"cores": os.cpu_count(), "platform": platform.machine()},
        "versions": versions(),
    }
    of = whole["sets"].setdefault(name, {})
    of |= {
        "learned_rows": len(here.splits[0][0]),
        "tested_rows": len(here.tested),
        "splits": len(here.splits),
        "columns": int(np.prod(here.rows.x.shape[1:])),
        "classes": len(here.classes) or None,
    }
    of.setdefault("switches", {})[switch] = found
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def warm_up() -> None:
    """Import everything, so that the first answer does not pay for it."""
    x = np.random.default_rng(0).normal(size=(600, 2))
    crossent.fit(x, x[:, 0] > 0, settings=["epochs=1"])


def ask(names: Sequence[str], switches: Sequence[str], answers: Answers, record: Path) -> None:
    """Ask every switch of every set, the switch in the outer loop, and write down each answer as it comes."""
    sets = {name: PLACES[name]() for name in names}
    warm_up()
    for switch in switches:
        for name, here in sets.items():

            def answer(of: str, name: str = name, here: Set = here) -> tuple[Any, dict[str, Any]]:
                return answers.of(name, here, of)

            try:
                found = line(here, switch, answer)
            except DataError as refusal:
                found = {"cannot": str(refusal)}
            note(record, name, here, switch, found)
            print(time.strftime("%H:%M:%S"), name, switch, found, flush=True)


def thousandths(nats: float, digits: int = 1) -> str:
    """Write a difference in thousandths of a nat, with its sign."""
    return f"{1e3 * nats:+.{digits}f}".replace("-", "−")


def reached(of: Mapping[str, Any]) -> str:
    """Say a difference with its standard error, in thousandths of a nat; bold beyond two of them."""
    if of["standard_error"] is None:
        return "same" if of["difference"] == 0 else thousandths(of["difference"])
    digits = 1 if of["standard_error"] >= 1e-4 else 2
    text = f"{thousandths(of['difference'], digits)} ± {1e3 * of['standard_error']:.{digits}f}"
    return f"**{text}**" if abs(of["difference"]) > 2 * of["standard_error"] else text


def found_of(sets: Mapping[str, Any], name: str, switch: str, against: str | None) -> Mapping[str, Any] | None:
    """Look up the line of a switch on a set; against what it is held, its difference is that one's."""
    found = sets.get(name, {}).get("switches", {}).get(switch)
    return {**found, **found["against"][against]} if found and against and "against" in found else found


def row(sets: Mapping[str, Any], names: Sequence[str], switch: str, against: str | None) -> tuple[str, str]:
    """Give a switch's lines in the table over sets, and in that of each set."""
    label = f"`{switch}`" if "=" in switch or "--" in switch else switch
    label += f", both `{against}`" if against == NO_TREES else f", beside `{against}`" if against else ""
    lines = [found_of(sets, name, switch, against) for name in names]
    cells = ["–" if of is None else "cannot" if "cannot" in of else reached(of) for of in lines]
    told = [of for of in lines if of and "cannot" not in of and of["standard_error"] is not None]
    each = f"| {label} | {' | '.join(cells)} |"
    if not told:
        return f"| {label} | 0 | | | | | |", each
    differences = np.array([of["difference"] for of in told])
    over = cluster_mean(differences)
    low, high = over.interval()
    ends = "" if low is None or high is None else f" ({thousandths(low)} to {thousandths(high)})"
    beyond = [sum(sign * of["difference"] > 2 * of["standard_error"] for of in told) for sign in (-1, 1)]
    times = math.exp(statistics.fmean(math.log(of["times"]) for of in told))
    return (
        f"| {label} | {len(told)} | {int((differences < 0).sum())} | {thousandths(over.value)}{ends} | {beyond[0]} | "
        f"{beyond[1]} | {times:.2g} |",
        each,
    )


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """Give the tables of all switches: over sets, and for each."""
    sets = record["sets"]
    asked = {switch for name in TABLES for switch in sets.get(name, {}).get("switches", {})}
    rows = [
        (title, row(sets, list(TABLES), switch, against))
        for title, switches in SWITCHES.items()
        for switch in switches
        for against in dict.fromkeys((None, beside(switch)))
        if switch in asked
    ]
    yield "| | sets | lower on | mean, 10⁻³ nats (95 %) | lower by 2 s.e. | higher by 2 s.e. | processor × |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    yield from titled(rows, 0, 6)
    yield from ("", "**On each set**, 10⁻³ nats ± standard error; bold beyond two of them, – not asked", "")
    yield f"| | {' | '.join(TABLES)} |"
    yield "|---|" + "---:|" * len(TABLES)
    usual = [f"{sets[name]['switches'][DEFAULTS]['cross_entropy']:.4f}" if name in sets else "" for name in TABLES]
    yield f"| defaults, nats | {' | '.join(usual)} |"
    yield from titled(rows, 1, len(TABLES))
    refused = {
        found["cannot"]: f"`{switch}`"
        for name in TABLES
        for switch, found in sets.get(name, {}).get("switches", {}).items()
        if "cannot" in found
    }
    left = [f"`{switch}`" for of in SWITCHES.values() for switch in of if switch not in asked]
    if left:
        yield from ("", fill(f"Not asked on any set: {', '.join(left)}.", WIDTH))
    for sentence, switch in refused.items():
        yield from ("", fill(f"{switch} cannot be where it says: {sentence}", WIDTH))
    if "clothes" in sets:
        yield from ("", "**Pictures**: clothes", "")
        yield "| | test, nats | to the defaults, 10⁻³ nats | processor × |"
        yield "|---|---:|---:|---:|"
        for switch in (DEFAULTS, *PICTURES):
            of = sets["clothes"]["switches"].get(switch)
            cells = "– | | " if of is None else f"{of['cross_entropy']:.4f} | "
            cells += "" if of is None else " | " if switch == DEFAULTS else f"{reached(of)} | {of['times']:.2g}"
            yield f"| {f'`{switch}`' if '=' in switch else switch} | {cells} |"


def titled(rows: Sequence[tuple[str, tuple[str, str]]], which: int, width: int) -> Iterator[str]:
    """Give the rows of a table, each group of switches below its title."""
    before = ""
    for title, lines in rows:
        if title != before:
            yield f"| *{title}* |" + " |" * width
        before = title
        yield lines[which]


def calibrated(record: Mapping[str, Any]) -> Iterator[str]:
    """Give the table of calibration: where a calibrator was chosen, what it did; and where none was."""
    lines = {name: record["sets"].get(name, {}).get("switches", {}).get(UNCALIBRATED) for name in CALIBRATED}
    asked = {name: of for name, of in lines.items() if of}
    at_work = {name: of for name, of in asked.items() if any(kind != "none" for kind in of["calibrators"])}
    worse = [name for name, of in at_work.items() if -of["difference"] > (of["standard_error"] or 0.0)]
    better = [name for name, of in at_work.items() if of["difference"] > (of["standard_error"] or 0.0)]
    yield fill(
        f"Asked on {len(asked)} sets. A calibrator was chosen on {len(at_work)}: with it {len(better)} lower by more "
        f"than one standard error, and **{len(worse)} higher by more than one**{': ' * bool(worse)}{', '.join(worse)}.",
        WIDTH,
    )
    yield ""
    yield "| set | splits | rows learnt | tested | chosen | with, nats | with less without, 10⁻³ nats |"
    yield "|---|---:|---:|---:|---|---:|---:|"
    for name, of in at_work.items():
        here = record["sets"][name]
        kinds = {kind: of["calibrators"].count(kind) for kind in of["calibrators"]}
        chosen = ", ".join(f"{kind} {n}×" if here["splits"] > 1 else kind for kind, n in kinds.items())
        turned = {**of, "difference": -of["difference"]}
        yield (
            f"| {name} | {here['splits']} | {here['learned_rows']:,} | {here['tested_rows']:,} | {chosen} | "
            f"{here['switches'][DEFAULTS]['cross_entropy']:.4f} | {reached(turned)} |"
        )
    none = [name for name in asked if name not in at_work]
    left = [name for name in CALIBRATED if name not in asked]
    told = f"None was chosen on {', '.join(none)}: there both are the same."
    yield from ("", fill(f"{told} Not asked: {', '.join(left)}." if left else told, WIDTH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=PLACES, default=list(TABLES), metavar="NAME")
    parser.add_argument("--switch", nargs="+", default=[DEFAULTS, *(each for of in SWITCHES.values() for each in of)])
    parser.add_argument("--images", type=Path, help="where Fashion-MNIST's files are, if not where Debian puts them")
    parser.add_argument("--page", action="store_true", help="only write the tables of docs/switches.md from the record")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--record", type=Path, default=RECORD)
    asked = parser.parse_args()
    if asked.page:
        record = json.loads(asked.record.read_text(encoding="utf-8"))
        between(PAGE, MARKERS, page(record))
        between(PAGE, CALIBRATION, calibrated(record))
        return
    minimise_sets.IMAGES = asked.images or minimise_sets.IMAGES
    ask(asked.set, asked.switch, Answers(asked.cache), asked.record)


if __name__ == "__main__":
    main()
