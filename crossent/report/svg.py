"""A matplotlib figure as SVG that belongs to the page it stands in: the page's colours, the page's letters.

Figures are drawn in ink colours that stand for roles; here each is exchanged for the CSS variable of the same
role, so that one picture serves a light and a dark page. Text stays text and takes the page's font.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from crossent.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_ROLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", PAPER: "--paper"}

_STYLE = {
    "svg.fonttype": "none",  # letters stay letters: they can be searched, and the page's font draws them
    "svg.hashsalt": "crossent",  # the same record gives the same bytes
    "text.parse_math": False,  # a class called "$x$" is a name
    "font.family": "DejaVu Sans",  # comes with matplotlib and is wide: what fits it, fits the page's font
    "font.size": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelpad": 6,
    "axes.linewidth": 1,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure of so many points to draw on, in this house's style and no user's.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "cli", "drawing a report")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # Only matplotlib's measure of the letter suffers: the page's own font draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def inline(figure: Figure, name: str, title: str) -> str:
    """Write the figure as an ``<svg>`` element for the inside of a page.

    Args:
        figure: drawn inside ``drawing``.
        name: prefix of every id, so that pictures on one page do not take one another's.
        title: what a person who cannot see the picture is told.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    sheet = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(sheet, metadata=nothing)
    root = ElementTree.fromstring(sheet.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style sheet would rule the whole page; what it says is put on the root below.
            if _local(child.tag) in {"style", "metadata"}:
                parent.remove(child)
    wanted = {target for element in root.iter() for target in _targets(element)}
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = _attributes(element, name, wanted)
    heading = ElementTree.Element("title")
    heading.text = title
    root.insert(0, heading)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": title,
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(element: ElementTree.Element, name: str, wanted: set[str]) -> dict[str, str]:
    kept = {}
    for key, value in element.attrib.items():
        key = _local(key)
        if key == "id":
            if value in wanted:
                kept["id"] = f"{name}-{value}"
        elif key == "href":
            kept["href"] = f"#{name}-{value[1:]}"
        elif key == "style":
            kept["style"] = _styled(value)
        else:
            kept[key] = value.replace("url(#", f"url(#{name}-")
    return kept


def _styled(style: str) -> str:
    """Exchange colours for roles, and drop the font: the page has one."""
    kept = []
    for rule in filter(None, (rule.strip() for rule in style.split(";"))):
        key, _, value = (part.strip() for part in rule.partition(":"))
        if key == "font":
            key, value = "font-size", next(word for word in value.split() if word.endswith("px"))
        if key != "font-family":
            role = _ROLES.get(value)
            kept.append(f"{key}: var({role})" if role else f"{key}: {value}")
    return "; ".join(kept)


def _targets(element: ElementTree.Element) -> Iterator[str]:
    for key, value in element.attrib.items():
        if _local(key) == "href":
            yield value.removeprefix("#")
        elif value.startswith("url(#"):
            yield value.removeprefix("url(#").removesuffix(")")


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
