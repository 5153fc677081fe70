"""The command line: one file for each command, which parses, calls a verb, writes what it found and prints it.

Every refusal is a sentence on standard error and exit status 2, with no traceback.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from crossent.errors import DataError, MissingExtra, require


def main() -> None:
    """Run the command line, and say in a sentence why it could not."""
    # Threads that spin while they wait are a catastrophe on a machine that is busy with something else. This has to be
    # said before torch is imported, and a user who has said otherwise is left alone.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        require("typer", "cli", "the command line")
        require("rich", "cli", "the command line")
        app()(prog_name="crossent")
    except (DataError, MissingExtra) as trouble:
        print(f"crossent: {trouble}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as trouble:  # importing can need the disk: a library of torch's looks for a temporary folder
        print(f"crossent: the system refuses what is needed here: {trouble}.", file=sys.stderr)
        sys.exit(2)


def app() -> Any:
    """Give the commands as one typer application."""
    import typer

    from crossent.cli.calibrate import calibrate
    from crossent.cli.compare import compare
    from crossent.cli.evaluate import evaluate
    from crossent.cli.export import export
    from crossent.cli.fit import fit
    from crossent.cli.predict import predict
    from crossent.cli.report import report
    from crossent.cli.tune import tune
    from crossent.cli.version import version

    commands = typer.Typer(
        help="Cross-entropy: minimise it (fit, tune), use the model (predict, export), measure it (evaluate, compare), "
        "mend it (calibrate), look at it (report).",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    for command in (fit, tune, predict, export, evaluate, compare, calibrate, report):
        commands.command()(command)
    commands.callback(invoke_without_command=True)(version)
    return commands
