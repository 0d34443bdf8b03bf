"""The page to touch: what is in it, and, in Chromium, that it follows the finger, swings and comes to rest."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from data_pipelines.video.volume import SpectralVolume
from rahf.core.errors import ArgumentError
from rahf.motion import modal, touch
from tests.helpers import chromium

SIZE = (120, 160)


def volume():
    """Three modes on a grid of 30 x 40: all of the middle sways, mostly along x; the border stands still."""
    rows, columns = np.mgrid[0:30, 0:40]
    bump = np.clip(1.4 - np.hypot((rows - 14.5) / 13, (columns - 19.5) / 17) * 1.4, 0, 1)[..., None]
    spectrum = np.zeros((4, 30, 40, 2), np.complex64)
    for term, size in ((1, 60), (2, 40), (3, 20)):
        spectrum[term] = size * np.exp(0.9j * term) * bump * np.array([1.0, 0.25 + 0.1j])
    return SpectralVolume(spectrum, 150, 30.0)


def photograph():
    """Grey, with a red square in the middle."""
    picture = np.full((*SIZE, 3), 120, np.uint8)
    picture[52:68, 72:88] = (230, 20, 20)
    return picture


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    touch.write_page(path, photograph(), volume(), name='a </script> & "photo"')
    return path


def data(page):
    return json.loads(re.search(r'application/json">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_the_page_asks_for_nothing(page):
    text = page.read_text()
    assert "default-src 'none'" in text and "{{" not in text
    assert re.findall(r"""(?:src|href)\s*=\s*["'][^"']+|https?://|url\(|import\s*\(|fetch\(|XMLHttp""", text) == []
    assert "<title>a &lt;/script&gt; &amp; &quot;photo&quot;</title>" in text


def test_its_integrator_is_that_of_the_library(page):
    values = data(page)
    modes = touch.page_modes(volume(), SIZE, 1.0, None, 0.06)
    np.testing.assert_allclose(np.reshape(values["transition"], (3, 2, 2)), modal.exact_step(modes, 1 / 120).transition)
    np.testing.assert_allclose(values["angular"], 2 * np.pi * np.array([0.2, 0.4, 0.6]))


def test_shapes_are_in_pixels_of_the_photograph():
    """Twice T/2 terms, four pixels of the photograph for one of the grid; the mask holds still what it covers."""
    modes = touch.page_modes(volume(), SIZE, 1.5, None, 0.06)
    expected = volume().spectrum[1, 15, 20, 0] * 2 / 150 * 4 * 1.5
    np.testing.assert_allclose(modes.shapes[0, 15, 20, 0], expected, rtol=1e-5)
    mask = np.ones(SIZE, np.float32)
    mask[:, :80] = 0
    shapes = touch.page_modes(volume(), SIZE, 1.0, mask, 0.06).shapes
    assert not shapes[:, :, :19].any() and shapes[:, :, 21:].any()


def test_a_pulled_pixel_follows_exactly():
    modes = touch.page_modes(volume(), SIZE, 1.0, None, 0.06)
    for pull in ((9.0, 0.0), (-4.0, 3.0)):
        flow = modal.displacement(modes, modal.modal_coordinates(modes, touch.pull_state(modes, 15, 20, pull)))
        assert flow[15, 20] @ pull == pytest.approx(np.dot(pull, pull), rel=1e-4)
    assert not touch.pull_state(modes, 0, 0, (9.0, 0.0)).position.any()  # the border does not move


def test_what_is_refused(tmp_path, monkeypatch):
    write = lambda name, **options: touch.write_page(tmp_path / name, photograph(), volume(), **options)  # noqa: E731
    with pytest.raises(ArgumentError, match="ends in .html"):
        write("page.mp4")
    with pytest.raises(ArgumentError, match="--damping 1.0: expected a share of critical damping"):
        write("page.html", damping=1.0)
    monkeypatch.setattr(touch, "MAX_BYTES", 15_000)
    with pytest.raises(ArgumentError, match=r"160 x 120 pixels would have .* --max-side \d+ should fit"):
        write("page.html")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser():
    with chromium.started() as opened:
        yield opened


def red_centre(shot):
    """Centre of the red pixels of a screenshot, (x, y)."""
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 170) & (pixels[..., 1] < 90))
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("drawing", ["webgl", "canvas"])
def test_in_a_browser(page, browser, tmp_path, drawing):
    """The square under the finger follows it, swings past its place when let go, and comes to rest there."""
    # The picture is shown four times as large.
    opened, messages, requests = chromium.tab(browser, 640, 536)
    opened.goto(page.as_uri() + ("#canvas" if drawing == "canvas" else ""))
    opened.wait_for_function("window.touch")
    assert opened.evaluate("touch.drawing") == drawing

    def look(name):
        opened.screenshot(path=tmp_path / name)
        return red_centre(tmp_path / name)

    before = look("before.png")
    opened.mouse.move(*before)
    opened.mouse.down()
    opened.mouse.move(*(before + [40, 10]), steps=4)
    opened.wait_for_timeout(400)
    held = look("held.png") - before
    assert np.abs(held - [40, 10]).max() < 8  # pixels of the screen
    x, y = opened.evaluate("touch.displacement(80, 60)")
    assert abs(x - 10) < 1 and abs(y - 2.5) < 1
    opened.mouse.up()
    swings = []
    for _ in range(12):
        opened.evaluate("touch.advance(0.25)")
        swings.append(opened.evaluate("touch.displacement(80, 60)")[0])
    assert min(swings) < -2  # past its place
    opened.evaluate("touch.advance(200)")
    assert opened.evaluate("touch.isResting()") and not any(opened.evaluate("touch.state().position"))
    opened.wait_for_timeout(50)
    assert np.abs(look("after.png") - before).max() < 1
    assert messages == [] and len(requests) <= 2 and all(url.startswith(("file:", "data:")) for url in requests)
    opened.close()
