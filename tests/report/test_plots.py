import re
import warnings
from xml.etree import ElementTree

import matplotlib
import pytest

from crossent.record import Curve, Number, Record
from crossent.report import plots

NAMES = ("learning", "reliability", "decomposition", "classes", "concentration")
PICTURES = {name: getattr(plots, name) for name in NAMES}


def _all(record):
    return {name: svg for name, draw in PICTURES.items() if (svg := draw(record))}


def _elements(svg):
    return list(ElementTree.fromstring(svg).iter())


def test_which_pictures_a_record_gives(case):
    assert set(_all(case("digits_fit"))) == set(PICTURES) - {"concentration"}
    assert set(_all(case("binary"))) == set(PICTURES) - {"learning"}
    assert set(_all(case("in_a_range"))) == {"learning", "reliability", "decomposition"}
    assert set(_all(case("impossible"))) == {"reliability", "decomposition", "classes"}
    assert _all(case("empty")) == {}


def test_pictures_are_well_formed_and_say_what_they_are(record):
    for svg in _all(record).values():
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == root.findtext("{http://www.w3.org/2000/svg}title")


def test_ids_are_unique_on_a_page_and_every_reference_has_its_target(record):
    elements = [element for svg in _all(record).values() for element in _elements(svg)]
    ids = [element.attrib["id"] for element in elements if "id" in element.attrib]
    values = [value for element in elements for value in element.attrib.values()]
    targets = {value[1:] for value in values if re.fullmatch(r"#[\w-]+", value)}
    targets |= {target for value in values for target in re.findall(r"^url\(#([^)]*)\)$", value)}
    assert len(ids) == len(set(ids))
    assert targets <= set(ids)


def test_colours_are_the_page_s_own(record):
    for svg in _all(record).values():
        for element in _elements(svg):
            painted = [value for key, value in element.attrib.items() if key in {"style", "fill", "stroke"}]
            assert not any(re.search(r"#[0-9a-f]{6}|rgb|black|white", value) for value in painted), painted


def test_letters_are_letters_in_the_page_s_font(case):
    for svg in _all(case("digits_fit")).values():
        words = [element for element in _elements(svg) if element.tag.endswith("}text")]
        assert words
        assert "DejaVu" not in svg
        assert "<style" not in svg  # it would rule the whole page
        assert "<metadata" not in svg


def test_the_same_record_gives_the_same_bytes_and_another_one_others(case):
    assert _all(case("digits_fit")) == _all(case("digits_fit"))
    assert plots.classes(case("digits_fit")) != plots.classes(case("impossible"))


def test_drawing_leaves_the_user_s_settings_and_is_not_led_by_them(case):
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "path", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        drawn = _all(case("binary"))
        assert dict(matplotlib.rcParams) == before
    assert drawn == _all(case("binary"))


def test_letters_that_the_measuring_font_lacks_are_no_warning(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "日本語" in plots.classes(case("hostile"))


def test_names_in_a_picture_are_names(case):
    svg = plots.classes(case("hostile"))
    words = [element.text for element in _elements(svg) if element.tag.endswith("}text")]
    assert any(word.startswith("<script>alert(1)") for word in words)
    assert any(word.startswith("#040404 url(#p) i") for word in words)
    assert any(word.startswith("$\\frac{1}{2}$") for word in words)
    assert "<script" not in svg


def test_at_most_twenty_classes_are_drawn_the_dearest_first(case):
    svg = plots.classes(case("hundred_classes"))
    named = [element.text for element in _elements(svg) if (element.text or "").startswith("species")]
    table = case("hundred_classes").tables["per_class"]
    dearest = sorted(zip(table["cross_entropy"], table["class"], strict=True), reverse=True)[:20]
    assert named == [name for _, name in dearest]


def test_infinite_classes_are_named_infinite_and_empty_ones_left_out(case):
    words = [element.text for element in _elements(plots.classes(case("impossible")))]
    assert words.count("infinite") == 2
    assert "9" not in words


@pytest.mark.parametrize(("loss", "enlarged"), [(0.05, True), (0.6, False)])
def test_the_last_steps_are_enlarged_only_where_they_are_a_sliver(loss, enlarged):
    numbers = {"uncertainty": 2.3, "discrimination": 2.3 - loss, "miscalibration": -0.001}
    record = Record("evaluation", "", numbers={name: Number(value, "nats") for name, value in numbers.items()})
    assert ("left to know" in plots.decomposition(record)) is enlarged


def test_with_impossible_rows_the_steps_are_those_of_the_floored_loss(case):
    words = [element.text for element in _elements(plots.decomposition(case("impossible")))]
    assert "0.21" in words
    assert "infinite" not in words


def test_an_infinite_part_is_not_drawn(case):
    numbers = case("impossible").numbers | {"miscalibration": Number(float("inf"), "nats")}
    assert plots.decomposition(Record("evaluation", "", numbers=numbers)) == ""


def test_nothing_to_know_is_drawn_without_a_warning():
    names = ("uncertainty", "discrimination", "miscalibration")
    assert plots.decomposition(Record("fit", "", numbers={name: Number(0.0, "nats") for name in names}))


def test_a_point_is_filled_only_where_its_band_misses_the_diagonal():
    def filled(low, high):
        band = {} if low is None else {"low": [low], "high": [high]}
        curve = Curve([0.5], [0.6], "predicted", "observed", **band, n=[10])
        svg = plots.reliability(Record("evaluation", "", curves={"reliability": curve}))
        return len(re.findall("fill: var\\(--accent\\)", svg)) > len(re.findall("fill: var\\(--paper\\)", svg))

    assert filled(0.55, 0.65)
    assert not filled(0.45, 0.65)
    assert not filled(None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_have_no_place_are_left_out(value):
    curve = Curve([1, 2], [0.5, value], "epoch", "nats")
    record = Record("fit", "", curves={"training": curve, "reliability": Curve([value], [value], "", "")})
    assert "<svg" in plots.learning(record)
    assert plots.reliability(record) == ""


def test_a_share_between_two_points_of_the_concentration_is_on_the_line_between_them(case):
    svg = plots.concentration(case("binary"))
    assert "5 % of the rows carry 33 %" in svg  # a quarter of the way from 30 to 42
    straight = Record("evaluation", "", curves={"concentration": Curve([0.0, 1.0], [0.0, 1.0], "", "")})
    assert "carry 5 %" in plots.concentration(straight)


def test_the_band_and_the_isotonic_curve_are_drawn_where_the_record_has_them(case):
    record = case("binary")
    bare = Record(record.kind, record.title, curves={"reliability": record.curves["reliability"]})
    with_both, without = (plots.reliability(one).count("<path") for one in (record, bare))
    assert with_both == without + 2
