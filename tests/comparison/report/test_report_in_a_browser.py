"""The report in Chromium: no error in its console, and everything that can be operated does what it says."""

import shutil

import pytest

from rahf.comparison.report.run import report
from tests.helpers.predictions_maker import labels_of, write_predictions

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install rahf[browser]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
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


def visible(page):
    return page.locator(".item:visible").count()


def test_gallery(page):
    first = page.locator(".item").first
    stage, cut = first.locator(".stage"), first.locator(".cut")
    cut.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert stage.evaluate("node => node.style.getPropertyValue('--cut')") == "60%"
    assert "60%" in first.locator(".side.r").evaluate("node => getComputedStyle(node).clipPath")
    box = stage.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert 20 <= int(cut.input_value()) <= 30

    picture = first.locator(".side.l .pic")
    assert picture.evaluate("node => getComputedStyle(node).backgroundImage").startswith('url("data:image/jpeg')
    marks = first.locator(".side.l .map.k0")
    assert marks.is_visible()
    page.get_by_label("implausibility", exact=True).uncheck()
    assert not marks.is_visible()
    page.get_by_label("implausibility", exact=True).check()
    page.locator("#strength").evaluate("node => { node.value = 0.3; node.dispatchEvent(new Event('input')); }")
    assert marks.evaluate("node => getComputedStyle(node).opacity") == "0.3"

    page.locator("#right").select_option("2")
    assert first.locator(".tag.r").inner_text() == "people"
    assert (
        first.locator("[data-side='2']").first.is_visible() and not first.locator("[data-side='1']").first.is_visible()
    )
    page.locator("#swap").click()
    assert first.locator(".tag.l").inner_text() == "people"
    page.locator("#right").select_option("")
    assert not first.locator(".side.r").is_visible() and not cut.is_visible()


def test_filters_and_order(page):
    total = visible(page)
    word = page.locator(".item").nth(3).get_attribute("data-text").split()[-1]  # the uid
    page.locator("#search").fill(word)
    assert visible(page) == 1
    assert page.locator("#shown").inner_text() == f"1 of {total} shown"
    page.locator("#search").fill("no such words")
    assert visible(page) == 0
    page.locator("#search").fill("")
    page.locator("#top").evaluate("node => { node.value = 30; node.dispatchEvent(new Event('input')); }")
    assert visible(page) == -(-total * 3 // 10)
    values = page.eval_on_selector_all(
        ".item:not([hidden])", "nodes => nodes.map(n => Number(n.dataset.values.split(',')[0]))"
    )
    rest = page.eval_on_selector_all(".item[hidden]", "nodes => nodes.map(n => Number(n.dataset.values.split(',')[0]))")
    assert values == sorted(values, reverse=True) and min(values) >= max(rest)
    page.locator("#top").evaluate("node => { node.value = 100; node.dispatchEvent(new Event('input')); }")
    page.locator("#way").click()
    values = page.eval_on_selector_all(".item", "nodes => nodes.map(n => Number(n.dataset.values.split(',')[0]))")
    assert values == sorted(values)


def test_enlarge_and_close_by_keyboard(page):
    button = page.locator(".item .enlarge").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("#large .stage").is_visible()
    page.locator("#large .cut").evaluate(
        "node => { node.value = 10; node.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    assert page.locator("#large .stage").evaluate("node => node.style.getPropertyValue('--cut')") == "10%"
    page.keyboard.press("Escape")
    assert page.locator("#large .stage").count() == 0


@pytest.mark.parametrize("page", [{"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}], indirect=True)
def test_dark_on_a_phone(page):
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert dark == "rgb(19, 21, 26)"
    page.locator("#theme").click()
    assert page.evaluate(background) == "rgb(245, 246, 248)"
    assert page.locator("#theme").inner_text() == "Dark"
    page.locator("#theme").click()
    assert page.evaluate(background) == dark
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".item .stage").first.bounding_box()["width"] > 300
