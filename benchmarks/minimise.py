"""What ``crossent.fit`` reaches with its defaults, beside what else a user would try, on the same rows.

    python benchmarks/minimise.py --peer NAME … --set NAME …   learns, and keeps what was said of every tested row
    python benchmarks/minimise.py --table                      joins all that is kept into the record, and prints it
    python benchmarks/minimise.py --page                       writes docs/minimise.md anew from the record

Without names, all peers and all sets that go together. What a peer said is kept under benchmarks/.cache, one file for
a peer and a set, and not asked for again but with ``--again``. benchmarks/minimise_sets.py says who is tested on which
rows, benchmarks/minimise_peers.py who the peers are and how they learn. The record is benchmarks/records/minimise.json.

Of each set the peer with the lowest test cross-entropy is the best, and the others are held against it row by row: the
mean of the differences and its standard error, clustered by row where a row is tested twice. Nothing is clipped. A
label that was given probability 0 costs infinity, and so does the peer; beside it stands what it costs, and differs
by, with all probabilities, those of the best too, raised to the floor of ``crossent evaluate``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from minimise_peers import PEERS, About, Probabilities
from minimise_sets import FIRST_SEEN, SECOND_SEEN, SETS, THIRD_SEEN, Set
from threadpoolctl import threadpool_limits

from crossent.files import replacing
from crossent.measure.intervals.cluster import ClusterMean, cluster_mean
from crossent.measure.sums.likelihood import FLOOR, costs_of_logs

# Python puts this folder first on the path; see run.py.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "benchmarks" / ".cache"
RECORD = ROOT / "benchmarks" / "records" / "minimise.json"
PAGE = ROOT / "docs" / "minimise.md"
MARKERS = ("<!-- figures: python benchmarks/minimise.py --page -->", "<!-- end of figures -->")
OURS = "crossent"

REPORTED: dict[str, dict[str, float]] = {
    "adult": {"five MLPs with numerical embeddings": 0.2764, "CatBoost, bagged over five folds": 0.2750},
    "satimage": {"RealMLP stopped on cross-entropy, no smoothing": 0.2455},
    "communities": {"fractional logit": 0.4518, "the labels' own entropy, which nobody gets below": 0.4008},
    "fashion_mnist": {"one LeNet of 91,000 weights, flips, one cycle": 0.225, "ten such LeNets": 0.200},
}
"""What others reported on these very splits, in nats; not repeated here, so that there are no pairs of rows."""


def ask(name: str, here: Set, threads: int) -> tuple[Probabilities, dict[str, Any]]:
    """Let a peer learn on every split of a set; what it says of the tested rows (n, columns), and what it took."""
    peer, said, seconds, processor, load = PEERS[name], [], [], [], os.getloadavg()[0]
    versions = {"python": platform.python_version()} | {package: installed(package) for package in peer.packages}
    for learn, test in here.splits:
        known, new = here.rows.take(learn), here.rows.take(test)
        began, spent = time.perf_counter(), time.process_time()
        with threadpool_limits(threads):
            said.append(peer.learn(known, new.x, About(here, new.y, threads)))
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    about = {
        "fingerprint": here.fingerprint,
        "seconds": [round(s, 2) for s in seconds],
        "processor_seconds": [round(s, 2) for s in processor],
        "threads": threads,
        "load_before": round(load, 1),
        "versions": versions,
        "made": time.strftime("%Y-%m-%d"),
    }
    return checked(np.concatenate(said), name, here), about


def installed(package: str) -> str:
    """The version of a package, or of its edition for processors alone (xgboost-cpu)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(f"{package}-cpu")


def checked(p: Probabilities, name: str, here: Set) -> Probabilities:
    """Refuse what are not probabilities of the tested rows. Float32 adds up to 1 within its rounding."""
    due = (len(here.tested), here.columns)
    assert p.shape == due, f"{name} on {here.name} gave {p.shape}, and {due} is due"
    bad = np.flatnonzero(~(p.min(axis=1) >= 0) | ~(np.abs(p.sum(axis=1) - 1) < 1e-5))
    assert not bad.size, f"{name} on {here.name}: row {bad[0]} of {bad.size} is no distribution: {p[bad[0]]}"
    return p


def keep(place: Path, p: Probabilities, about: Mapping[str, Any]) -> None:
    """Write log-probabilities (n, columns) and what is to be known of them."""
    with np.errstate(divide="ignore"):
        logs = np.log(p)
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, log_probabilities=logs, about=json.dumps(about))


def kept(place: Path, here: Set) -> tuple[Probabilities, dict[str, Any]]:
    """Read them again; an answer about other rows is refused."""
    with np.load(place) as file:
        logs, about = file["log_probabilities"], json.loads(str(file["about"]))
    assert about["fingerprint"] == here.fingerprint, (
        f"{place} is about other rows or splits of {here.name} than there are now: ask again with --again"
    )
    return logs, about


def costs(logs: Probabilities, here: Set, floor: float = 0.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What each tested row cost, in nats, with probabilities raised to a floor if there is one."""
    raised = np.maximum(logs, math.log(floor)) if floor else logs
    return costs_of_logs(raised, here.rows.y[here.tested])


def difference(one: Probabilities, best: Probabilities, here: Set) -> tuple[ClusterMean, bool]:
    """The mean of the differences row by row, one − best, and whether it is under the floor."""
    a, b = costs(one, here), costs(best, here)
    floored = not (np.isfinite(a).all() and np.isfinite(b).all())
    if floored:
        a, b = costs(one, here, FLOOR), costs(best, here, FLOOR)
    twice = len(np.unique(here.tested)) < len(here.tested)
    scale = float(max(np.max(np.abs(a)), np.max(np.abs(b))))
    return cluster_mean(a - b, clusters=here.tested if twice else None, scale=scale), floored


def within(found: ClusterMean) -> bool:
    """Not worse than the best by more than a standard error; rows that all agree have none."""
    return found.value <= (found.error or 0.0)


def compared(one: Probabilities, best: Probabilities, here: Set) -> dict[str, Any]:
    """A difference as the record has it."""
    found, floored = difference(one, best, here)
    return {
        "difference": found.value, "standard_error": found.error, "under_floor": floored, "within": within(found)
    }  # fmt: skip


def standing(here: Set, answers: Mapping[str, Probabilities]) -> dict[str, Any]:
    """Of one set: what each peer's answer costs, which is the best, and by how much the others miss it."""
    y = here.rows.y[here.tested]
    peers: dict[str, dict[str, Any]] = {}
    for name, logs in answers.items():
        cost = costs(logs, here)
        impossible = int(np.isinf(cost).sum())
        peers[name] = {"cross_entropy": None if impossible else float(cost.mean()), "impossible_rows": impossible}
        peers[name] |= {"cross_entropy_floored": float(costs(logs, here, FLOOR).mean())} if impossible else {}
        if here.limits is None:
            peers[name]["accuracy"] = float((logs.argmax(axis=1) == y).mean())
        else:
            width = here.limits[1] - here.limits[0]
            peers[name]["rmse"] = float(width * np.sqrt(np.mean((np.exp(logs[:, 1]) - y) ** 2)))

    def order(name: str) -> tuple[float, float]:
        of = peers[name]
        return (math.inf, of["cross_entropy_floored"]) if of["impossible_rows"] else (of["cross_entropy"], 0.0)

    ranked = sorted(peers, key=order)
    for name in peers:
        peers[name] |= {} if name == ranked[0] else compared(answers[name], answers[ranked[0]], here)
    others = [name for name in ranked if name != OURS]
    beside = {}
    if OURS in peers and others:
        beside = {"beside_best_peer": {"peer": others[0], **compared(answers[OURS], answers[others[0]], here)}}
    return {
        "learned_rows": len(here.splits[0][0]),
        "tested_rows": len(np.unique(here.tested)),
        "columns": here.rows.x.shape[1] if here.rows.x.ndim == 2 else list(here.rows.x.shape[1:]),
        "classes": len(here.classes) or None,
        "range": here.limits,
        "splits": len(here.splits),
        "splitting": here.splitting,
        "best": ranked[0],
        "peers": {name: peers[name] for name in ranked},
        **beside,
        "reported_elsewhere": REPORTED.get(here.name, {}),
    }


def joined(cache: Path, sets: Mapping[str, Set]) -> dict[str, Any]:
    """The record: every set of which at least two answers are kept."""
    found: dict[str, Any] = {}
    for name, here in sets.items():
        places = {peer: cache / name / f"{peer}.npz" for peer in PEERS}
        answers = {peer: kept(place, here) for peer, place in places.items() if place.exists()}
        if len(answers) < 2:
            continue
        found[name] = standing(here, {peer: logs for peer, (logs, _) in answers.items()})
        for peer, (_, about) in answers.items():
            took = {key: value for key, value in about.items() if key != "fingerprint"}
            took |= {key: round(sum(about[key]) / len(about[key]), 2) for key in ("seconds", "processor_seconds")}
            found[name]["peers"][peer] |= took
    return {
        "what": "python benchmarks/minimise.py --table: test cross-entropy in nats, seconds of one split",
        "made": time.strftime("%Y-%m-%d"),
        "floor": FLOOR,
        "machine": {"cores": os.cpu_count(), "platform": platform.machine()},
        "sets": found,
    }


def figure(of: Mapping[str, Any]) -> str:
    """A cross-entropy as it is shown."""
    if not of["impossible_rows"]:
        return f"{of['cross_entropy']:.4f}"
    rows = f"{of['impossible_rows']} row{'s' * (of['impossible_rows'] > 1)}"
    return f"∞ by {rows}, floored {of['cross_entropy_floored']:.4f}"


def gap(of: Mapping[str, Any]) -> str:
    """A difference and its standard error as they are shown."""
    if "difference" not in of:
        return "best"
    error = "" if of["standard_error"] is None else f" ± {of['standard_error']:.4f}"
    misses_by_little = of["within"] and of["difference"] > 0
    return f"{of['difference']:+.4f}{error}{' (floored)' * of['under_floor']}{' ≈' * misses_by_little}"


def overview(sets: Mapping[str, Any]) -> Iterator[str]:
    """Sets down, peers across; the best in bold, with ≈ who is within one standard error of it."""
    names = [name for name in PEERS if any(name in of["peers"] for of in sets.values())]
    yield f"| set | {' | '.join(names)} |"
    yield "|---|" + "---:|" * len(names)
    for name, of in sets.items():
        cells = []
        for peer in names:
            found = of["peers"].get(peer)
            short = "–" if found is None else "∞" if found["impossible_rows"] else f"{found['cross_entropy']:.4f}"
            cells.append(f"**{short}**" if peer == of["best"] else short + " ≈" * bool(found and found["within"]))
        yield f"| {name} | {' | '.join(cells)} |"
    for what, says in (("best", lambda of, peer: peer == of["best"]), ("best or ≈", close)):
        counts = [sum(says(of, peer) for of in sets.values()) for peer in names]
        tried = [sum(peer in of["peers"] for of in sets.values()) for peer in names]
        cells = [f"{k} of {n}" for k, n in zip(counts, tried, strict=True)]
        yield f"| {what} | {' | '.join(cells)} |"


def close(of: Mapping[str, Any], peer: str) -> bool:
    """Whether a peer is the best of a set, or within a standard error of it."""
    return peer == of["best"] or bool(of["peers"].get(peer, {}).get("within"))


def details(name: str, of: Mapping[str, Any]) -> Iterator[str]:
    """One set: every peer, the best first."""
    kind = f"{of['classes']} classes" if of["classes"] else f"a number from {of['range'][0]:g} to {of['range'][1]:g}"
    yield from (f"### {name}", "")
    yield (
        f"{kind}; {of['learned_rows']:,} rows to learn from, {of['tested_rows']:,} tested; splits: {of['splitting']}."
    )
    second = "accuracy" if of["classes"] else "RMSE"
    yield from (
        "",
        f"| | cross-entropy | to the best | {second} | seconds | processor |",
        "|---|---:|---:|---:|---:|---:|",
    )
    for peer, found in of["peers"].items():
        other = f"{found['accuracy']:.2%}" if of["classes"] else f"{found['rmse']:.4g}"
        yield (
            f"| {peer} | {figure(found)} | {gap(found)} | {other} | {found['seconds']:.3g} | "
            f"{found['processor_seconds']:.3g} |"
        )
    for who, value in of["reported_elsewhere"].items():
        yield f"| *reported: {who}* | *{value:.4g}* | | | | |"
    if beside := of.get("beside_best_peer"):
        yield from ("", f"crossent beside the best of the others, {beside['peer']}: {gap(beside)} nats.")


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """The figures of a record in Markdown."""
    versions = {
        package: number
        for of in record["sets"].values()
        for found in of["peers"].values()
        for package, number in found["versions"].items()
    }
    cores = record["machine"]["cores"]
    yield f"Made {record['made']}, {cores} cores: {', '.join(f'{name} {n}' for name, n in sorted(versions.items()))}."
    by_title: dict[str, dict[str, Any]] = {
        "Sets in view while the defaults were made": {},
        "Sets asked once, whose answers showed what to mend": {},
        "Sets fixed after that, which showed what to mend, too": {},
        "Sets fixed last, and asked once: they took a change back": {},
    }
    for name, of in record["sets"].items():
        group = 3 if name in THIRD_SEEN else 2 if name in SECOND_SEEN else 1 if name in FIRST_SEEN else 0
        list(by_title.values())[group][name] = of
    for title, sets in by_title.items():
        if sets:
            yield from ("", f"**{title}**", "")
            yield from overview(sets)
    for name, of in record["sets"].items():
        yield ""
        yield from details(name, of)


def between(place: Path, markers: tuple[str, str], lines: Iterator[str]) -> None:
    """Put lines between two markers of a page."""
    head, _, rest = place.read_text(encoding="utf-8").partition(markers[0])
    _, end, tail = rest.partition(markers[1])
    assert end, f"{place.name} should have the lines {markers[0]} and {markers[1]}"
    written = "\n".join(lines).strip("\n")
    place.write_text(f"{head}{markers[0]}\n\n{written}\n\n{markers[1]}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help=" ".join(PEERS))
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS), metavar="NAME", help=" ".join(SETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--again", action="store_true", help="ask also where an answer is kept")
    parser.add_argument("--table", action="store_true", help="join what is kept, and write the record")
    parser.add_argument("--page", action="store_true", help="only write docs/minimise.md from the record")
    parser.add_argument("--record", type=Path, default=RECORD)
    asked = parser.parse_args()
    if asked.table:
        record = joined(asked.cache, {name: SETS[name]() for name in asked.set})
        asked.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print("\n".join(page(record)))
    if asked.page:
        between(PAGE, MARKERS, page(json.loads(asked.record.read_text(encoding="utf-8"))))
    if asked.table or asked.page:
        return
    for name in asked.set:
        here = SETS[name]()
        for peer in asked.peer:
            place = asked.cache / name / f"{peer}.npz"
            if (place.exists() and not asked.again) or not PEERS[peer].takes(here):
                continue
            p, about = ask(peer, here, asked.threads)
            keep(place, p, about)
            logs, _ = kept(place, here)
            cost = float(costs(logs, here).mean())
            print(f"{name:14s} {peer:13s} {cost:.4f} nats, {sum(about['processor_seconds']):.1f} s", flush=True)


if __name__ == "__main__":
    main()
