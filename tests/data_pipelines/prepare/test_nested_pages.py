"""Maps straight from parquet's pages: the same as Arrow's, whatever the writer did; or left to Arrow."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.prepare import arrow_maps, nested_pages, shards
from data_pipelines.prepare.counts import Refused

_HALF, _FLOAT = pa.list_(pa.list_(pa.float16())), pa.list_(pa.list_(pa.float32()))


def _maps(rng, dtype):
    """Maps of several sizes with runs and with noise, one null, one empty."""
    smooth = np.repeat(rng.random((9, 3)), 40, axis=1)
    noise = rng.random((31, 17))
    return [m.astype(dtype) for m in (np.zeros((50, 50)), noise)] + [
        None,
        smooth.astype(dtype),
        [],
        np.ones((1, 1), dtype),
    ]


def _shard(folder, maps, kind, **options):
    path = folder / "train.parquet"
    rows = [m if m is None or isinstance(m, list) else [list(row) for row in m] for m in maps]
    table = pa.table(
        {"image": [b"x"] * len(maps), "prompt": ["a"] * len(maps), "coherence_heatmap": pa.array(rows, kind)}
    )
    pq.write_table(table, path, **options)
    return path


def _direct(path, group=0):
    with open(path, "rb") as file:
        yield from nested_pages.maps(file, pq.ParquetFile(path), group, "coherence_heatmap")


@pytest.mark.parametrize("options", [
    {}, {"use_dictionary": False}, {"data_page_size": 100, "write_batch_size": 7}, {"compression": "none"},
    {"compression": "zstd", "dictionary_pagesize_limit": 64},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", [_HALF, _FLOAT], ids=["half", "float"])
def test_maps_are_those_that_were_written(tmp_path, kind, options):
    dtype = np.float16 if kind is _HALF else np.float32
    written = _maps(np.random.default_rng(0), dtype)
    read = list(_direct(_shard(tmp_path, written, kind, **options)))
    assert len(read) == len(written)
    for one, other in zip(read, written, strict=True):
        if other is None or not len(other):
            assert one is None
        else:
            assert one.dtype == dtype
            np.testing.assert_array_equal(one, other)


def test_rows_give_the_same_maps_where_arrow_must_go_on(tmp_path):
    """A gap among the numbers, rows of two lengths: from there on Arrow reads, and names what is wrong."""
    good = np.random.default_rng(0).random((20, 10)).astype(np.float16)
    gap, ragged = [[None, *good[0]]], [list(good[0]), list(good[1][:3])]
    path = _shard(tmp_path, [good, None, gap, good, ragged, good], _HALF, data_page_size=64, write_batch_size=4)
    shard = shards.open_shard(path, shards.RAPIDATA, None)
    rows = list(shards.rows(shards.Unit(shard, 0, 0), 2))
    assert rows[1].map("coherence_heatmap") is None
    for number in (0, 3, 5):
        np.testing.assert_array_equal(rows[number].map("coherence_heatmap"), good)
    for number, reason in ((2, "nulls"), (4, "rows of 3 to 10 numbers")):
        with pytest.raises(Refused, match=reason):
            rows[number].map("coherence_heatmap")


def test_every_row_group_is_read_from_its_own_pages(tmp_path):
    maps = [np.full((3, 4), value, np.float16) for value in (0.25, 0.5, 0.75)]
    path = _shard(tmp_path, maps, _HALF, row_group_size=1)
    assert [float(next(_direct(path, group))[0, 0]) for group in range(3)] == [0.25, 0.5, 0.75]


def test_another_kind_of_column_is_left_to_arrow(tmp_path):
    for kind in (
        pa.list_(pa.list_(pa.float64())),
        pa.list_(pa.list_(pa.int32())),
        pa.list_(pa.list_(_HALF.value_type)),
    ):
        value = [[[0.0]]] if pa.types.is_list(kind.value_type.value_type) else [[0.0]]
        path = tmp_path / "train.parquet"
        pq.write_table(pa.table({"coherence_heatmap": pa.array([value], kind)}), path)
        with pytest.raises(nested_pages.Unusual):
            list(_direct(path))


def test_damaged_pages_are_left_to_arrow(tmp_path):
    path = _shard(tmp_path, _maps(np.random.default_rng(0), np.float16), _HALF, compression="none")
    whole, parquet = path.read_bytes(), pq.ParquetFile(path)
    chunk = parquet.metadata.row_group(0).column(2)
    rng = np.random.default_rng(1)
    unusual = 0
    for _ in range(300):
        damaged = bytearray(whole)
        place = chunk.dictionary_page_offset + int(rng.integers(0, chunk.total_compressed_size))
        damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            with open(path, "rb") as file:
                list(nested_pages.maps(file, parquet, 0, "coherence_heatmap"))
        except nested_pages.Unusual:
            unusual += 1
    assert unusual > 10


def test_checks_of_numbers_stay(tmp_path):
    bad = np.full((4, 4), 0.5, np.float16)
    bad[2, 1] = np.nan
    shard = shards.open_shard(_shard(tmp_path, [bad, -bad[:1]], _HALF), shards.RAPIDATA, None)
    one, other = shards.rows(shards.Unit(shard, 0, 0), 4)
    with pytest.raises(Refused, match="not finite"):
        one.map("coherence_heatmap")
    with pytest.raises(Refused, match="negative"):
        other.map("coherence_heatmap")
    assert arrow_maps.scale_of(1.0) == 1


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 8, 9, 12, 15, 16])
def test_packed_bits_and_runs(bits):
    """Against the definition: number n is bits [n·w, (n+1)·w) of the bytes, the lowest first."""
    rng = np.random.default_rng(bits)
    numbers = rng.integers(0, 1 << bits, 24)
    whole = sum(int(n) << (place * bits) for place, n in enumerate(numbers))
    packed = bytes([3 << 1 | 1]) + whole.to_bytes(3 * bits, "little")
    run = bytes([200 & 127 | 128, 200 >> 7]) + int(numbers[0]).to_bytes((bits + 7) // 8, "little")  # 100 times
    expected = [*numbers, *[numbers[0]] * 100, *numbers]
    for count in (1, 24, 50, 124, 130, 148):
        np.testing.assert_array_equal(
            nested_pages.unpack(packed + run + packed, 0, 1000, bits, count), expected[:count]
        )
    with pytest.raises(nested_pages.Unusual):
        nested_pages.unpack(packed, 0, len(packed), bits, 25)
