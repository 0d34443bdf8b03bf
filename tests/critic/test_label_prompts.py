"""Prefixes of the augmented prompt, and the draw of tasks in a training step."""

import collections
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf import config as config_lib
from rahf.config import Config, CriticConfig
from rahf.critic import label_prompts
from rahf.critic.networks import augmented_prompt, build
from rahf.text import Tokenizer, train_tokenizer

AUGMENTED = Config(model=CriticConfig(variant="augmented-prompt"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer(["a red cat on a blue mat", "two dogs"], 400))


# Names of tasks


def test_names_of_the_tasks(tokenizer):
    assert label_prompts.TASKS == (
        "implausibility heatmap",
        "misalignment heatmap",
        "plausibility score",
        "alignment score",
        "aesthetics score",
        "overall score",
    )
    prefixes = label_prompts.encode(tokenizer)
    assert [tokenizer.decode(ids) for ids in prefixes] == list(label_prompts.TASKS)  # byte by byte if need be
    assert tokenizer.encode("overall score a red cat") == [*prefixes[5], *tokenizer.encode("a red cat")]


def test_a_vocabulary_without_the_letters_is_refused():
    from io import BytesIO

    import sentencepiece

    writer = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red cat_0 on a blue mat 1"] * 3), model_writer=writer, vocab_size=40,
        hard_vocab_limit=False, model_type="bpe", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="vocabulary small cannot write 'implausibility heatmap'.*byte pieces"):
        label_prompts.encode(Tokenizer(writer.getvalue(), "small"))


def test_a_vocabulary_that_writes_two_alike_is_refused():
    alike = types.SimpleNamespace(encode=lambda text: [len(text.split()) + 5], source="coarse")
    with pytest.raises(ValueError, match="coarse writes 'implausibility heatmap' and 'misalignment heatmap' alike"):
        label_prompts.encode(alike)


def test_a_run_learns_its_prefixes(tokenizer):
    config = label_prompts.resolve(AUGMENTED, tokenizer)
    assert config.model.task_ids == label_prompts.encode(tokenizer)
    assert label_prompts.resolve(config, tokenizer) == config  # as when it is resumed
    assert config_lib.from_json(config_lib.to_json(config)) == config
    assert label_prompts.resolve(Config(), tokenizer) == Config()
    other = Tokenizer(train_tokenizer(["plausibility and alignment, overall"], 400), "other.model")
    with pytest.raises(ValueError, match="task_ids are not those of the vocabulary other.model; leave them out"):
        label_prompts.resolve(config, other)


# Prefixes in front of prompts


def test_prefixes_stand_directly_before_the_prompt():
    prefixes = ((11, 12), (21,), (31, 32, 33), (41,), (51,), (61,))
    text = np.array([[5, 6, 1, 9], [7, 1, 9, 9], [5, 6, 7, 1], [8, 1, 9, 9]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
    ids, filled = augmented_prompt.prepend(prefixes, jnp.array([0, 2, 2, 6]), text, mask)
    wanted = [
        [11, 12, 5, 6, 1, 0, 0],
        [31, 32, 33, 7, 1, 0, 0],
        [31, 32, 33, 5, 6, 7, 1],
        [8, 1, 0, 0, 0, 0, 0],  # the sequence task has no prefix
    ]
    np.testing.assert_array_equal(np.where(filled, ids, 0), wanted)
    np.testing.assert_array_equal(filled, np.array(wanted) > 0)
    with pytest.raises(ValueError, match="task_ids has 0 prefixes, expected 6; a run finds them when it starts"):
        augmented_prompt.prepend((), jnp.array([0]), text[:1], mask[:1])


# The draw


def test_strata():
    sizes = {1: 1, 6: 6, 8: 8, 32: 32, 64: 32, 256: 32, 48: 24, 37: 37, 74: 74}
    assert {size: augmented_prompt._stratum(size) for size in sizes} == sizes


def test_every_task_is_equally_likely_for_every_example():
    keys = jax.random.split(jax.random.key(0), 7000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: augmented_prompt.draw_tasks(key, 9, 2)))(keys))
    for row in drawn.transpose(1, 0, 2):
        share = np.bincount(row.ravel(), minlength=7) / 7000
        np.testing.assert_allclose(share, 2 / 7, atol=5 * (2 / 7 * 5 / 7 / 7000) ** 0.5)
    # Who shares a task with whom is a matter of chance, too.
    together = (drawn[:, :, None, :, None] == drawn[:, None, :, None, :]).any((3, 4)).mean(0)
    np.testing.assert_allclose(together[~np.eye(9, dtype=bool)], together[0, 1], atol=0.04)
    np.testing.assert_array_equal(drawn[5], augmented_prompt.draw_tasks(keys[5], 9, 2))
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(("examples", "passes"), [(3, 1), (37, 2), (64, 3), (14, 7)])
def test_tasks_are_dealt_evenly_and_have_their_places(examples, passes):
    stratum = augmented_prompt._stratum(examples)
    strata = examples // stratum
    kinds = ((0, 2), (2, 4), (6, 1))

    @jax.jit
    def run(key):
        drawn = augmented_prompt.draw_tasks(key, examples, passes)
        slots = [augmented_prompt.places(drawn, strata, *kind) for kind in kinds]
        return drawn, [(s, augmented_prompt.pick(jnp.arange(examples * passes), s.rows)) for s in slots]

    drawn, slots_and_rows = jax.device_get(run(jax.random.key(4)))
    assert drawn.shape == (examples, passes) and drawn.min() >= 0 and drawn.max() < 7
    assert all(len(set(row)) == passes for row in drawn.tolist())  # no example twice the same
    counts = np.stack([np.bincount(part, minlength=7) for part in drawn.reshape(strata, -1)])
    assert np.ptp(counts, 1).max() <= 1
    seen, rounds, rest = collections.Counter(), *divmod(stratum * passes, 7)
    for (first, count), (slots, rows) in zip(kinds, slots_and_rows):
        assert slots.rows.shape == (strata, rounds * count + min(count, rest))  # not one more than may be needed
        for row, task, valid in zip(rows, slots.tasks, slots.valid):
            dealt = drawn.ravel()[row]
            assert dealt == first + task if valid else not first <= dealt < first + count
            seen[int(row)] += bool(valid)
    assert [seen[row] for row in range(examples * passes)] == [1] * (examples * passes)


def test_tasks_per_example_are_checked():
    from rahf.nn import functional

    for number in (0, 8):
        config = dataclasses.replace(AUGMENTED.model, tasks_per_example=number)
        with pytest.raises(ValueError, match=f"tasks_per_example {number}: expected 1 to 7"):
            functional.abstract(build.build(config))
