"""What the documentation says runs, exists and points somewhere.

A block fenced ```python runs, in the order of its page and in one namespace with the page's other blocks. One that
cannot run is fenced ```python no-run: reason, or stands below <!-- not run: reason -->, and is listed with the reason.
Blocks fenced ```console are parsed by the command line itself. Each check has a control that shows that it can fail.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer

import crossent
from crossent import cli
from crossent.compute.losses import LOSSES
from crossent.minimise import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>[^>]+?) -->\s*\Z")


class Block(NamedTuple):
    """A fenced block: its line, what it is (python, console, …), its code, and why it is not run, if it is not."""

    line: int
    kind: str
    code: str
    reason: str | None


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        kind, _, rest = found["kind"].strip().partition(" ")
        comment = NOT_RUN.search(text, 0, found.start())
        fenced = rest.removeprefix("no-run").strip(" :") if rest.startswith("no-run") else None
        reason = comment["reason"] if comment else fenced
        code = re.sub(rf"^{found['indent']}", "", found["code"], flags=re.MULTILINE)
        yield Block(line, kind, code, reason)


def run(text: str, page: str) -> int:
    """Run the Python blocks of a page in one namespace; give how many there were."""
    namespace: dict[str, object] = {"__name__": f"page_{Path(page).stem}"}
    # dataclasses look up the module they are defined in, so there must be one.
    module = type(sys)(str(namespace["__name__"]))
    vars(module).update(namespace)
    sys.modules[module.__name__] = module
    count = 0
    try:
        for block in blocks(text):
            if block.kind == "python" and block.reason is None:
                # Blank lines before it, so that a traceback names the line of the page.
                exec(compile("\n" * block.line + block.code, page, "exec"), vars(module))
                count += 1
    finally:
        del sys.modules[module.__name__]
    return count


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of one's own, and one thread: several would wait for each other on small tensors."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    text = page.read_text(encoding="utf-8")
    run(text, name(page))
    for block in blocks(text):
        if block.kind == "python" and block.reason is not None:
            print(f"not run: {name(page)}:{block.line}: {block.reason}")
            assert block.reason, f"{name(page)}:{block.line}: say why it is not run"


def test_the_pages_that_should_have_blocks_have_them() -> None:
    found = {name(page): [b.kind for b in blocks(page.read_text(encoding="utf-8"))] for page in PAGES}
    for page in ("index", "algebra", "losses", "guides/fit", "guides/evaluate", "guides/pytorch"):
        assert "python" in found[f"docs/{page}.md"]
    assert sum(kinds.count("console") for kinds in found.values()) > 5


def test_blocks_can_fail(workplace: Path) -> None:
    assert run("```python\nx = 1\n```\ntext\n```python\nassert x == 1\n```\n", "control.md") == 2
    with pytest.raises(AssertionError):
        run("```python\nassert 1 == 2\n```\n", "control.md")
    skipped = "<!-- not run: it would take a day -->\n```python\nassert 1 == 2\n```\n"
    assert run(skipped, "control.md") == 0
    assert [b.reason for b in blocks(skipped)] == ["it would take a day"]
    assert [b.reason for b in blocks("```python no-run: too long\n1 / 0\n```\n")] == ["too long"]


def commands(code: str) -> Iterator[list[str]]:
    """The crossent commands of a console block, as lists of words."""
    for line in code.replace("\\\n", " ").splitlines():
        if not line.startswith("$ "):
            continue
        words = shlex.split(line[2:], comments=True)
        for start in [i for i, word in enumerate(words) if word == "crossent"]:
            if start == 0 or words[start - 1] in ("&&", ";", "|"):
                rest = words[start + 1 :]
                stop = next((i for i, word in enumerate(rest) if word in ("&&", ";", "|", ">")), len(rest))
                yield rest[:stop]


def parse(words: list[str]) -> None:
    """Let the command line parse, and not run, a command."""
    group = typer.main.get_command(cli.app())
    assert words, "crossent without a command"
    if words[0].startswith("-"):
        assert words[0] in {option for parameter in group.params for option in parameter.opts} | {"--help"}
        return
    assert words[0] in group.commands, f"there is no command {words[0]!r}"
    command = group.commands[words[0]]
    command.make_context(words[0], [word for word in words[1:] if word != "--help"], resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_with_their_options(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind == "console":
            for words in commands(block.code):
                parse(words)


@pytest.mark.parametrize("wrong", ["fits digits", "fit digits --speed 3", "fit digits --seed soon", "predict folder"])
def test_commands_can_be_wrong(wrong: str) -> None:
    (words,) = commands(f"$ pip install x && crossent {wrong} | head\n")
    assert words == wrong.split()
    refused = ""
    try:
        parse(words)
    except AssertionError as trouble:
        refused = str(trouble)
    except Exception as trouble:
        # Typer brings a click of its own, so that the class has no name to import it by.
        refused = next(kind.__name__ for kind in type(trouble).__mro__ if kind.__name__ == "UsageError")
    assert refused


# Not language_model.py, which needs transformers: tests/models/test_example.py runs it.
SMALL = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "language_model")


@pytest.mark.parametrize("example", SMALL, ids=lambda path: path.name)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    # Threads of two processes that spin while they wait would take turns: one thread is faster here.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    if example.stem == "pytorch_loop":
        before, after = (float(v) for v in re.findall(r"(\d+\.\d+) nats", done.stdout))
        assert after < 0.3 < before
    if example.stem == "own_predictions":
        assert (tmp_path / "breast_cancer.html").stat().st_size > 10_000
        assert crossent.Record.read(tmp_path / "breast_cancer.json")["accuracy"].value > 0.9


def test_there_are_examples() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} >= {"pytorch_loop", "own_predictions"}


def dead_links(text: str, page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    prose = FENCE.sub("", text)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        if not place.exists() or (heading and heading not in headings(place)):
            dead.append(target)
    return dead


def headings(page: Path) -> set[str]:
    """The anchors of a page, as Python-Markdown makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title.encode("ascii", "ignore").decode()).strip().lower() for title in titles)
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page.read_text(encoding="utf-8"), page) == []


def test_links_can_be_dead() -> None:
    text = "[a](index.md) [b](nowhere.md) [c](record.md#numbers) [d](record.md#no-such) [e](https://example.org/x)"
    assert dead_links(text, ROOT / "docs" / "algebra.md") == ["nowhere.md", "record.md#no-such"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").as_posix()
        if place.split("/")[0] not in ("decisions", "reference"):
            assert f": {place}\n" in navigation, place


def test_every_loss_and_every_setting_is_described() -> None:
    losses = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for loss in LOSSES:
        assert f"| `{loss.__name__}(" in losses, loss.__name__
        assert f"::: crossent.compute.losses.{loss.__name__}\n" in api, loss.__name__
    guide = (ROOT / "docs" / "guides" / "fit.md").read_text(encoding="utf-8")
    for setting, value in Recipe().to_dict().items():
        row = next((line for line in guide.splitlines() if line.startswith("| ") and f"`{setting}`" in line), None)
        assert row is not None, setting
        names, values = (cell.strip().split(", ") for cell in row.split("|")[1:3])
        written = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        assert values[names.index(f"`{setting}`")] == written, setting


def test_every_public_name_is_in_the_api() -> None:
    api = set(re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    rooms = {"compute", "measure", "minimise", "report"}
    listed = {place.rpartition(".")[2] for place in api}
    assert {public for public in crossent.__all__ if public not in rooms} - listed == set()


def test_the_changelog_has_this_version() -> None:
    titles = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert crossent.__version__ in titles
