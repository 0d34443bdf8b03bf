"""Measures prediction. Prints one JSON line.

    python benchmarks/inference.py --preset demo|vitl|fast|paper [--batch 32] [--mode all|scores|heatmaps|generate]

`all` is heatmaps, scores and constrained scoring of the words by teacher forcing; `generate` also
decodes the target sequence; `scores` and `heatmaps` compute nothing else.
"""

from __future__ import annotations

import functools
import json
import time

import jax
import measuring
import turns

from rahf.critic import apply
from rahf.critic.networks import build as build_lib
from rahf.nn import functional
from rahf.nn.flops import count_flops


def main() -> None:
    """Parses, measures, prints."""
    parser = measuring.arguments(__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=("all", "scores", "heatmaps", "generate"), default="all")
    args, fields = parser.parse_known_args()
    turns.share()
    config = measuring.preset(args.preset, args.batch, fields)
    size, length = config.data.batch_size, config.data.max_target_tokens
    build = build_lib.build(config.model)
    graphdef, _ = functional.abstract(build)
    host = measuring.fake(config, size)
    texts = [host.text_ids, host.text_mask]
    if args.mode in ("scores", "heatmaps"):
        function = functools.partial(getattr(apply, args.mode), graphdef)
    else:
        function = functools.partial(apply.forward, graphdef, 4, length, generate=args.mode == "generate")
        texts += [host.prompt_ids, host.word_end]
    arguments = jax.device_put((functional.init(build, 0), host.image, *texts))
    result = {"benchmark": "inference", "mode": args.mode, "preset": args.preset, **measuring.described(config, size)}
    compiled, compilation = measuring.compiled(jax.jit(function), *arguments)
    result |= compilation
    operations = count_flops(function, *arguments, trips=length)
    turns.alone()
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    result["first_step_seconds"] = round(time.perf_counter() - start, 3)
    peak = measuring.matmul_peak(config.model.compute_dtype)
    seconds = measuring.per_call(lambda: compiled(*arguments), args.seconds, args.rounds)
    result |= measuring.speed(seconds, size, operations, peak)
    result |= {"peak_gib": round(measuring.peak_memory(), 2), "planned_gib": measuring.memory_of(compiled)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
