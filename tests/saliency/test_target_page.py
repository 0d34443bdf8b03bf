"""The page to draw a target map in: what is in it, and, in Chromium, that it draws what the library draws."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from rahf.core.errors import ArgumentError
from rahf.saliency import target_page, targets
from tests.helpers import chromium

SIZE = (60, 80)


def test_the_page_asks_for_nothing(tmp_path):
    page = tmp_path / "a <b> & c.html"
    assert target_page.write_page(page, SIZE, np.zeros((6, 8, 3), np.uint8)) == page.stat().st_size
    text = page.read_text()
    assert "default-src 'none'" in text and "{{" not in text and "data:image/jpeg;base64," in text
    assert re.findall(r"""(?:src|href)\s*=\s*["'][^"']+|https?://|url\(|import\s*\(|fetch\(|XMLHttp""", text) == []
    assert text.count("</script>") == 2 and "<title>Where people shall look: a &lt;b&gt; &amp; c</title>" in text


def test_what_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="ends in .html"):
        target_page.write_page(tmp_path / "page.png", SIZE)
    for size in ((4, 80), (4096, 4096)):
        with pytest.raises(ArgumentError, match="at least 8 pixels"):
            target_page.write_page(tmp_path / "page.html", size)
    assert not list(tmp_path.iterdir())


def grey(address):
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[..., :1] == pixels).all()
    return pixels[..., 0]


def test_in_a_browser(tmp_path):
    """Shapes drawn with the mouse are those of `targets.draw`, and the files hold them and the regions."""
    target_page.write_page(tmp_path / "poster.html", SIZE)
    with chromium.started() as browser:
        tab, messages, requests = chromium.tab(browser, 900, 700)
        tab.goto((tmp_path / "poster.html").as_uri())
        tab.wait_for_function("window.targetMap")
        frame = tab.locator("#map").bounding_box()
        scale = (frame["width"] - 2) / SIZE[1]  # of a border of one pixel on each side

        def drag(tool, x, y, to_x, to_y):
            tab.click(f"[data-tool={tool}]")
            place = lambda px, py: (frame["x"] + 1 + px * scale, frame["y"] + 1 + py * scale)  # noqa: E731
            tab.mouse.move(*place(x, y))
            tab.mouse.down()
            tab.mouse.move(*place(to_x, to_y), steps=2)
            tab.mouse.up()

        assert tab.is_disabled("#save") and tab.is_disabled("#save-avoid")
        drag("gaussian", 20, 20, 28, 20)
        drag("disc", 60, 20, 60, 27)
        drag("box", 10, 40, 30, 55)
        drag("avoid-disc", 60, 12, 60, 20)
        tab.locator("#value").fill("0.5")
        drag("disc", 60, 48, 66, 48)
        drag("disc", 60, 12, 62, 12)  # inside of the region to be avoided
        assert "reaches into a region" in tab.inner_text("#message")
        shapes = tab.evaluate("targetMap.shapes")
        assert [(shape["kind"], shape["avoid"], shape["value"]) for shape in shapes] == [
            ("gaussian", False, 1), ("disc", False, 1), ("box", False, 1), ("disc", True, 1), ("disc", False, 0.5)
        ]  # fmt: skip
        assert abs(shapes[0]["x"] - 20) < 1 and abs(shapes[0]["sigma"] - 8) < 1 and abs(shapes[2]["bottom"] - 55) < 1
        drawn = []
        for shape in shapes:
            fields = {key: value for key, value in shape.items() if key not in ("kind", "avoid")}
            one = {"gaussian": targets.Gaussian, "disc": targets.Disc, "box": targets.Box}[shape["kind"]](**fields)
            drawn.append(targets.Avoid(one) if shape["avoid"] else one)
        expected = targets.draw(drawn, SIZE)
        with tab.expect_download() as saved:
            tab.click("#save")
        assert saved.value.suggested_filename == "poster.png"
        saved.value.save_as(tmp_path / "poster.png")
        with Image.open(tmp_path / "poster.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert np.abs(pixels / 255 - expected).max() <= 0.5 / 255 + 1e-6
        np.testing.assert_allclose(targets.read(tmp_path / "poster.png", SIZE), expected, atol=0.51 / 255)
        avoided = grey(tab.evaluate("targetMap.png(true)"))
        assert ((avoided == 255) == (drawn[3].region.coverage(SIZE) > 0)).all() and set(np.unique(avoided)) == {0, 255}
        tab.keyboard.press("Control+z")
        assert tab.evaluate("targetMap.shapes.length") == 4
        tab.click("#clear")
        assert tab.is_disabled("#save") and not grey(tab.evaluate("targetMap.png(false)")).any()
        assert messages == [] and all(url.startswith(("file:", "data:")) for url in requests)
