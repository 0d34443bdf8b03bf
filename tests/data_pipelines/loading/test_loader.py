"""The loader: order, sharding, exact resumption, workers without JAX, errors with names."""

import dataclasses
import json
import os

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_pipelines.loading import loader
from rahf.config import AugmentConfig
from rahf.core.batch import Batch
from rahf.core.errors import DataError
from rahf.images.pictures import picture
from tests.helpers.loader_maker import (
    CONFIG,
    SIZE,
    Listed,
    Watched,
    alive,
    assert_equal,
    encode,
    evaluate,
    make,
    order,
    record,
    take,
)


def test_every_epoch_is_another_permutation(source, tokenizer):
    with make(source, tokenizer, batch_size=5) as batches:
        seen = np.array(order(take(batches, 8))).reshape(4, 10)  # two batches of five are an epoch
    for epoch in seen:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in seen}) == 4
    with make(source, tokenizer, batch_size=5) as same:
        assert order(take(same, 8)) == seen.ravel().tolist()
    with make(source, tokenizer, seed=1, batch_size=5) as other:
        assert order(take(other, 8)) != seen.ravel().tolist()


def test_batches_run_on_over_the_end_of_an_epoch(source, tokenizer):
    with make(source, tokenizer, batch_size=4) as batches:
        stream = order(take(batches, 5))
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    with make(Listed(source.records[:3]), tokenizer, batch_size=4) as batches:  # fewer records than a batch
        assert next(batches).image.shape == (4, SIZE, SIZE, 3)


def test_augmentations_differ_between_epochs_and_records(tokenizer):
    ramp = np.add.outer(np.arange(32), 7 * np.arange(32)).astype(np.uint8)
    twins = [record(0, image=encode(np.repeat(ramp[..., None], 3, -1))) for _ in range(2)]
    augment = AugmentConfig(crop_probability=1.0)
    with make(Listed(twins), tokenizer, batch_size=6, augment=augment) as batches:
        crops = next(batches).image
    assert len({image.tobytes() for image in crops}) == 6  # two records in three epochs


def test_processes_share_each_global_batch(source, tokenizer):
    augment = AugmentConfig(photometric_probability=0.5)
    with make(source, tokenizer, augment=augment) as global_batches:
        expected = take(global_batches, 4)
    parts, states = [], []
    for index in range(2):
        with make(source, tokenizer, process=(index, 2), augment=augment) as part:
            parts.append(take(part, 2))
            states.append(part.get_state())
            parts[-1] += take(part, 2)
    with make(source, tokenizer, augment=augment) as alone:  # two processes saved, one goes on
        alone.set_state(states[0])
        assert_equal(take(alone, 2), expected[2:])
    assert states[0] == states[1]
    joined = [Batch(*(np.concatenate(fields) for fields in zip(*pair))) for pair in zip(*parts)]
    assert_equal(joined, expected)


def test_state_goes_on_exactly(source, tokenizer):
    augment = AugmentConfig(photometric_probability=0.5)
    with make(source, tokenizer, augment=augment) as batches:
        take(batches, 3)
        state = json.loads(json.dumps(batches.get_state()))
        expected = take(batches, 4)
        batches.set_state(state)  # back, in the same program: nothing that was prefetched is lost or repeated
        assert_equal(take(batches, 4), expected)
    with make(source, tokenizer, augment=augment) as again:
        again.set_state(state)
        assert again.get_state() == state
        assert_equal(take(again, 4), expected)
    with make(source, tokenizer, augment=augment, batch_size=2) as halved:  # the stream counts, not its cuts
        halved.set_state(state)
        assert order(take(halved, 8)) == order(expected)


def test_the_square_of_a_jpeg_is_the_critics(tokenizer):
    cells = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    data = encode(cells.repeat(6, 0).repeat(6, 1), "JPEG")
    expected = picture(data, SIZE, 0).square
    with make(Listed([record(0, image=data)]), tokenizer) as batches:
        np.testing.assert_array_equal(next(batches).image, np.stack([expected] * 4))
        state = batches.get_state()
        assert state["version"] == 2
        batches.set_state({**state, "version": 1})  # of version 0, which decoded at a third of the size here
        reduced = simplejpeg.decode_jpeg(data, min_width=SIZE, min_height=SIZE)
        assert reduced.shape[0] < 72 and batches.get_state() == {**state, "version": 1}
        resized = Image.fromarray(reduced).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(next(batches).image[0], np.asarray(resized))
        assert np.abs(np.asarray(resized).astype(int) - expected).max() > 5
        batches.set_state(state)
        np.testing.assert_array_equal(next(batches).image[0], expected)


def test_workers_give_the_same_without_jax(source, tokenizer, tmp_path):
    augment = AugmentConfig(photometric_probability=0.5)
    with make(source, tokenizer, augment=augment) as batches:
        expected = take(batches, 7)
    state = None
    for workers in (2, 1):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with make(Watched(source.records, folder), tokenizer, augment=augment, workers=workers) as batches:
            if state is None:
                received = take(batches, 3)
                state = batches.get_state()
                received += take(batches, 2)
                assert_equal(received, expected[:5])
            else:
                batches.set_state(state)  # saved with two workers
                assert_equal(take(batches, 4), expected[3:7])
            assert all(type(field) is np.ndarray for field in received[0])
        (folder / str(os.getpid())).unlink()  # the parent read some records for the fingerprint
        readers = {file.name: json.loads(file.read_text()) for file in folder.glob("[0-9]*")}
        assert len(readers) == workers and not any(readers.values())
        assert not any(alive(int(pid)) for pid in readers)
    with make(source, tokenizer, augment=augment) as batches:
        batches.set_state(state)
        assert_equal(take(batches, 4), expected[3:7])


def test_state_of_other_data_is_refused(source, tokenizer):
    with make(source, tokenizer) as batches:
        state = batches.get_state()
    with make(Listed(source.records[:9]), tokenizer) as other, pytest.raises(DataError) as caught:
        other.set_state(state)
    assert "10 records" in str(caught.value) and "tiny, split 'train' holds 9 records" in str(caught.value)
    changed = [*source.records[:9], record(9, image=encode(np.zeros((8, 8, 3), np.uint8)))]
    with make(Listed(changed), tokenizer) as other, pytest.raises(DataError, match="belongs to other data"):
        other.set_state(state)
    words = "seed 0, this run has seed 1"
    with make(source, tokenizer, seed=1) as other, pytest.raises(DataError, match=words):
        other.set_state(state)
    with make(source, tokenizer) as other, pytest.raises(DataError, match="not the state of a data loader"):
        other.set_state({"step": 3})
    with make(Listed(list(source.records)), tokenizer) as same:
        same.set_state(state)


def test_impossible_configs(source, tokenizer):
    with pytest.raises(ValueError, match="batch size 4: expected a multiple of .* 3"):
        make(source, tokenizer, process=(0, 3))
    with pytest.raises(ValueError, match="process 2 of 2"):
        make(source, tokenizer, process=(2, 2))
    with pytest.raises(DataError, match="dataset data/tiny, split 'train': no records"):
        make(Listed([]), tokenizer)
    with pytest.raises(ValueError, match="augment.hue"):
        make(source, tokenizer, augment=AugmentConfig(hue=3.0))
    with pytest.raises(ValueError, match="data.workers"):
        make(source, tokenizer, workers=-1)


# --- evaluation -------------------------------------------------------------------------------------------


def test_evaluation_in_order_and_filled_up(source, tokenizer):
    batches = evaluate(source, tokenizer)
    assert len(batches) == 3
    for _ in range(2):  # again from the start
        received = list(batches)
        assert order(received) == [*range(10), -1, -1]
    last = received[-1]
    assert {batch.image.shape for batch in received} == {(4, SIZE, SIZE, 3)}
    assert last.example_mask.tolist() == [True, True, False, False]
    for name in ("text_mask", "target_mask", "word_mask", "heatmap_mask", "score_mask"):
        assert not getattr(last, name)[2:].any() and getattr(last, name)[:2].any()
    assert (last.word_end[2:] == -1).all() and not last.image[2:].any()
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(crop_probability=1.0, grey_probability=1.0))
    plain = list(loader.eval_loader(config, "dev", SIZE, tokenizer, 4, source=source))
    assert_equal(plain, received)  # never augmented


def test_evaluation_by_several_processes(source, tokenizer):
    global_batches = list(evaluate(source, tokenizer, 6))
    parts = [list(evaluate(source, tokenizer, 6, (index, 3))) for index in range(3)]
    assert {len(part) for part in parts} == {2}
    assert_equal([Batch(*(np.concatenate(f) for f in zip(*three))) for three in zip(*parts)], global_batches)
    assert order(parts[2]) == [4, 5, -1, -1]


def test_evaluation_limit(source, tokenizer):
    assert order(evaluate(source, tokenizer, 4, limit=5)) == [0, 1, 2, 3, 4, -1, -1, -1]
    assert order(evaluate(source, tokenizer, 5, limit=99)) == list(range(10))
    with pytest.raises(DataError, match="limit 0 leaves no examples"):
        evaluate(source, tokenizer, limit=0)
