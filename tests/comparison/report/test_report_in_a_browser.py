"""The report in Chromium: no error in its console, and everything that can be operated does what it says."""

import re

import pytest

from rahf.comparison.report.run import report
from tests.helpers import chromium
from tests.helpers.predictions_maker import labels_of, write_predictions

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install rahf[browser]")
pytestmark = pytest.mark.skipif(chromium.PATH is None, reason=chromium.ABSENT)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.PATH, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    labels = labels_of(tiny_data)
    files = [write_predictions(folder, labels, f"{n}.jsonl", noise=0.1 + 0.4 * n, seed=n) for n in (0, 1)]
    out = report([str(one) for one in files], data=str(tiny_data), out=folder / "r.html", resamples=2).path
    return out.as_uri()


@pytest.fixture
def expect():
    """Playwright's assertions, which wait: a loaded machine draws late."""
    return sync_api.expect


@pytest.fixture
def page(browser, address, request):
    """The report in a window as of the marker `window`; the test fails if the page complains or asks for anything."""
    context = browser.new_context(**getattr(request, "param", {}))
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda one: problems.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    page.goto(address)
    yield page
    context.close()
    assert problems == []


def value_of(locator, value, event="input"):
    """Sets a range input as a drag does."""
    locator.evaluate(
        f"node => {{ node.value = {value}; node.dispatchEvent(new Event('{event}', {{bubbles: true}})); }}"
    )


def orders(page, selector):
    """The value that the gallery is ordered by, of all items of a selector."""
    return page.eval_on_selector_all(selector, "nodes => nodes.map(n => Number(n.dataset.values.split(',')[0]))")


def test_gallery(page, expect):
    first = page.locator(".item").first
    stage, cut = first.locator(".stage"), first.locator(".cut")
    cut.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(cut).to_have_value("60")
    expect(stage).to_have_attribute("style", re.compile("--cut: ?60%"))
    assert "60%" in first.locator(".side.r").evaluate("node => getComputedStyle(node).clipPath")
    box = stage.bounding_box()
    stage.click(position={"x": box["width"] * 0.25, "y": box["height"] / 2})
    expect(cut).to_have_value(re.compile("^2[0-9]$"))

    expect(first.locator(".side.l .pic")).to_have_css("background-image", re.compile('^url\\("data:image/jpeg'))
    marks = first.locator(".side.l .map.k0")
    expect(marks).to_be_visible()
    page.get_by_label("implausibility", exact=True).uncheck()
    expect(marks).to_be_hidden()
    page.get_by_label("implausibility", exact=True).check()
    value_of(page.locator("#strength"), 0.3)
    expect(marks).to_have_css("opacity", "0.3")

    page.locator("#right").select_option("2")
    expect(first.locator(".tag.r")).to_have_text("people")
    expect(first.locator("[data-side='2']").first).to_be_visible()
    expect(first.locator("[data-side='1']").first).to_be_hidden()
    page.locator("#swap").click()
    expect(first.locator(".tag.l")).to_have_text("people")
    page.locator("#right").select_option("")
    expect(first.locator(".side.r")).to_be_hidden()
    expect(cut).to_be_hidden()


def test_filters_and_order(page, expect):
    shown, total = page.locator(".item:not([hidden])"), 10
    expect(shown).to_have_count(total)
    word = page.locator(".item").nth(3).get_attribute("data-text").split()[-1]  # the uid
    page.locator("#search").fill(word)
    expect(shown).to_have_count(1)
    expect(page.locator("#shown")).to_have_text(f"1 of {total} shown")
    page.locator("#search").fill("no such words")
    expect(shown).to_have_count(0)
    page.locator("#search").fill("")
    value_of(page.locator("#top"), 30)
    expect(shown).to_have_count(3)
    upper, rest = orders(page, ".item:not([hidden])"), orders(page, ".item[hidden]")
    assert upper == sorted(upper, reverse=True) and min(upper) >= max(rest)
    value_of(page.locator("#top"), 100)
    page.locator("#way").click()
    expect(page.locator("#way")).to_have_text("low first")
    assert orders(page, ".item") == sorted(orders(page, ".item"))


def test_enlarge_and_close_by_keyboard(page, expect):
    page.locator(".item .enlarge").first.focus()
    page.keyboard.press("Enter")
    stage = page.locator("#large .stage")
    expect(stage).to_be_visible()
    value_of(page.locator("#large .cut"), 10)
    expect(stage).to_have_attribute("style", re.compile("--cut: ?10%"))
    page.keyboard.press("Escape")
    expect(stage).to_have_count(0)


@pytest.mark.parametrize("page", [{"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}], indirect=True)
def test_dark_on_a_phone(page, expect):
    body, theme = page.locator("body"), page.locator("#theme")
    dark, light = "rgb(19, 21, 26)", "rgb(245, 246, 248)"
    expect(body).to_have_css("background-color", dark)
    theme.click()
    expect(body).to_have_css("background-color", light)
    expect(theme).to_have_text("Dark")
    theme.click()
    expect(body).to_have_css("background-color", dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".item .stage").first.bounding_box()["width"] > 300


def test_everybody_can_read_it(page):
    chromium.check_light_and_dark(page, "report", leave_out=".item ~ .item")
    # What is hardly to be seen is found: else the check above would find nothing, either.
    page.evaluate("document.querySelector('h1').style.color = '#2a2a2a'")
    assert "color-contrast" in {line.split(":")[0] for line in chromium.accessibility_faults(page, ".item, table")}
