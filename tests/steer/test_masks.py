"""Masks: every step drawn by hand, and compared with slow references on random maps."""

import warnings

import numpy as np
import pytest

from rahf.steer import masks
from rahf.steer.masks import MaskOptions, MaskWarning, from_heatmap


def drawn(text: str) -> np.ndarray:
    """A mask from a drawing: # is True."""
    return np.array([[c == "#" for c in line] for line in text.split()])


def values(text: str) -> np.ndarray:
    """A heatmap from a drawing: digits are tenths, . is 0."""
    return np.array([[0 if c == "." else int(c) / 10 for c in line] for line in text.split()], np.float32)


def plain(**options) -> MaskOptions:
    """Threshold only, except what is asked for."""
    return MaskOptions(**{"min_area": 0, "dilation": 0, "max_hole": 0} | options)


def test_threshold_includes_its_value():
    heatmap = values("""
        ..234
        ..333
        .....""")
    expected = drawn("""
        ...##
        ..###
        .....""")
    mask = from_heatmap(heatmap, options=plain(threshold=0.3))
    np.testing.assert_array_equal(mask.pixels, expected)
    np.testing.assert_array_equal(mask.alpha, expected.astype(np.float32))
    assert mask.coverage == pytest.approx(5 / 15) and mask.components == 1 and mask.note == ""
    assert mask.peak == pytest.approx(0.4) and not mask.empty


def test_hysteresis_grows_from_seeds_also_over_corners():
    heatmap = values("""
        333..3.
        3....35
        ....3..
        44.3...
        4......""")
    expected = drawn("""
        .....#.
        .....##
        ....#..
        ...#...
        .......""")
    np.testing.assert_array_equal(masks.hysteresis(heatmap, 0.3, 0.5), expected)
    np.testing.assert_array_equal(masks.hysteresis(heatmap, 0.3), heatmap >= 0.3)
    np.testing.assert_array_equal(from_heatmap(heatmap, options=plain(seeds=0.5)).pixels, expected)


def test_small_components_are_dropped_by_their_share():
    mask = drawn("""
        ##...#....
        #.........
        .......#..
        ........#.""")  # of 40 pixels: 3, 1 and (over a corner) 2
    for least, kept in ((0, 6), (1 / 40, 6), (2 / 40, 5), (3 / 40, 3), (0.08, 0)):
        assert masks.drop_small(mask, least).sum() == kept, least
    np.testing.assert_array_equal(masks.drop_small(mask, 0.06)[:, 2:], False)


def test_dilation_is_a_disc_in_image_heights():
    mask = np.zeros((8, 12), bool)
    mask[4, 5] = True
    cross = drawn("""
        .#.
        ###
        .#.""")
    disc = drawn("""
        ..#..
        .###.
        #####
        .###.
        ..#..""")
    for radius, expected in ((1 / 8, cross), (2 / 8, disc)):
        dilated = masks.dilate(mask, radius)
        half = len(expected) // 2
        np.testing.assert_array_equal(dilated[4 - half : 5 + half, 5 - half : 6 + half], expected)
        assert dilated.sum() == expected.sum()
    assert masks.dilate(mask, 0.99 / 8).sum() == 1
    # A rounded default: 1/40 of 120 is 3 pixels, whatever 120 * (1/40) is in binary; a disc of radius 3 has 29.
    large = np.zeros((120, 90), bool)
    large[60, 40] = True
    assert masks.dilate(large, MaskOptions().dilation).sum() == 29


def test_holes_are_closed_but_not_bays_or_large_ones():
    mask = drawn("""
        ####....
        #..#.##.
        ####.#..
        .....##.
        .###....
        .#.#...#
        .###..#.""")
    closed = drawn("""
        ####....
        ####.##.
        ####.#..
        .....##.
        .###....
        .###...#
        .###..#.""")
    np.testing.assert_array_equal(masks.close_holes(mask), closed)
    only_small = masks.close_holes(mask, 1 / 56)
    assert only_small[5, 2] and not only_small[1, 1]
    np.testing.assert_array_equal(masks.close_holes(mask, 0), mask)
    # Corners do not let the outside in: this ring of four is closed.
    ring = drawn("""
        .#.
        #.#
        .#.""")
    assert masks.close_holes(ring)[1, 1] and masks.close_holes(ring).sum() == 5


def test_feather_is_a_ramp_outside():
    mask = np.zeros((10, 10), bool)
    mask[:, 3:5] = True
    ramp = masks.feather(mask, 0.4)  # 4 pixels
    np.testing.assert_allclose(ramp[5], [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0], atol=1e-6)
    assert ramp.dtype == np.float32
    np.testing.assert_array_equal(masks.feather(mask, 0), mask.astype(np.float32))
    heatmap = mask.astype(np.float32)
    mask = from_heatmap(heatmap, options=plain(feather=0.4, warn_above=1))
    np.testing.assert_array_equal(mask.pixels[0], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(mask.alpha, ramp)


def test_latent_grid_by_any_coverage():
    mask = np.zeros((20, 17), bool)
    mask[7, 8] = mask[19, 16] = True  # one pixel each; the last row and column of cells are cut off
    expected = np.zeros((3, 3), bool)
    expected[0, 1] = expected[2, 2] = True
    latent = masks.to_latent(mask, 8)
    assert latent.dtype == bool
    np.testing.assert_array_equal(latent, expected)
    np.testing.assert_array_equal(masks.to_latent(mask, 1), mask)
    np.testing.assert_array_equal(masks.to_latent(mask, 100), [[True]])
    soft = masks.to_latent(mask * np.float32(0.5), 8)
    np.testing.assert_array_equal(soft, expected * np.float32(0.5))
    # Sampling one pixel of each cell, as nearest resizing does, would lose both.
    assert not mask[4::8, 4::8].any()
    whole = from_heatmap(mask.astype(np.float32), options=plain())
    np.testing.assert_array_equal(whole.latent(), expected)
    with pytest.raises(ValueError, match="cell: expected at least 1 pixel, found 0"):
        masks.to_latent(mask, 0)


def test_the_steps_come_in_order():
    """A ring whose gap the dilation closes is filled; a speck is dropped before it can grow."""
    heatmap = values("""
        ..........
        .55555....
        .5...5....
        .5.......5
        .5...5....
        .55555....
        ..........""")
    expected = drawn("""
        .#####....
        #######...
        #######...
        ######....
        #######...
        #######...
        .#####....""")
    options = MaskOptions(min_area=2 / 70, dilation=1 / 7, warn_above=1)
    mask = from_heatmap(heatmap, options=options)
    np.testing.assert_array_equal(mask.pixels, expected)
    assert mask.components == 1


def test_heatmap_is_resized_before_it_is_decided():
    heatmap = np.array([[0, 1], [0, 1]], np.float32)
    mask = from_heatmap(heatmap, (2, 8), plain(threshold=0.5))
    # Bilinear with half-pixel centres: 0, 0, .125, .375, .625, .875, 1, 1 (by hand).
    np.testing.assert_array_equal(mask.pixels[0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(
        from_heatmap(heatmap, (2, 8), plain(threshold=0.3, warn_above=1)).pixels[1], [0, 0, 0, 1, 1, 1, 1, 1]
    )
    assert from_heatmap(heatmap, (31, 57)).pixels.shape == (31, 57)


@pytest.mark.parametrize(
    "heatmap, options, note",
    [
        (np.zeros((8, 8)), MaskOptions(), "no value reaches the threshold 0.3; the highest is 0.00"),
        (np.full((8, 8), 0.2), MaskOptions(), "no value reaches the threshold 0.3; the highest is 0.20"),
        (
            np.full((8, 8), 0.4),
            MaskOptions(seeds=0.5),
            "no value reaches 0.5, from which regions grow; the highest is 0.40",
        ),
        (np.eye(8) == 9, MaskOptions(), "no value reaches the threshold 0.3"),
        (np.pad([[1.0]], 20), MaskOptions(), "no marked region is as large as 0.10% of the picture"),
    ],
)
def test_nothing_marked_is_an_empty_mask_that_says_why(heatmap, options, note):
    mask = from_heatmap(heatmap.astype(np.float32), options=options)
    assert mask.empty and mask.coverage == 0 and not mask.alpha.any() and mask.note.startswith(note)
    assert not mask.latent().any() and mask.components == 0


def test_much_coverage_warns_and_goes_on():
    heatmap = np.zeros((10, 10), np.float32)
    heatmap[:6] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_heatmap(heatmap, options=plain()).note == ""  # 60% exactly
    heatmap[6, 0] = 1
    with pytest.warns(MaskWarning, match="covers 61% of the picture, more than 60%"):
        mask = from_heatmap(heatmap, options=plain())
    assert mask.coverage == pytest.approx(0.61) and "raise the threshold" in mask.note


def test_uint8_counts_in_255ths():
    np.testing.assert_array_equal(
        from_heatmap(np.array([[76, 77]], np.uint8), options=plain(threshold=0.3)).pixels, [[False, True]]
    )  # 0.3 * 255 = 76.5


@pytest.mark.parametrize(
    "heatmap, error",
    [
        (np.zeros((4, 4, 2)), r"expected \[height, width\], found shape \(4, 4, 2\)"),
        (np.zeros((0, 4)), "found shape"),
        (np.full((2, 2), np.nan), "not finite"),
        (np.full((2, 2), 255.0), "found 255 to 255; give uint8, or divide by 255"),
        (np.full((2, 2), -1.0), "expected values in 0..1, found -1"),
    ],
)
def test_bad_heatmaps(heatmap, error):
    with pytest.raises(ValueError, match=error):
        from_heatmap(heatmap)


@pytest.mark.parametrize(
    "options, error",
    [
        (dict(threshold=0), "threshold: expected above 0"),
        (dict(threshold=30), "threshold: expected above 0 and at most 1, found 30"),
        (dict(threshold=0.5, seeds=0.3), r"seeds: expected from the threshold \(0.5\) to 1, found 0.3"),
        (dict(dilation=12), "dilation: expected 0 to 1, found 12"),
        (dict(feather=float("nan")), "feather: expected 0 to 1"),
    ],
)
def test_bad_options(options, error):
    with pytest.raises(ValueError, match=error):
        MaskOptions(**options)


def test_bad_size():
    with pytest.raises(ValueError, match="size: expected height and width of at least 1"):
        from_heatmap(np.zeros((4, 4)), (0, 5))


# Slow references


def flood(mask: np.ndarray, start: tuple[int, int], corners: bool) -> set[tuple[int, int]]:
    """Pixels of a mask that are connected with one of them."""
    reached, todo = {start}, [start]
    while todo:
        y, x = todo.pop()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                to = (y + dy, x + dx)
                inside = 0 <= to[0] < mask.shape[0] and 0 <= to[1] < mask.shape[1]
                if inside and (corners or not (dy and dx)) and mask[to] and to not in reached:
                    reached.add(to)
                    todo.append(to)
    return reached


def slow(heatmap: np.ndarray, o: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
    """The whole way, pixel by pixel: solid mask and alpha."""
    height, width = heatmap.shape
    marked = heatmap >= o.threshold
    kept = np.zeros_like(marked)
    for start in zip(*np.nonzero(marked)):
        component = flood(marked, start, True)
        if len(component) >= o.min_area * marked.size and (
            o.seeds is None or max(heatmap[p] for p in component) >= o.seeds
        ):
            kept[start] = True
    nearest = lambda mask: np.array(  # noqa: E731
        [
            [min((np.hypot(y - b, x - a) for b, a in zip(*np.nonzero(mask))), default=9e9) for x in range(width)]
            for y in range(height)
        ]
    )
    solid = nearest(kept) <= o.dilation * height + 1e-9
    for start in zip(*np.nonzero(~solid)):
        hole = flood(~solid, start, False)
        if (
            not any(y in (0, height - 1) or x in (0, width - 1) for y, x in hole)
            and len(hole) <= o.max_hole * marked.size
        ):
            solid[tuple(np.array(sorted(hole)).T)] = True
    if not o.feather:
        return solid, solid.astype(np.float32)
    return solid, np.clip(1 - nearest(solid) / (o.feather * height), 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_equals_slow_reference(seed):
    rng = np.random.default_rng(seed)
    heatmap = np.kron(rng.random((7, 9)), np.ones((2, 2))).astype(np.float32)[: 13 + seed % 2]
    options = MaskOptions(
        threshold=0.7,
        seeds=0.85 if seed % 2 else None,
        min_area=(0, 0.03)[seed // 2],
        dilation=0.08,
        max_hole=(1.0, 0.02)[seed // 2],
        feather=0.2 * (seed % 2),
        warn_above=1,
    )
    mask = from_heatmap(heatmap, options=options)
    solid, alpha = slow(heatmap, options)
    assert 0 < solid.mean() < 1
    np.testing.assert_allclose(mask.alpha, alpha, atol=1e-6)
    np.testing.assert_array_equal(mask.pixels, alpha > 1e-9)
    cells = [[mask.pixels[y : y + 4, x : x + 4].any() for x in range(0, 18, 4)] for y in range(0, len(heatmap), 4)]
    np.testing.assert_array_equal(mask.latent(4), cells)
