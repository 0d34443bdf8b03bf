"""Random parameters: their values by the definition, and what a host holds while it draws them."""

import tracemalloc
import zlib

import jax
import numpy as np
import pytest

from rahf.nn import initial


def by_definition(path, shape, std, fill, seed):
    stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(path.encode())])))
    return np.float32(fill) + np.float32(std) * stream.standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", [(), (7,), (33, 5), (3, 3, 7, 11), (0, 4)])
@pytest.mark.parametrize("block", [1, 13, 2**22])
def test_blocks_do_not_change_the_values(shape, block, monkeypatch):
    monkeypatch.setattr(initial, "_BLOCK", block)
    actual = initial.draw_parameter("tower/kernel", shape, 0.02, 1.0, 3, None)
    np.testing.assert_array_equal(actual, by_definition("tower/kernel", shape, 0.02, 1.0, 3))
    assert actual.dtype == np.float32


def test_without_spread_nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(initial, "_blocks", None)
    np.testing.assert_array_equal(initial.draw_parameter("bias", (3,), 0.0, 0.5, 0, None), np.full(3, 0.5, np.float32))


class OneOfMany:
    """The sharding of a host whose devices hold a part of an array."""

    def __init__(self, *indices):
        self.indices = indices

    def addressable_devices_indices_map(self, shape):
        return dict(enumerate(self.indices))


def test_a_host_keeps_its_own_shards_only(monkeypatch):
    shape, mine = (4096, 1024), ((slice(512, 1024), slice(None)), (slice(2048, 2560), slice(256, 512)))
    pieces = []
    monkeypatch.setattr(initial, "_BLOCK", 2**16)
    monkeypatch.setattr(
        jax, "make_array_from_callback", lambda shape, sharding, callback: pieces.extend(callback(i) for i in mine)
    )
    tracemalloc.start()
    initial.draw_parameter("tower/kernel", shape, 0.02, 0.0, 3, OneOfMany(*mine))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    complete = by_definition("tower/kernel", shape, 0.02, 0.0, 3)
    for piece, index in zip(pieces, mine, strict=True):
        np.testing.assert_array_equal(piece, complete[index])
    shards = sum(piece.nbytes for piece in pieces)
    assert shards < peak < shards + 4 * 4 * 2**16 < complete.nbytes / 3
