"""The folder of a run: never onto another run, tried before hours of work, left whole, for --resume, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from crossent.errors import DataError, require
from crossent.files import replacing, stem


def folder_for(data: str, output: Path | None, resume: bool) -> Path:
    """Where this run goes: never onto another run."""
    if output is None:
        first = Path("runs") / stem(data)
        numbered = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))]
        if resume:
            begun = [
                folder
                for folder in numbered[: _free(numbered)]
                if (folder / "checkpoint").exists() and not (folder / "model.json").exists()
            ]
            if not begun:
                raise DataError(f"there is no stopped run of {data!r} to go on with in {first.parent}{os.sep}.")
            return begun[-1]
        return numbered[_free(numbered)]
    if output.exists() and not output.is_dir():
        raise DataError(f"{str(output)!r} is a file; name a folder with -o.")
    if not output.exists() or (resume and any((output / name).exists() for name in ("checkpoint", "model.json"))):
        return output
    if (output / "model.json").exists():
        raise DataError(f"{str(output)!r} holds a finished run, which is not overwritten; name another folder with -o.")
    if (output / "checkpoint").exists():
        raise DataError(f"{str(output)!r} holds a run that was stopped; add --resume to go on, or name another folder.")
    if any(output.iterdir()):
        raise DataError(f"{str(output)!r} is not empty; name a new folder with -o, so that nothing is overwritten.")
    return output


def _free(numbered: list[Path]) -> int:
    return next(place for place, folder in enumerate(numbered) if not os.path.exists(folder))


def probe(folder: Path, made: list[Path]) -> None:
    """Find out before the training, not after it, that the folder cannot be written."""
    try:
        with replacing(folder / ".probe") as temporary:
            temporary.write_text("crossent was here")
        (folder / ".probe").unlink()
    except BaseException:
        _remove(made)
        raise


def require_writers() -> None:
    """Find out before the training, not after it, that a library is missing by which a run is written down."""
    for library, purpose in (
        ("safetensors", "saving a model"),
        ("skops", "saving how a table is prepared"),
        ("pyarrow", "writing predictions"),
        ("jinja2", "writing a report"),
        ("matplotlib", "drawing a report"),
    ):
        require(library, "cli", purpose)


def take_back(folder: Path, made: list[Path]) -> None:
    """Leave of a run that failed what --resume can go on from, and else nothing: no file, no folder it had made."""
    from crossent.minimise.run import FILES, MODEL, TEXT

    if not (folder / MODEL).exists():
        for place in folder.glob(f"{TEXT}-*"):
            shutil.rmtree(place, ignore_errors=True)
        for name in ("report.html", *FILES):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    _remove(made)


def _remove(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for place in folders:
        try:
            place.rmdir()
        except OSError:
            return
