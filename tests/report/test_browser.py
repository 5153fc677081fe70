"""The page as a browser sees it: silent, alone, and never wider than the screen."""

import os
import shutil

import pytest

from crossent.report import write

SCREENS = {
    "phone": {"viewport": {"width": 390, "height": 844}},
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


PATIENCE = 300_000  # milliseconds


def _absent(sentence):
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        _absent("No chromium on the path: install it (Debian: apt install chromium) to see the page in a browser.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("No playwright: install it (pip install playwright) to see the page in a browser.")
    with sync_playwright() as playwright:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        # Minutes, where half a minute is usual: while the cluster of the Ray tests goes down, on a machine with other
        # work, a browser may need longer than that to come up, and none of these tests is about speed.
        opened = playwright.chromium.launch(executable_path=program, args=options, timeout=PATIENCE)
        yield opened
        opened.close()


def _page(browser, **screen):
    context = browser.new_context(**screen)
    context.set_default_timeout(PATIENCE)
    return context.new_page(), context


def _look(browser, path, **screen):
    """Open a page and list everything about it that a page of ours must not do."""
    troubles = []
    page, context = _page(browser, **screen)
    own = path.as_uri()
    page.on("console", lambda said: said.type in {"error", "warning"} and troubles.append(f"said: {said.text}"))
    page.on("pageerror", lambda error: troubles.append(f"failed: {error}"))
    page.on(
        "request",
        lambda asked: asked.url != own and not asked.url.startswith("data:") and troubles.append(f"asked: {asked.url}"),
    )
    page.goto(own, wait_until="load")
    width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if width > 0:
        troubles.append(f"overflows by {width} pixels")
    context.close()
    return troubles


@pytest.mark.parametrize("screen", SCREENS)
def test_a_page_is_silent_alone_and_fits(browser, record, screen, tmp_path):
    write(record, tmp_path / "report.html")
    assert _look(browser, tmp_path / "report.html", **SCREENS[screen]) == []


@pytest.mark.parametrize(
    ("body", "trouble"),
    [
        ("<script>console.error('ouch')</script>", "said: ouch"),
        ("<script>console.warn('hm')</script>", "said: hm"),
        ("<script>missing()</script>", "failed: "),
        ("<img src='http://127.0.0.1:9/picture.png' alt=''>", "asked: http://127.0.0.1:9/picture.png"),
        ("<div style='width: 500px'>wide</div>", "overflows by "),
    ],
)
def test_the_look_sees_each_kind_of_trouble(browser, tmp_path, body, trouble):
    """The negative controls: a checker that lets these pass would let anything pass."""
    (tmp_path / "bad.html").write_text(f"<!doctype html><link rel=icon href='data:,'>{body}", encoding="utf-8")
    found = _look(browser, tmp_path / "bad.html", **SCREENS["phone"])
    assert any(line.startswith(trouble) for line in found), found


def test_a_dark_page_is_dark_and_its_pictures_too(browser, case, tmp_path):
    write(case("digits_fit"), tmp_path / "report.html")
    colours = {}
    for screen in ("desktop", "dark"):
        page, context = _page(browser, **SCREENS[screen])
        page.goto((tmp_path / "report.html").as_uri())
        colours[screen] = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " getComputedStyle(document.querySelector('#decomposition svg text')).fill]"
        )
        context.close()
    for paper, ink, letter in colours.values():
        assert ink == letter
        assert ink != paper
    assert _brightness(colours["desktop"][0]) > 200 > 60 > _brightness(colours["dark"][0])


def test_a_printed_page_leaves_nothing_out(browser, case, tmp_path):
    write(case("hundred_classes"), tmp_path / "report.html")
    page, context = _page(browser, **SCREENS["dark"])
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate(_HIDDEN_ROWS) > 0  # on a screen a long table scrolls in its frame
    page.emulate_media(media="print")
    assert page.evaluate(_HIDDEN_ROWS) == 0
    assert _brightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 255
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()


_HIDDEN_ROWS = "Math.max(...[...document.querySelectorAll('.scroll')].map(s => s.scrollHeight - s.clientHeight))"


def _brightness(colour):
    channels = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(channels) / 3
