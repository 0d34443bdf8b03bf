"""Overlays, panels, marked prompts and score bars."""

import io

import numpy as np
import pytest
from rich.console import Console

from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic import drawing
from rahf.images import overlay


def shown(renderable, **options) -> str:
    console = Console(file=io.StringIO(), width=80, **options)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("palette", overlay.PALETTES)
def test_palettes_darken_steadily(palette):
    ramp = overlay.colours(np.linspace(0, 1, 200)[None], palette)[0].astype(float)
    light = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) <= 1).all() and light[0] - light[-1] > 130
    assert tuple(ramp[0]) == overlay.PALETTES[palette][0] and tuple(ramp[-1]) == overlay.PALETTES[palette][-1]


@pytest.mark.parametrize("palette", overlay.PALETTES)
def test_overlay_leaves_what_is_fine_and_covers_what_is_not(image, palette):
    heatmap = np.zeros((40, 60), np.float32)
    heatmap[10:20, 30:40] = 1
    result = overlay.overlay(image, heatmap, palette, strength=1.0)
    assert result.dtype == np.uint8 and result.shape == image.shape
    untouched = heatmap == 0
    np.testing.assert_array_equal(result[untouched], image[untouched])
    assert (result[12:18, 32:38] == overlay.PALETTES[palette][-1]).all()
    np.testing.assert_array_equal(overlay.overlay(image, heatmap, palette, strength=0.0), image)


def test_overlay_grows_with_the_value(image):
    change = [
        np.abs(overlay.overlay(image, np.full((40, 60), value)).astype(int) - image).mean()
        for value in (0.0, 0.1, 1 / 3, 2 / 3)
    ]
    assert change[0] == 0 and (np.diff(change) > 5).all()


def test_opacity_values():
    layer = overlay.heatmap_rgba(np.array([[0.0, 0.02, 0.31, 0.6, 1.0]]), "implausibility", strength=0.5)
    assert layer[0, :, 3].tolist() == [0, 0, round(127.5 * 0.5**0.8), 128, 128]


def test_overlay_resizes_and_takes_bytes_and_bad_values(image):
    small = np.zeros((4, 6), np.uint8)
    small[1, 2] = 255
    result = overlay.overlay(image, small)
    changed = np.abs(result.astype(int) - image).sum(-1) > 0
    assert changed[15, 25] and not changed[35, 55]
    np.testing.assert_array_equal(result, overlay.overlay(image, small / 255.0))
    np.testing.assert_array_equal(overlay.overlay(image, np.full((40, 60), np.nan)), image)
    np.testing.assert_array_equal(
        overlay.overlay(image, np.full((40, 60), 7.0)), overlay.overlay(image, np.ones((40, 60)))
    )


def test_contour_is_the_border_of_the_region(image):
    heatmap = np.zeros((40, 60), np.float32)
    heatmap[10:20, 30:40] = 0.5
    drawn = overlay.overlay(image, heatmap, strength=0.0, contour=0.5)
    changed = (drawn != image).any(-1)
    assert changed[10:20, 30].all() and changed[19, 30:40].all()
    assert not changed[11:19, 31:39].any() and changed.sum() <= 36


def tile(panel, x: int, y: int) -> np.ndarray:
    """Pixels [40,60,3] of a panel at height 40: gaps of 6 pixels, captions of 18."""
    return np.asarray(panel)[y * 64 + 24 : y * 64 + 64, x * 66 + 6 : x * 66 + 66]


def test_panel_shows_the_pictures_in_rows(image):
    other = image[::-1].copy()
    three = overlay.panel([("one", image), ("two", other), ("three", image)], height=40, columns=2)
    np.testing.assert_array_equal(tile(three, 0, 0), image)
    np.testing.assert_array_equal(tile(three, 1, 0), other)
    np.testing.assert_array_equal(tile(three, 0, 1), image)
    assert (tile(three, 1, 1) == 255).all()
    assert (np.asarray(three)[6:24, 6:66] < 100).any()  # the caption
    assert overlay.panel([("small", image[:20])], height=40).size == (6 + 120 + 6, 6 + 18 + 40 + 6)


def test_feedback_panel_shows_overlays_and_scores(image):
    heatmaps = np.random.default_rng(1).random((8, 8, 2))
    true = np.zeros((40, 60, 2), np.uint8)
    true[:20, :, 0] = 255
    plain = drawing.feedback_panel(image, heatmaps, height=40, true_heatmaps=true)
    np.testing.assert_array_equal(tile(plain, 0, 0), image)
    np.testing.assert_array_equal(tile(plain, 0, 1), image)
    for kind, name in enumerate(HEATMAPS):
        predicted = overlay.overlay(image, heatmaps[:, :, kind], name, contour=0.5)
        np.testing.assert_array_equal(tile(plain, 1 + kind, 0), predicted)
        np.testing.assert_array_equal(
            tile(plain, 1 + kind, 1), overlay.overlay(image, true[:, :, kind], name, contour=0.5)
        )
    scores = np.array([0.0, 0.5, 1.0, np.nan])
    full = np.asarray(drawing.feedback_panel(image, heatmaps, scores, true, height=40))
    np.testing.assert_array_equal(full[: plain.height], np.asarray(plain))
    bars = (full[plain.height :] == (72, 92, 200)).all(-1)
    lengths = [bars[row * 21 : (row + 1) * 21].any(0).sum() for row in range(4)]
    assert lengths[0] == lengths[3] == 0 and lengths[1] == pytest.approx(lengths[2] / 2, abs=1) and lengths[2] > 20


def test_a_heatmap_that_is_not_predicted_is_left_out(image):
    heatmaps = np.zeros((8, 8, 2))
    heatmaps[:, :, 0] = np.nan
    assert drawing.feedback_panel(image, heatmaps, height=40).width == 6 + 2 * 66


def test_prompt_in_the_terminal():
    text = drawing.prompt_text("a yellow cat, [bold]x", ["a", "yellow", "cat", "[bold]x"], [1, 0, 1, 1])
    assert text.plain == "a yellow✗ cat, [bold]x"  # no markup is read from a prompt
    assert [text.plain[s.start : s.end] for s in text.spans if "red" in str(s.style)] == ["yellow✗"]
    coloured = shown(text, force_terminal=True, color_system="standard")
    assert "\x1b[" in coloured
    hostile = drawing.prompt_text("a\x1b[31mcat\x07", ["a\x1b[31mcat\x07"], [1])
    assert "\x1b" not in shown(hostile) and "\x07" not in shown(hostile)


def test_prompt_in_html_is_escaped():
    words = ["<b>", "a&b", "cat"]
    result = drawing.prompt_html('<b> "a&b" cat', words, ["hit", "missed", ""], ['"><i>', ""])
    assert result == (
        '<mark class="hit" title="&quot;&gt;&lt;i&gt;">&lt;b&gt;</mark> &quot;'
        '<mark class="missed">a&amp;b</mark>&quot; cat'
    )


def test_score_bars():
    text = shown(drawing.score_bars([0.0, 0.5, 1.0, np.nan], [0.25, np.nan, 1.0, 0.0], width=10))
    rows = text.splitlines()
    assert [row.split()[0] for row in rows] == list(SCORES)
    assert [row.count("━") for row in rows] == [0, 5, 10, 0]
    assert [row.count("─") for row in rows] == [10, 5, 0, 10]
    assert "(rated 0.25)" in rows[0] and "rated" not in rows[1] and " -    (rated 0.00)" in rows[3]
