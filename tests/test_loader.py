"""The loader: fields by hand, order, sharding, exact resumption, workers without JAX, errors with names."""

import dataclasses
import io
import json
import os
import pathlib
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from data_pipelines import loader
from data_pipelines.examples import DataError, example
from data_pipelines.records import Record
from rahf.batch import Batch, spec
from rahf.config import AugmentConfig, DataConfig
from rahf.text import Tokenizer, split_words, train_tokenizer

SIZE = 24
CONFIG = DataConfig(
    path="data/tiny", batch_size=4, max_prompt_tokens=20, max_target_tokens=24, max_words=6, augment=None
)
PROMPTS = ("a yellow cat, sitting", "two red houses", "a dog left of a tree", "blue")


def encode(values, format="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, quality=95)
    return buffer.getvalue()


def record(number: int = 0, **changes) -> Record:
    """Record `number`; its image is uniform in a colour that depends on the number."""
    prompt = PROMPTS[number % len(PROMPTS)]
    words = tuple(split_words(prompt))
    heat = np.zeros((40, 40), np.uint8)
    heat[:20] = 255
    fields = {
        "uid": f"u{number}",
        "prompt": prompt,
        "words": words,
        "word_labels": tuple(i % 2 for i in range(len(words))),
        "image": encode(np.full((32, 32, 3), 10 * number % 256, np.uint8), "JPEG"),
        "implausibility": encode(heat),
        "misalignment": encode(np.rot90(heat)),
        "scores": np.array([0.25, 0.5, 0.75, number / 100], np.float32),
    }
    return Record(**{**fields, **changes})


class Listed:
    """Records in memory; picklable, as a source must be."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(PROMPTS))


@pytest.fixture(scope="module")
def source() -> Listed:
    return Listed([record(i) for i in range(10)])


def make(source, tokenizer, seed=0, process=(0, 1), **changes) -> loader.TrainLoader:
    config = dataclasses.replace(CONFIG, **changes)
    return loader.train_loader(config, SIZE, tokenizer, seed, *process, source=source)


def take(iterator, count) -> list[Batch]:
    return [next(iterator) for _ in range(count)]


def order(batches) -> list[int]:
    return [int(i) for batch in batches for i in batch.index]


def assert_equal(a: list[Batch], b: list[Batch]):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        for name in Batch._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


# --- one example ------------------------------------------------------------------------------------------


def test_fields_by_hand(tokenizer):
    made = example(record(3 - 3), 7, CONFIG, SIZE, tokenizer)
    lengths = (CONFIG.max_prompt_tokens, CONFIG.max_target_tokens, CONFIG.max_words)
    for name, (shape, dtype) in spec(1, SIZE, *lengths).items():
        value = np.asarray(getattr(made, name))
        assert value.shape == shape[1:] and value.dtype == dtype, name
    assert (made.image == 0).all() and made.index == 7 and made.example_mask
    assert tokenizer.decode(made.text_ids) == "a yellow cat, sitting"
    assert tokenizer.decode(made.target_ids) == "a_0 yellow cat_0 sitting"
    assert tokenizer.decode(made.prompt_ids) == "a yellow cat sitting"
    assert made.target_mask.sum() == np.count_nonzero(made.target_ids)
    for place, words in zip(made.word_end[:4], ("a", "a yellow", "a yellow cat", "a yellow cat sitting")):
        assert tokenizer.decode(made.prompt_ids[: place + 1]) == words
    assert made.word_labels.tolist() == [0, 1, 0, 1, 0, 0]
    assert made.word_mask.tolist() == [True] * 4 + [False] * 2 and (made.word_end[4:] == -1).all()
    np.testing.assert_array_equal(made.heatmaps[:11, :, 0], 255)  # implausibility first: the upper half
    np.testing.assert_array_equal(made.heatmaps[13:, :, 0], 0)
    np.testing.assert_array_equal(made.heatmaps[:, :11, 1], 255)  # misalignment: the left half
    np.testing.assert_array_equal(made.heatmaps[:, 13:, 1], 0)
    np.testing.assert_allclose(made.scores, [0.25, 0.5, 0.75, 0.0])
    assert made.heatmap_mask.all() and made.score_mask.all()


def test_missing_labels_are_masked(tokenizer):
    scores = np.array([np.nan, 0.5, np.nan, 1], np.float32)
    bare = record(0, word_labels=None, misalignment=None, scores=scores)
    made = example(bare, 0, CONFIG, SIZE, tokenizer)
    assert not made.target_mask.any() and not made.word_mask.any() and not made.word_labels.any()
    assert made.text_mask.any() and (made.word_end[:4] >= 0).all()  # words can still be scored
    assert made.heatmap_mask.tolist() == [True, False] and not made.heatmaps[..., 1].any()
    assert made.score_mask.tolist() == [False, True, False, True]
    np.testing.assert_array_equal(made.scores, np.array([0, 0.5, 0, 1], np.float32))


def test_words_that_do_not_fit(tokenizer):
    full = example(record(2), 0, CONFIG, SIZE, tokenizer)  # six words
    few = example(record(2), 0, dataclasses.replace(CONFIG, max_words=4), SIZE, tokenizer)
    assert few.word_mask.tolist() == [True] * 4
    np.testing.assert_array_equal(few.word_end, full.word_end[:4])
    np.testing.assert_array_equal(few.target_ids, full.target_ids)
    length = int(full.word_end[3]) + 2  # four words and the end of sequence, not a piece more
    cut = example(record(2), 0, dataclasses.replace(CONFIG, max_target_tokens=length), SIZE, tokenizer)
    np.testing.assert_array_equal(cut.word_end, [*full.word_end[:4], -1, -1])
    assert cut.word_mask.all()  # they exist: metrics count them as not decoded
    assert cut.word_labels.tolist() == full.word_labels.tolist()


def test_label_count_must_fit(tokenizer):
    with pytest.raises(ValueError, match="4 words but 2 labels"):
        example(record(0, word_labels=(0, 1)), 0, CONFIG, SIZE, tokenizer)


def test_augmented_example_stays_registered(tokenizer):
    """A bright square in image and maps, off centre: after each crop all three lie in one place."""
    square = np.zeros((64, 64), np.uint8)
    square[24:36, 30:42] = 255
    marked = record(0, image=encode(np.repeat(square[..., None], 3, -1)), implausibility=encode(square),
                    misalignment=encode(np.asarray(Image.fromarray(square).resize((160, 96)))))  # fmt: skip
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(crop_probability=1.0))
    places = set()
    y, x = np.mgrid[:SIZE, :SIZE]
    for seed in range(20):
        made = example(marked, 0, config, SIZE, tokenizer, np.random.default_rng(seed))
        layers = [made.image.astype(float).mean(-1), made.heatmaps[..., 0], made.heatmaps[..., 1]]
        layers = [np.where(layer > 100, layer, 0.0) for layer in layers]
        points = [np.array([(m * x).sum(), (m * y).sum()]) / m.sum() for m in layers]
        np.testing.assert_allclose(points[1], points[0], atol=0.3)
        np.testing.assert_allclose(points[2], points[0], atol=0.3)
        places.add(tuple(points[0].round(1)))
    assert len(places) > 10  # the crops did differ
    plain = example(marked, 0, config, SIZE, tokenizer, None)
    np.testing.assert_array_equal(plain.image, example(marked, 0, CONFIG, SIZE, tokenizer).image)


# --- the training stream ----------------------------------------------------------------------------------


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
        found = next(batches).image
    assert len({image.tobytes() for image in found}) == 6  # two records in three epochs


def test_processes_share_each_global_batch(source, tokenizer):
    augment = AugmentConfig(photometric_probability=0.5)
    with make(source, tokenizer, augment=augment) as whole:
        expected = take(whole, 4)
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


class Watched(Listed):
    """Writes down in which process it is read, and whether that process has JAX."""

    def __init__(self, records, folder):
        super().__init__(records)
        self.folder = pathlib.Path(folder)

    def __getitem__(self, index):
        have = sorted({"jax", "jaxlib", "torch", "tensorflow"} & set(sys.modules))
        note = self.folder / f".{os.getpid()}-{threading.get_ident()}"
        note.write_text(json.dumps(have))
        note.rename(self.folder / str(os.getpid()))  # whole or not at all: a test may kill this process
        return super().__getitem__(index)


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
                found = take(batches, 3)
                state = batches.get_state()
                found += take(batches, 2)
                assert_equal(found, expected[:5])
            else:
                batches.set_state(state)  # saved with two workers
                assert_equal(take(batches, 4), expected[3:7])
            assert all(type(field) is np.ndarray for field in found[0])
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


def evaluate(source, tokenizer, batch_size=4, process=(0, 1), limit=None):
    options = {"limit": limit, "source": source}
    return loader.eval_loader(CONFIG, "dev", SIZE, tokenizer, batch_size, *process, **options)


def test_evaluation_in_order_and_filled_up(source, tokenizer):
    batches = evaluate(source, tokenizer)
    assert len(batches) == 3
    for _ in range(2):  # again from the start
        found = list(batches)
        assert order(found) == [*range(10), -1, -1]
    last = found[-1]
    assert {batch.image.shape for batch in found} == {(4, SIZE, SIZE, 3)}
    assert last.example_mask.tolist() == [True, True, False, False]
    for name in ("text_mask", "target_mask", "word_mask", "heatmap_mask", "score_mask"):
        assert not getattr(last, name)[2:].any() and getattr(last, name)[:2].any()
    assert (last.word_end[2:] == -1).all() and not last.image[2:].any()
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(crop_probability=1.0, grey_probability=1.0))
    plain = list(loader.eval_loader(config, "dev", SIZE, tokenizer, 4, source=source))
    assert_equal(plain, found)  # never augmented


def test_evaluation_by_several_processes(source, tokenizer):
    whole = list(evaluate(source, tokenizer, 6))
    parts = [list(evaluate(source, tokenizer, 6, (index, 3))) for index in range(3)]
    assert {len(part) for part in parts} == {2}
    assert_equal([Batch(*(np.concatenate(f) for f in zip(*three))) for three in zip(*parts)], whole)
    assert order(parts[2]) == [4, 5, -1, -1]


def test_evaluation_limit(source, tokenizer):
    assert order(evaluate(source, tokenizer, 4, limit=5)) == [0, 1, 2, 3, 4, -1, -1, -1]
    assert order(evaluate(source, tokenizer, 5, limit=99)) == list(range(10))
    with pytest.raises(DataError, match="limit 0 leaves no examples"):
        evaluate(source, tokenizer, limit=0)
