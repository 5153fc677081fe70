"""The house: who may import whom, what is loaded when, and that the README's tree is the real one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "crossent"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    # The package of the folder that is linted comes first on the path, before any installed one.
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {program}", "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def copy_of_the_house(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "crossent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_imports_run_downwards_only(tmp_path: Path) -> None:
    found = lint(copy_of_the_house(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("place", "planted", "contract"),
    [
        ("record.py", "import crossent.cli", "Data goes down through the rooms"),
        ("measure/intervals/interval.py", "import crossent.minimise.fit", "Data goes down through the rooms"),
        ("compute/stats.py", "import crossent.compute.rows", "Inside compute"),
        ("report/text.py", "import torch", "The report reads records"),
        ("minimise/data/split.py", "import crossent.minimise.fit", "Inside minimise"),
        ("minimise/training/judge.py", "import crossent.minimise.training.train", "Inside the rooms of minimise"),
    ],
)
def test_an_import_upwards_is_caught(tmp_path: Path, place: str, planted: str, contract: str) -> None:
    file = copy_of_the_house(tmp_path) / "crossent" / place
    file.write_text(
        file.read_text().replace("from __future__ import annotations", f"from __future__ import annotations\n{planted}")
    )
    found = lint(tmp_path)
    assert found.returncode != 0
    assert re.search(rf"{contract}.* BROKEN", found.stdout)


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


HEAVY = {
    *("numba", "triton", "matplotlib", "ray", "transformers", "pandas", "sklearn", "skrub", "pyarrow"),
    *("lightning", "lightning_fabric", "schedulefree", "optuna"),
}


def test_nothing_heavy_is_loaded_before_it_is_used() -> None:
    assert not loaded_by("import crossent") & {*HEAVY, "torch", "numpy"}
    compute = loaded_by("import crossent; crossent.cross_entropy")
    assert "torch" in compute
    assert not compute & {*HEAVY, "sympy"}  # sympy comes with Dynamo, and two seconds with it
    assert not loaded_by("import crossent; crossent.evaluate, crossent.fit") & HEAVY
    assert "pandas" in loaded_by("import pandas")  # the negative control: this way of looking does see


def test_every_public_name_is_there_and_the_type_checker_knows_it() -> None:
    import crossent

    assert all(getattr(crossent, name) is not None for name in crossent.__all__)
    text = (PACKAGE / "__init__.py").read_text()
    for name, home in crossent._HOME.items():
        if home not in ("crossent", "crossent.errors", "crossent.record"):
            assert f"import {name} as {name}" in text, f"{name} is public, and type checkers do not know it"
    with pytest.raises(AttributeError, match="crossent has no 'softmax_loss'"):
        crossent.softmax_loss  # noqa: B018


def test_no_file_has_a_name_that_says_nothing_or_holds_too_much() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    assert not [f for f in files if f.stem in {"utils", "util", "common", "helpers", "misc", "base"}]
    assert not {str(f.relative_to(ROOT)): n for f in files if (n := len(f.read_text().splitlines())) > 450}


COMPILERS = {"backends/cpu": "triton|ray", "backends/gpu": "numba|llvmlite"}


def knows_a_compiler(folder: str, text: str) -> bool:
    """Whether a file imports a compiler that is not its own: numba is for backends/cpu, triton for backends/gpu."""
    others = COMPILERS.get(folder, "numba|llvmlite|triton")
    return bool(re.search(rf"^\s*(import|from) ({others})\b", text, re.MULTILINE))


def test_only_the_backends_know_their_compilers() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not knows_a_compiler("/".join(file.parts[-3:-1]), file.read_text()), file
    assert knows_a_compiler("crossent/compute", "import torch\n    from numba import njit\n")
    assert knows_a_compiler("backends/cpu", "import triton\n")
    assert not knows_a_compiler("backends/cpu", "from numba import njit\n")


def names_in_tree(readme: str) -> list[str]:
    tree = re.search(r"```text\n(.*?)```", readme, re.DOTALL)
    assert tree is not None, "README has no tree"
    return re.findall(r"^ *([\w./-]+/?) {2,}\S", tree.group(1), re.MULTILINE)


def not_in_the_house(names: list[str]) -> list[str]:
    inside = {path.name for path in [*PACKAGE.rglob("*"), *ROOT.iterdir()]}
    return [name for name in names if name.strip("/").split("/")[-1] not in inside]


def test_readmes_tree_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    named = names_in_tree(readme)
    rooms = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(named)
    assert {"tests/", "benchmarks/", "docs/", "examples/"} <= set(named)
    assert not_in_the_house(named) == []
    assert not_in_the_house(names_in_tree(readme.replace("measure/ ", "attic/ "))) == ["attic/"]


def test_readmes_commands_are_the_ones_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for pattern in re.findall(r"grep -m1 -E '(.+?)' README.md", ci):
        assert len(re.findall(pattern, readme, re.MULTILINE)) == 1, pattern
    assert "pip install -c constraints.txt '.[cli]' && crossent fit digits" in readme
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in readme
