import html.parser
import json
import subprocess
import sys

import pytest

from crossent.errors import DataError, MissingExtra
from crossent.record import Record
from crossent.report import headline, write

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(html.parser.HTMLParser):
    """Collects tags, ids and text, and whether every element that opens is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.words = [], [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def page(tmp_path):
    def written(record):
        write(record, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return written


def test_the_page_is_whole_and_asks_for_nothing(record, page):
    read = Reader(page(record))
    assert not read.open
    assert len(read.ids) == len(set(read.ids))
    assert not {"script", "iframe", "img", "object"} & set(read.tags)
    assert all(address.startswith(("#", "data:")) for address in read.addresses)


def test_the_headline_and_every_number_are_on_the_page(case, page):
    words = " ".join(" ".join(Reader(page(case("digits_fit"))).words).replace("\u00a0", " ").split())
    assert headline(case("digits_fit")) in words
    assert "refit no" in words  # as the command line has it
    for expected in (
        "0.072 nats (0.045 to 0.110)",
        "Learning curves",
        "The dashed line is epoch 37",
        "The column 'digit' holds 10 different",
        "−0.0121 to −0.0004",
        "crossent fit digits.csv",
        "1,149 train, 288 validation, 360 test",
        "label smoothing",
        "torch 2.13.0",
    ):
        assert expected in words


def test_an_evaluation_says_nothing_of_training(case, page):
    words = " ".join(Reader(page(case("binary"))).words)
    assert "Learning curves" not in words
    assert "Recipe" not in words
    assert "Before you trust" not in words


def test_impossible_rows_are_an_alarm_and_possible_ones_are_not(case, page):
    assert 'class="big alarm"' in page(case("impossible"))
    assert 'class="notes alarm"' in page(case("impossible"))
    assert 'class="big"' in page(case("digits_fit"))


def test_names_are_escaped_wherever_they_stand(case, page):
    written = page(case("hostile"))
    assert "&lt;script&gt;alert(0)&lt;/script&gt;" in written
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
    assert "{{ 7 * 7 }}" in written
    assert "onerror" not in "".join(tag for tag in Reader(written).tags)
    assert "\x1b" not in written
    assert "\x00" not in written


def test_the_same_record_gives_the_same_page(record, page):
    assert page(record) == page(record)


def test_a_page_that_cannot_be_written_leaves_nothing(case, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        write(case("empty"), tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("library", "purpose"), [("matplotlib", "drawing a report"), ("jinja2", "writing a report")])
def test_a_missing_library_is_named_with_its_extra(case, tmp_path, monkeypatch, library, purpose):
    monkeypatch.setitem(sys.modules, library, None)
    sentence = rf"{purpose} needs the library '{library}'.*pip install 'crossent\[cli\]'"
    with pytest.raises(MissingExtra, match=sentence):
        write(case("binary"), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def _run(program, *arguments):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_importing_the_room_loads_nothing_heavy():
    loaded = json.loads(_run("import json, sys, crossent.report; print(json.dumps(sorted(sys.modules)))"))
    assert "crossent.report.html" in loaded
    assert not {"torch", "numpy", "matplotlib", "jinja2", "rich"} & set(loaded)


def test_a_report_is_drawn_on_a_machine_without_torch(case, tmp_path):
    case("digits_fit").write(tmp_path / "record.json")
    program = """if True:
        import sys
        sys.modules["torch"] = None  # whoever imports it now gets ModuleNotFoundError
        from crossent.record import Record
        from crossent.report import show, write
        record = Record.read(sys.argv[1])
        write(record, sys.argv[2])
        show(record)
        assert "matplotlib.pyplot" not in sys.modules
    """
    printed = _run(program, str(tmp_path / "record.json"), str(tmp_path / "report.html"))
    assert "0.072 nats" in printed
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_record_read_from_its_file_gives_the_same_page(case, page):
    record = case("impossible")
    assert page(Record.from_json(record.to_json())) == page(record)


def test_slices_come_by_their_share_of_the_loss(case, page):
    shown = page(case("binary"))
    table = shown[shown.index('aria-label="By slice"') : shown.index('aria-label="By class"')]
    places = [table.index(name) for name in ("monthly", "Ghent", "[red]Łódź", "yearly")]
    assert places == sorted(places)
    for cell in ("city", "91.0", "0.550\u00a0to\u00a00.590", "infinite", "impossible rows"):
        assert cell in table, cell
    sure = case("binary")
    sure.tables["slices"]["impossible_rows"] = [0, 0, 0, 0]
    assert "impossible rows" not in page(sure).partition('aria-label="By slice"')[2].partition("By class")[0]
    assert "By slice" not in page(case("digits_fit"))


def test_rows_with_weights_are_counted_to_a_tenth(case, page):
    record = case("binary")
    record.tables["per_class"]["rows"] = [50246.54843808559, 3.0]
    shown = page(record)
    assert "50,246.5<" in shown
    assert "50246" not in shown
    assert "7,512<" in page(case("binary"))


def test_suspect_labels_are_marked_and_lead_to_what_that_means(case, page):
    shown = page(case("binary"))
    assert '<a href="#suspicion">label suspect</a>' in shown
    assert shown.count(">yes</td>") == 2
    assert "2 of these rows are" in shown.partition('id="suspicion"')[2]
    assert "suspect" not in page(case("digits_fit"))
