"""A search as a person sees it: every trial in the picture and the table, whatever became of it."""

import io
import re

import pytest
from rich.console import Console

from crossent.record import Record
from crossent.report import html, search, search_plots, show

STATES = ["complete", "complete", "pruned", "failed", "complete", "stopped", "lost", "pruned", "pruned"]
LOSSES = [0.30, 0.28, 0.32, None, 0.29, None, None, 9.0, 0.31]
SENTENCES = {3: "mse has a loss of its own & <no> other.", 5: "Stopped by hand.", 6: "Its process ended."}


def searched(**changed):
    gaps = [None if loss is None else loss - 0.28 for loss in LOSSES]
    trials = {
        "trial": list(range(9)),
        "state": STATES,
        "cross_entropy": LOSSES,
        "low": [None if state != "complete" else loss - 0.1 for state, loss in zip(STATES, LOSSES, strict=True)],
        "high": [None if state != "complete" else loss + 0.1 for state, loss in zip(STATES, LOSSES, strict=True)],
        "gap": gaps,
        "gap_low": [gap and gap - 0.01 for gap in gaps],
        "gap_high": [gap and gap + 0.01 for gap in gaps],
        "folds": [5, 5, 1, 0, 5, 2, 0, 1, 1],
        "seconds": [2.25, 2.0, 0.5, 0.1, 2.0, 1.0, None, 0.5, 0.5],
        "settings": ["the recipe to start from", *(f"--set width={8 * place}" for place in range(1, 9))],
        "sentence": [SENTENCES.get(place, "0.3 nats.") for place in range(9)],
    }
    importance = {"setting": ["width", "loss"], "importance": [0.9, 0.1], "chance": [0.6, 0.7]}
    tables = {"trials": trials | changed, "importance": importance}
    return Record("fit", "a search", tables=tables, facts={"searched": ["8 trials: so many.", "Another minute."]})


def marks(svg):
    """How many points, hollow points, arrows and crosses there are: used shapes in colours that no tick has."""
    return len(re.findall(r"<use [^>]*var\(--(accent|muted)\)", svg))


def test_every_trial_is_in_the_picture():
    whole = search_plots.trials(searched())
    for place in range(9):
        kept = {name: column[:place] + column[place + 1 :] for name, column in searched().tables["trials"].items()}
        assert marks(search_plots.trials(searched(**kept))) == marks(whole) - 1, place
    nothing = searched(cross_entropy=[None] * 9, state=["failed"] * 9)
    assert search_plots.trials(nothing) == ""


def test_the_line_is_the_lowest_so_far_of_trials_judged_on_all_folds():
    """A pruned trial is no answer, however low it might have come; an arrow stands for what is far above."""
    svg = search_plots.trials(searched())
    assert search_plots.trials(searched(cross_entropy=[*LOSSES[:7], 10.0, 0.31])) == svg  # above is above
    assert search_plots.trials(searched(cross_entropy=[0.30, 0.27, *LOSSES[2:]])) != svg

    def line(record):
        found = re.search(r'<path d="([^"]*)"[^>]*stroke-width: 1\.4', search_plots.trials(record))
        return found[1].count("L")

    assert line(searched()) == 4  # level, down at trial 1, level to the end, and there once more
    assert line(searched(state=["complete", "pruned", *STATES[2:]])) == 4  # down at trial 4
    assert line(searched(cross_entropy=[0.2, *LOSSES[1:]])) == 2


def test_a_setting_that_chance_explains_is_pale():
    def pale(record):
        return search_plots.importance(record).count("opacity: 0.3")

    assert pale(searched()) == 1
    before = searched()
    before.tables["importance"] = {"setting": ["width", "loss"], "importance": [0.9, 0.1]}  # of older records
    assert pale(before) == 0
    assert search_plots.importance(Record("fit", "none")) == ""


def test_the_table_has_the_best_first_and_failures_with_their_sentence():
    rows = search.sheet_of_trials(searched(), 100).rows
    assert [row[0] for row in rows] == ["1", "4", "0", "8", "2", "7", "3", "5", "6"]
    assert rows[0][1:] == ["0.280", "0.18 to 0.38", "5", "2.0", "width=8"]
    assert rows[3][2] == "–"
    assert rows[6][-1] == "failed: mse has a loss of its own & <no> other. (width=24)"
    few = search.sheet_of_trials(searched(), 3)
    assert len(few.rows) == 3
    assert few.left_out == "The 3 best of 9 trials; the record holds all."
    assert search.sheet_of_trials(Record("fit", "none"), 3) is None


@pytest.mark.parametrize("width", [80, 160])
def test_the_page_and_the_terminal_have_them(width):
    screen = io.StringIO()
    show(searched(), Console(file=screen, width=width, highlight=False, markup=False))
    page = html.page(searched())
    for text in (screen.getvalue(), page):
        words = " ".join(text.split())
        assert "8 trials: so many. Another minute." in words
        assert "what happened" in words
        assert "ettings mattered" in words
    assert 'id="trials"' in page
    assert "&lt;no&gt; other" in page
    without = html.page(Record("fit", "none"))
    assert "trial" not in without.partition("<body>")[2]
