"""What time buys: ``crossent fit --budget`` on the same rows with more and more seconds, and what it foretold.

    python benchmarks/budget.py          learns what is not kept; writes benchmarks/records/budget.json
    python benchmarks/budget.py --page   the table of docs/switches.md, from the record

Everything is as by default but for ``--budget``; 0 stands for none, and is where training ends by itself. Beside the
test cross-entropy stands what ``fit`` said that the next minute would win, in nats of rows held out, and what rows
held out did win in a run with a minute more or, where none had it, in the run without a budget, and how many seconds
later it ended. One thread; seconds are of the wall, so that nothing else should be at work.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import switches  # first: minimise takes this folder off the path
from minimise import between, checked, compared, costs, keep, kept
from minimise_peers import About, fitted, said_by
from minimise_sets import Set

from crossent.files import replacing

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "benchmarks" / ".cache" / "budget"
RECORD = ROOT / "benchmarks" / "records" / "budget.json"
MARKERS = ("<!-- budget: python benchmarks/budget.py --page -->", "<!-- end of budget -->")
MINUTE, ENOUGH = 60.0, 0
BUDGETS = {"satimage": (5, 10, 20, 30, ENOUGH), "adult-fifth": (5, 10, 15, ENOUGH), "adult": (15, 75, ENOUGH)}


def learnt(here: Set, seconds: float) -> tuple[Any, dict[str, Any]]:
    """Learn the first split: probabilities of the tested rows (n, columns), and what is to be known of the run."""
    (learn, test), *_ = here.splits
    known, new = here.rows.take(learn), here.rows.take(test)
    load, began, processor = os.getloadavg()[0], time.perf_counter(), time.process_time()
    run = fitted(known, new.x, About(here, new.y, threads=1), budget=seconds or None)
    took = time.perf_counter() - began
    record = run.record
    about = {
        "fingerprint": here.fingerprint,
        "seconds": round(took, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "load_before": round(load, 1),
        "held_out": record["validation_cross_entropy"].value,
        "epochs": record.facts["epochs"],
        "next_minute": record["next_minute"].value if "next_minute" in record.numbers else None,
        "outlook": record.facts.get("outlook"),
        "made": time.strftime("%Y-%m-%d"),
    }
    return checked(said_by(run, new.x, here), f"--budget {seconds}", here), about


def later(seconds: float, runs: Mapping[float, Mapping[str, Any]]) -> float | None:
    """The budget of the run with a minute more than ``seconds``, or little more than that; else of the run without."""
    if seconds == ENOUGH:
        return None
    return min((budget for budget in runs if budget >= seconds + MINUTE), default=ENOUGH if ENOUGH in runs else None)


def joined(here: Set, answers: Mapping[float, tuple[Any, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One line for each budget, those without one last."""
    runs = {seconds: about for seconds, (_, about) in answers.items()}
    lines = []
    for seconds in sorted(answers, key=lambda budget: budget or float("inf")):
        logs, about = answers[seconds]
        line = {"budget": seconds or None, "cross_entropy": float(costs(logs, here).mean())}
        line |= {key: value for key, value in about.items() if key != "fingerprint"}
        if seconds != ENOUGH and ENOUGH in answers:
            line |= compared(logs, answers[ENOUGH][0], here)
        after = later(seconds, runs)
        if after is not None:
            line |= {"later_won": about["held_out"] - runs[after]["held_out"]}
            line |= {"later": runs[after]["seconds"] - about["seconds"]}
        lines.append(line)
    return lines


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """Give the tables of a record in Markdown."""
    for name, lines in record["sets"].items():
        yield from ("", f"**{name}**", "")
        yield "| budget, s | took, s | processor | test, nats | to no budget | a minute: foretold | came | after, s |"
        yield "|---:|---:|---:|---:|---:|---:|---:|---:|"
        for of in lines:
            gap = f"{of['difference']:+.4f} ± {of['standard_error'] or 0:.4f}" if "difference" in of else ""
            told = "" if of["budget"] is None else "too short to say" if of["next_minute"] is None else (
                f"{of['next_minute']:.4f}")  # fmt: skip
            came = (f"{of['later_won']:.4f}", f"{of['later']:.0f}") if "later" in of else ("", "")
            took = (f"{of[key]:.0f}" for key in ("seconds", "processor_seconds"))
            cells = (of["budget"] or "none", *took, f"{of['cross_entropy']:.4f}", gap, told, *came)
            yield f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=switches.PLACES, default=list(BUDGETS), metavar="NAME")
    parser.add_argument("--page", action="store_true", help="only write the table of docs/switches.md from the record")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--record", type=Path, default=RECORD)
    asked = parser.parse_args()
    if asked.page:
        between(switches.PAGE, MARKERS, page(json.loads(asked.record.read_text(encoding="utf-8"))))
        return
    switches.warm_up()
    for name in asked.set:
        here, answers = switches.PLACES[name](), {}
        for seconds in BUDGETS.get(name, BUDGETS["satimage"]):
            place = asked.cache / name / f"{seconds}.npz"
            if not place.exists():
                keep(place, *learnt(here, seconds))
            answers[seconds] = kept(place, here)
            record = json.loads(asked.record.read_text()) if asked.record.exists() else {"sets": {}}
            record["sets"][name] = joined(here, answers)
            with replacing(asked.record) as temporary:
                temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            print(time.strftime("%H:%M:%S"), name, seconds, record["sets"][name][-1], flush=True)


if __name__ == "__main__":
    main()
