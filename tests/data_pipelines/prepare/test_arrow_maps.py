"""Maps in parquet columns: every form that copies have, and what cannot be a map."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.prepare import arrow_maps
from data_pipelines.prepare.counts import Refused
from tests.helpers.shards_maker import encoded, heat, nested

NESTED = pa.list_(pa.list_(pa.float16()))


def grey(column, row=0, scale=1.0):
    value = arrow_maps.decoded(arrow_maps.cell(column, row, "map"), "map")
    return arrow_maps.to_grey(value, scale, "map")


@pytest.mark.parametrize(
    "kind",
    [
        NESTED,
        pa.list_(pa.list_(pa.float32())),
        pa.large_list(pa.list_(pa.float64())),
        pa.list_(pa.list_(pa.float32(), 4)),
    ],
)
def test_nested_lists_of_every_kind(kind):
    values = np.array([[0, 0.25, 0.5, 1.0], [0.125, 0, 0, 0.75]], np.float16)
    column = nested([np.zeros((2, 4)), values, values[:, :4]], kind)
    np.testing.assert_array_equal(grey(column, 1), [[0, 64, 128, 255], [32, 0, 0, 191]])
    assert not grey(column, 0).any()
    assert arrow_maps.is_nested(kind)


def test_numbers_of_0_to_255_and_a_channel():
    kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
    column = pa.array([[[[0], [85]], [[170], [255]]]], kind)
    np.testing.assert_array_equal(grey(column, 0, 255.0), [[0, 85], [170, 255]])


def test_images_and_structs_of_images():
    picture = encoded(np.array([[0, 85], [170, 255]], np.uint8))
    for column in (pa.array([picture]), pa.array([{"bytes": picture, "path": None}])):
        np.testing.assert_array_equal(grey(column, 0, 255.0), [[0, 85], [170, 255]])
    ones = pa.array([encoded(np.array([[0, 1]], np.uint8))])
    np.testing.assert_array_equal(grey(ones, 0, 1.0), [[0, 255]])  # a shard of zeros and ones


def test_what_nobody_was_asked_for_is_no_map():
    column = pa.array([None, [], [[]], [[None, None], [None, None]]], NESTED)
    assert [arrow_maps.cell(column, row, "map") for row in range(4)] == [None] * 4
    assert arrow_maps.cell(pa.array([None, b""], pa.binary()), 1, "map") is None
    assert arrow_maps.cell(pa.array([{"bytes": None}]), 0, "map") is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.5, 0.5], [0.5]], "rows of 1 to 2"),
        ([[0.5, float("nan")]], "not finite"),
        ([[0.5, float("inf")]], "not finite"),
        ([[0.5, -0.5]], "negative values down to -0.5"),
        ([[0.5, None]], "1 nulls"),
        ([[0.5, 2.0]], "up to 2"),
    ],
)
@pytest.mark.parametrize("kind", [pa.float16(), pa.float32()])
def test_bad_numbers(rows, message, kind):
    with pytest.raises(Refused, match=message):
        grey(pa.array([rows], pa.list_(pa.list_(kind))))


def test_half_precision_gives_the_grey_levels_of_single_precision():
    values = np.arange(0x3C01, dtype=np.uint16).view(np.float16)[None]  # every number in 0..1
    expected = arrow_maps.to_grey(values.astype(np.float32), 1.0, "map")
    np.testing.assert_array_equal(arrow_maps.to_grey(values, 1.0, "map"), expected)
    assert (expected[0, 0], expected[0, -1]) == (0, 255)


def test_scale_by_the_largest_value():
    assert [arrow_maps.scale_of(value) for value in (0.3, 1.0, 1.0005, 2.0, 255.0)] == [1, 1, 1, 255, 255]
    with pytest.raises(Refused, match="largest value is 1000"):
        arrow_maps.scale_of(1000.0)


def test_slices_of_a_column_keep_their_rows():
    column = nested([heat(0), None, heat(5)]).slice(1)
    assert arrow_maps.cell(column, 0, "map") is None
    assert int((grey(column, 1) == 128).sum()) == 9 * 4
