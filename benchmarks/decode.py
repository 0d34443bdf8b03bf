"""Measures greedy decoding with a key/value cache against re-running the decoder for every token. Prints one JSON line.

    python benchmarks/decode.py [--size mid] [--tokens 64] [--batch 8] [--repeats 5]

Both run in turn, in the same process, on the same random network and memory; the tokens must be identical. The
decoder that is re-run sees all positions at every step, because shapes are static, but computes the vocabulary's logits
only for the next token, which favours it in the comparison. "mid" suits a CPU, "base" is T5-base beside the 576 patches
of a 384 px picture.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import CriticConfig, HeatmapHeadConfig, ScoreHeadConfig, T5Config, ViTConfig
from rahf.critic.networks import build, outputs
from rahf.critic.networks import multi_head as model_lib
from rahf.nn import functional
from rahf.text import EOS_ID, PAD_ID

#: Width, heads, width of the feed-forward layers, decoder layers, memory positions.
SIZES = {"small": (128, 4, 256, 2, 64), "mid": (512, 8, 1024, 6, 320), "base": (768, 12, 3072, 12, 640)}


def network(size: str, dtype: str) -> CriticConfig:
    """A network with a decoder of this size; the parts before the decoder are tiny."""
    width, heads, mlp, layers, _ = SIZES[size]
    return CriticConfig(
        image_size=16,
        vit=ViTConfig(patch_size=8, width=16, depth=1, heads=1, mlp_width=16),
        t5=T5Config(
            width=width, heads=heads, head_width=64, mlp_width=mlp, encoder_layers=1, decoder_layers=layers, ff="relu"
        ),
        heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=()),
        score_head=ScoreHeadConfig(conv_widths=(), dense_widths=()),
        compute_dtype=dtype,
    )


def rerun(model: model_lib.Rahf, fused: outputs.Fused, length: int) -> jax.Array:
    """Greedy decoding without a cache: runs the decoder on all positions for every token."""
    batch = fused.memory.shape[0]

    def running(state):
        position, _, done = state
        return (position < length) & ~done.all()

    def step(state):
        position, ids, done = state
        inputs = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
        hidden = model.decoder(model.embed(inputs), fused.memory, fused.memory_mask)
        here = jax.lax.dynamic_slice_in_dim(hidden, position, 1, 1)
        token = jnp.argmax(model.vocabulary_logits(here)[:, 0], -1).astype(jnp.int32)
        token = jnp.where(done, PAD_ID, token)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, token[:, None], position, 1)
        return position + 1, ids, done | (token == EOS_ID)

    state = (jnp.int32(0), jnp.zeros((batch, length), jnp.int32), jnp.zeros(batch, bool))
    return jax.lax.while_loop(running, step, state)[1]


def measure(size: str, tokens: int, batch: int, repeats: int, dtype: str) -> dict[str, object]:
    """Runs both variants in turn; returns the result for JSON."""
    config = network(size, dtype)
    graphdef, _ = functional.abstract(build.build(config))
    params = functional.init(build.build(config), seed=0)
    params["output"] = params["output"].at[:, EOS_ID].set(0.0)  # never the highest: every sequence has full length
    positions = SIZES[size][4]
    stream = np.random.default_rng(0)
    memory = jnp.asarray(stream.standard_normal((batch, positions, config.t5.width), np.float32), jnp.dtype(dtype))
    mask = jnp.asarray(np.arange(positions) < stream.integers(positions // 2, positions + 1, batch)[:, None])
    fused = outputs.Fused(memory[:, :4].reshape(batch, 2, 2, -1), memory, mask)
    variants = {
        "cached": jax.jit(lambda p, f: functional.merge(graphdef, p).generate(f, tokens)),
        "rerun": jax.jit(lambda p, f: rerun(functional.merge(graphdef, p), f, tokens)),
    }
    ids = {name: np.asarray(variant(params, fused)) for name, variant in variants.items()}
    assert (ids["cached"] != EOS_ID).all() and ids["cached"].std(0).max() > 0, "the sequences are not worth comparing"
    assert (ids["cached"] == ids["rerun"]).all(), "the cache changes the tokens"
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            clock, cpu_clock = time.perf_counter(), time.process_time()
            variant(params, fused).block_until_ready()
            seconds[name].append(time.perf_counter() - clock)
            processor[name].append(time.process_time() - cpu_clock)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    ratios = np.array(seconds["rerun"]) / np.array(seconds["cached"])
    on_cpu = jax.default_backend() == "cpu"
    return {
        "benchmark": "decode",
        "device": jax.devices()[0].device_kind,
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "size": size,
        "decoder_parameters": functional.count(params["decoder"]),
        "dtype": dtype,
        "tokens": tokens,
        "batch": batch,
        "memory": positions,
        "cached_seconds": round(medians["cached"], 4),
        "rerun_seconds": round(medians["rerun"], 4),
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_range": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
        # Processor time of all threads: other programs hardly change it; on an accelerator it has no meaning.
        "processor_ratio": round(np.median(processor["rerun"]) / np.median(processor["cached"]), 2) if on_cpu else None,
        "tokens_per_second": round(batch * tokens / medians["cached"], 1),
        "identical": True,
    }


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder (default: mid)")
    parser.add_argument("--tokens", type=int, default=64, help="to generate (default: 64)")
    parser.add_argument("--batch", type=int, default=8, help="sequences (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each variant, in turn (default: 5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    args = parser.parse_args()
    print(json.dumps(measure(args.size, args.tokens, args.batch, args.repeats, args.dtype)))


if __name__ == "__main__":
    main()
