"""Figures of features give back what they draw; pages escape everything, and work in a real browser."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from reasoning_features.interpretation import feature_views
from reasoning_features.interpretation.feature_views import CHARACTERS
from reasoning_features.interpretation.features import Example, FeatureInterface

NASTY = "<script>alert('x')</script>\" onload=\"alert(1)\" & ' </pre></title>"


def interface(feature: int, **changes) -> FeatureInterface:
    values = np.array([0, 1.5, 0.75, 3.0], np.float32)
    made = dict(
        feature=feature, score=0.01 * feature, rank=10 - feature, density=0.1 / feature, maximum=3.0,
        histogram=np.array([4, 8]), edges=np.array([0.5, 1.0, 2.0]),
        positive=[(" go", 2.0)], negative=[("\n", -1.0)],
        examples=[Example(feature, 0, ("So", " wait", ",", "\nlet"), values, 3)], mode="exploration",
    )  # fmt: skip
    return FeatureInterface(**(made | changes))


THREE = [
    interface(9, mode="reflection", effects={"persistence": 0.5}),
    interface(5, mode=None, effects={"persistence": -0.2}),
    interface(2, examples=[], histogram=np.zeros(0, int), edges=np.ones(1)),
]


class Strict(HTMLParser):
    """Notes the tags there are, and that every one is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_everything_shown_is_escaped():
    nasty = interface(
        1,
        mode=NASTY, description=NASTY, effects={NASTY: 1.0},
        positive=[(NASTY, 1.0)], negative=[(NASTY, -1.0)],
        examples=[Example(1, 0, (NASTY, "\x00\ud800"), np.ones(2, np.float32), 0)],
    )  # fmt: skip
    pages = feature_views.feature_page(nasty), feature_views.index_page([nasty], NASTY)
    for scripts, page in enumerate(pages):  # the index has one
        parsed = Strict(page)
        assert parsed.open == []
        assert sum(tag == "script" for tag, _ in parsed.seen) == scripts
        assert not any(name.startswith("on") for _, attributes in parsed.seen for name in attributes)
        assert "alert(1)" in page and "\x00" not in page
        page.encode()
    # a page within an attribute holds nothing that ends it
    (frame,) = Strict(feature_views.embed(nasty)["text/html"]).seen
    assert frame[0] == "iframe" and frame[1]["srcdoc"] == feature_views.feature_page(nasty, navigation=False)


def test_nothing_is_loaded_from_elsewhere():
    for page in (feature_views.feature_page(THREE[0]), feature_views.index_page(THREE, "t")):
        for tag, attributes in Strict(page).seen:
            assert tag not in {"link", "img", "iframe"} and "src" not in attributes, tag
            assert re.fullmatch(r"(feature_\d+|index)\.html", attributes.get("href") or "index.html")
        assert "@import" not in page and "url(" not in page and "http" not in page


def test_pages_are_written_and_noted(run):
    index = feature_views.write_pages(THREE, run, "Features")
    names = {path.name for path in index.parent.iterdir()}
    assert names == {"index.html", "feature_9.html", "feature_5.html", "feature_2.html"}
    assert {path for path in run._written if path.endswith(".html")} == {
        f"figures/{run.settings.run}/features/{name}" for name in names
    }
    # pages of features that are no longer among them go
    feature_views.write_pages(THREE[:1], run, "Features")
    assert {path.name for path in index.parent.iterdir()} == {"index.html", "feature_9.html"}
    # a reader of Markdown gets a link
    said = feature_views.embed(THREE[0])["text/markdown"]
    assert said.startswith("[Feature 9](features/feature_9.html) (reflection, ReasonScore 0.09, rank 1)")


def order(browser) -> list[str]:
    return [row.text for row in browser.find_elements("css selector", "tbody td:nth-child(2)")]


@pytest.mark.slow
def test_the_index_opens_from_disk_sorts_and_leads_to_pages(run):
    """In real headless Chromium; what it says to its console is kept."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium with its chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        browser.get(f"file://{feature_views.write_pages(THREE, run, 'Features')}")
        assert browser.title == "Features" and order(browser) == ["9", "5", "2"]
        heads = {head.text.split()[0]: head for head in browser.find_elements("css selector", "th button")}
        # one without a mode comes last either way
        for name, orders in {"mode": ("295", "925"), "density": ("259", "952")}.items():
            for expected in orders:
                heads[name].click()
                assert order(browser) == [*expected], name
        (sorted_by,) = browser.find_elements("css selector", "th[aria-sort]")
        assert sorted_by.get_attribute("aria-sort") == "ascending"

        browser.find_element("link text", "9").click()
        assert browser.title == "Feature 9" and browser.current_url.endswith("/feature_9.html")
        spans = browser.find_elements("css selector", "pre span")
        assert [span.get_attribute("title") for span in spans] == ["1.5", "0.75", "3"]
        assert len(browser.find_elements("css selector", "svg rect")) == 2
        browser.find_element("link text", "all features").click()
        assert browser.title == "Features" and browser.get_log("browser") == []


def drawn_example(feature: int = 7, n: int = 41, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    words = (" wait", ",", " $x_", "\n", "34", " <b>")
    pieces = tuple(words[i] for i in rng.integers(0, len(words), n))
    values = np.maximum(rng.normal(-0.5, 1, n), 0).astype(np.float32)
    return Example(feature, 0, pieces, values, int(values.argmax()))


def test_the_interface_draws_what_it_returns():
    shown = interface(
        7, positive=[(f" token{i} that is long", 3.0 - i) for i in range(10)],
        negative=[("$", -1.0), ("\n", -0.5)],
        examples=[drawn_example(seed=i) for i in range(8)],
    )  # fmt: skip
    _, data = feature_views.draw_interface(shown)
    counts = {"example": 6 * 41, "positive": 10, "negative": 2, "histogram": 2}
    assert data["part"].value_counts().to_dict() == counts
    assert data.loc[data["part"] == "histogram", "value"].tolist() == [4, 8]
    assert data.loc[data["part"] == "negative", "text"].tolist() == ["$", "⏎"]
    # of a feature that is never active there are the logits
    assert set(feature_views.draw_interface(THREE[2])[1]["part"]) == {"positive", "negative"}


def test_snippets_are_grouped():
    exploration = [drawn_example(1), drawn_example(2, seed=1)]
    groups = {"exploration": exploration, "reflection": [drawn_example(3, seed=2)], "mixed": []}
    fig, data = feature_views.draw_snippets(groups, {1: 10.0, 2: 3.0, 3: 3.0})
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["exploration", "reflection"]
    assert data.groupby("group")["snippet"].max().to_dict() == {"exploration": 2, "reflection": 1}
    assert len(data) == 3 * 41
    assert fig.legends[0].get_texts()[-1].get_text() == "⏎ is a new line"


def test_lines_break_between_tokens_and_lose_nothing():
    long = Example(0, 0, ("a" * 60, "b" * 60, "c" * 250, "d"), np.arange(4, dtype=np.float32), 3)
    lines = feature_views.wrapped(long)
    assert [sum(len(text) for text, _ in line) for line in lines] == [60, 60, 96, 96, 59]
    assert "".join(text for line in lines for text, _ in line) == "".join(long.pieces)
    assert lines[-1] == [("c" * 58, 2.0), ("d", 3.0)]
    assert all(sum(len(t) for t, _ in line) <= CHARACTERS for line in feature_views.wrapped(drawn_example()))
    # what cannot be drawn becomes a sign
    assert feature_views.visible("a\n\t\x00\ud800 b") == "a⏎⇥□□ b"
