"""Several data sets in one stream: proportions, order, resuming; soft word labels in a batch."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.loading import loader
from data_pipelines.loading.examples import example
from rahf.config import DataConfig, from_json, to_json
from rahf.core.errors import ConfigError, DataError
from tests.helpers.loader_maker import CONFIG, SIZE, Listed, assert_equal, record, take


def mixed(tokenizer, sources, seed=0, **changes):
    config = dataclasses.replace(CONFIG, path=tuple(f"data/{n}" for n in range(len(sources))), **changes)
    return loader.TrainLoader(config, SIZE, tokenizer, seed, 0, 1, *sources)


def two():
    """Records 0..5 without scores, and 0..2 of another set without maps: labels tell them apart."""
    one = Listed([record(n, scores=np.full(4, np.nan, np.float32)) for n in range(6)])
    return one, Listed([record(n, implausibility=None, misalignment=None) for n in range(3)])


def drawn(batches):
    """(set, index) of every example in order."""
    return [
        (int(scored), int(index)) for batch in batches for scored, index in zip(batch.score_mask[:, 0], batch.index)
    ]


def test_proportions_and_missing_labels(tokenizer):
    with mixed(tokenizer, two()) as stream:
        examples = drawn(batches := take(stream, 9))
    assert sum(of_two for of_two, _ in examples) == 12  # 3 of 9, as often as it has examples
    assert sorted(i for of_two, i in examples if not of_two) == sorted([*range(6)] * 4)  # whole passes
    for batch in batches:
        np.testing.assert_array_equal(batch.score_mask.any(1), ~batch.heatmap_mask.any(1))
    with mixed(tokenizer, two(), mix=(1.0, 3.0)) as stream:
        assert sum(of_two for of_two, _ in drawn(take(stream, 8))) == 24


def test_the_stream_is_a_function_of_the_seed_and_goes_on_where_it_was(tokenizer):
    with mixed(tokenizer, two()) as stream:
        whole = take(stream, 6)
    with mixed(tokenizer, two()) as stream:
        take(stream, 2)
        state = stream.get_state()
    with mixed(tokenizer, two(), batch_size=8) as stream:  # another size of batches, the same examples
        stream.set_state(state)
        assert drawn(take(stream, 2)) == drawn(whole[2:])
    with mixed(tokenizer, two(), seed=1) as stream:
        assert drawn(take(stream, 6)) != drawn(whole)
    for changes in ({"mix": (1.0, 1.0)}, {}):
        sources = two() if changes else two()[::-1]
        with mixed(tokenizer, sources, **changes) as stream, pytest.raises(DataError, match="other data"):
            stream.set_state(state)


def test_one_set_gives_the_stream_that_it_always_gave(tokenizer):
    source = two()[0]
    with mixed(tokenizer, [source]) as stream, loader.train_loader(CONFIG, SIZE, tokenizer, 0, source=source) as plain:
        assert_equal(take(stream, 3), take(plain, 3))


@pytest.mark.parametrize("mix", [(1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, 2.0, 3.0)])
def test_weights_that_cannot_be(tokenizer, mix):
    with pytest.raises(ConfigError, match="data.mix: expected 2 numbers above 0"):
        mixed(tokenizer, two(), mix=mix)


def test_a_bad_record_is_named_with_its_set(tokenizer):
    sources = Listed([record(n) for n in range(3)]), Listed([record(n, image=b"x", uid=f"bad{n}") for n in range(3)])
    with mixed(tokenizer, sources) as stream, pytest.raises(DataError, match=r"dataset data/1.*uid 'bad"):
        take(stream, 4)


def test_several_folders_in_a_config():
    config = DataConfig(path=("a", "b"), mix=(0.25, 0.75))
    assert config.paths == ("a", "b") and DataConfig(path="a").paths == ("a",)
    assert config.only("b") == DataConfig(path="b")
    assert from_json(to_json(config), DataConfig) == config
    assert from_json(to_json(DataConfig(path="a")), DataConfig) == DataConfig(path="a")


def test_shares_of_people_stand_behind_their_words(tokenizer):
    soft = record(0, word_labels=(1, 0, 1, 1), word_shares=(0.75, 0.25, 1.0, 0.5))  # "a yellow cat sitting"
    config = dataclasses.replace(CONFIG, max_target_tokens=40)
    made = example(soft, 0, config, SIZE, tokenizer)
    suffix = tokenizer.suffix_ids
    plain, ends = tokenizer.encode_target(soft.words, (1, 0, 1, 1), 40)
    np.testing.assert_array_equal(made.target_ids, plain.ids)
    expected_ids, expected_shares = np.zeros(40, int), np.zeros(40)
    for word, share in enumerate((0.25, 0.25, 0.0, 0.5)):  # of the label that the target does not have
        place = ends[word] + 1
        expected_ids[place] = plain.ids[place + len(suffix)] if word == 1 else suffix[0]
        expected_shares[place] = share
    np.testing.assert_array_equal(made.other_ids, expected_ids)
    np.testing.assert_allclose(made.other_shares, expected_shares)
    np.testing.assert_array_equal(made.word_labels[:4], (1, 0, 1, 1))
    for hard in (dataclasses.replace(config, soft_words=False), config):
        without = soft if not hard.soft_words else soft._replace(word_shares=None)
        assert not example(without, 0, hard, SIZE, tokenizer).other_shares.any()
    cut = example(soft, 0, dataclasses.replace(config, max_target_tokens=4), SIZE, tokenizer)
    assert cut.other_shares.shape == (4,) and cut.target_mask.any()
