"""Decoding with a key/value cache against re-running the decoder; and the benchmark that compares their times."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.nn import functional
from rahf.text import EOS_ID, PAD_ID
from tests.helpers.model_maker import BOTH, fake, made

LENGTH = 10


def ending_early(config):
    """Parameters with a large random output for the end of sequence, so that it is chosen now and then."""
    graphdef, params = made(config)
    name = "embedding" if config.t5.tie_embeddings else "output"
    matrix = np.array(params[name])
    column = 4 * np.random.default_rng(1).standard_normal(16)
    matrix[(EOS_ID, slice(None)) if config.t5.tie_embeddings else (slice(None), EOS_ID)] = column
    return graphdef, params | {name: matrix}


def rerunning(forced, params, batch):
    """Greedy decoding by the definition: all tokens so far through the decoder for each new one."""
    ids = np.zeros((len(batch.text_ids), LENGTH), np.int32)
    done = np.zeros(len(ids), bool)
    for position in range(LENGTH):
        token = np.asarray(forced(params, batch, ids))[:, position].argmax(-1)
        ids[:, position] = np.where(done, PAD_ID, token)
        done |= token == EOS_ID
    return ids


@pytest.mark.parametrize("name", BOTH)
def test_tokens_are_those_of_rerunning_the_decoder(name):
    graphdef, params = ending_early(BOTH[name])

    def fused(params, batch):
        model = functional.merge(graphdef, params)
        return model, model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)

    @jax.jit
    def generate(params, batch):
        model, memory = fused(params, batch)
        return model.generate(memory, LENGTH)

    @jax.jit
    def forced(params, batch, ids):
        model, memory = fused(params, batch)
        return model.sequence_logits(memory, jnp.asarray(ids))

    batch = fake(8)
    other = batch._replace(image=255 - batch.image, text_ids=batch.text_ids[::-1], text_mask=batch.text_mask[::-1])
    ends = set()
    for one in (batch, other):
        ids = np.asarray(generate(params, one))
        np.testing.assert_array_equal(ids, rerunning(forced, params, one))
        ends |= {row.index(EOS_ID) if EOS_ID in row else LENGTH for row in ids.tolist()}
    assert len(ends) > 2  # sequences end at different times
    assert generate._cache_size() == 1  # whatever is decoded, one compilation


def test_decoding_stops_when_every_sequence_has_ended():
    """The last places are never computed: the loop's count of steps is the longest sequence's length."""
    graphdef, params = made(BOTH["plain"])
    model = functional.merge(graphdef, jax.device_put(params))
    model.vocabulary_logits = lambda hidden: jnp.zeros((*hidden.shape[:2], 48)).at[..., EOS_ID].set(1.0)
    steps, plain = [], model.decoder.step

    def counted(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return plain(*arguments)

    model.decoder.step = counted
    batch = fake(3)
    memory = model.fuse(model.image_tokens(jnp.asarray(batch.image)), batch.text_ids, batch.text_mask)
    ids = np.asarray(model.generate(memory, LENGTH))
    jax.effects_barrier()
    assert len(steps) == 1
    np.testing.assert_array_equal(ids, [[EOS_ID] + [PAD_ID] * (LENGTH - 1)] * 3)


@pytest.fixture(scope="module")
def benchmark(pytestconfig):
    """benchmarks/decode.py as a module."""
    spec = importlib.util.spec_from_file_location("decode", pytestconfig.rootpath / "benchmarks" / "decode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_prints_one_line(benchmark, monkeypatch, capsys):
    monkeypatch.setitem(benchmark.SIZES, "mid", (64, 1, 64, 1, 8))
    monkeypatch.setattr("sys.argv", ["decode.py", "--tokens", "5", "--batch", "2", "--repeats", "2"])
    benchmark.main()
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["identical"] is True and (record["tokens"], record["batch"], record["size"]) == (5, 2, "mid")
    assert record["ratio_range"][0] <= record["ratio"] <= record["ratio_range"][1]


def test_the_benchmark_notices_a_wrong_cache(benchmark, monkeypatch):
    monkeypatch.setitem(benchmark.SIZES, "mid", (64, 1, 64, 1, 8))
    plain = benchmark.rerun
    monkeypatch.setattr(benchmark, "rerun", lambda *arguments: plain(*arguments).at[0, 0].add(1))
    with pytest.raises(AssertionError, match="the cache changes the tokens"):
        benchmark.measure("mid", 4, 2, 1, "float32")


def test_the_benchmarks_help_teaches(benchmark, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["decode.py", "--help"])
    with pytest.raises(SystemExit):
        benchmark.main()
    shown = capsys.readouterr().out
    assert "python benchmarks/decode.py" in shown and "--size" in shown and "T5-base" in shown
