"""Times the same network in plain PyTorch beside ours: forward, backward and AdamW, in one run on one machine.

    python benchmarks/torch_peer.py --preset demo [--batch 32]           # CPU: interleaved with ours, ratios
    python benchmarks/torch_peer.py --preset vitl --batch 32             # GPU: each variant in a process of its own

    python benchmarks/torch_peer.py --preset vitl --variant tuned --work scores   # inference of one variant alone

Variants: `eager` (float32, PyTorch's defaults), `tuned` (bfloat16 autocast, channels-last, torch.compile, fused
AdamW). Needs PyTorch beside rahf. On a CPU a busy machine disturbs both, so rounds alternate, and the ratios of
neighbouring rounds are reported, by the clock and by the processor time used, and that of the fastest steps. Beside
every ratio stand the speed of a large matrix product on the same machine (the faster of JAX's and PyTorch's) and the
share of it that each step reaches: only machines that agree in these can be compared in the ratio. As in
`rahf train`, the process keeps freed memory (`rahf.core.process`), for PyTorch, too.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import measuring
import torch
import torch_network
import train_step
import turns

from rahf.config import Config
from rahf.core import process
from rahf.critic.networks import heads
from rahf.critic.task import CriticTask
from rahf.training import sharding
from rahf.training import state as state_lib
from rahf.training.step import make_train_step

VARIANTS = ("ours", "eager", "tuned")


def network(config: Config, flat: dict | None = None) -> torch_network.Rahf:
    """The PyTorch network of a config; with parameters of our network by path, if `flat` is not None."""
    model = config.model
    grid = model.image_size // model.vit.patch_size
    module = torch_network.Rahf(model, heads.up_widths(model.heatmap_head, model.image_size, grid))
    if flat is not None:
        torch_network.load(module, flat)
    return module


def inputs(config: Config, size: int, device: str) -> dict[str, torch.Tensor]:
    """The batch of `measuring.fake`, with images normalised by 0.5 and heatmaps in [0,1], channels first."""
    batch = measuring.fake(config, size)
    names = ("text_ids", "text_mask", "target_ids", "target_mask", "scores")
    tensors = {name: torch.from_numpy(getattr(batch, name)).to(device) for name in names}
    tensors |= {name: tensors[name].long() for name in ("text_ids", "target_ids")}
    tensors["image"] = (torch.from_numpy(batch.image).to(device).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    tensors["heatmaps"] = torch.from_numpy(batch.heatmaps).to(device).float() / 255
    return tensors


def torch_step(config: Config, size: int, tuned: bool) -> Callable[[], torch.Tensor]:
    """One training step of the PyTorch network, as a function without arguments that returns the loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, batch, c = network(config).to(device), inputs(config, size, device), config.optimizer
    if tuned:
        module = module.to(memory_format=torch.channels_last)
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
    options = dict(lr=c.learning_rate, betas=(c.b1, c.b2), eps=c.eps, weight_decay=c.weight_decay)
    optimizer = torch.optim.AdamW(module.parameters(), **options, **({"fused": True} if tuned else {}))
    forward = torch.compile(module) if tuned else module

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=tuned):
            outputs = forward(batch["image"], batch["text_ids"], batch["text_mask"], batch["target_ids"])
        loss = torch_network.loss(config, outputs, batch)
        loss.backward()
        if c.clip_norm:
            torch.nn.utils.clip_grad_norm_(module.parameters(), c.clip_norm)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return step


def torch_inference(config: Config, size: int, tuned: bool, work: str) -> Callable[[], torch.Tensor]:
    """One prediction of the PyTorch network: `all` its outputs by teacher forcing, or the `scores` alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, batch = network(config).to(device).eval(), inputs(config, size, device)
    if tuned:
        module = module.to(memory_format=torch.channels_last)
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
    arguments = [batch[name] for name in ("image", "text_ids", "text_mask")]
    arguments += [batch["target_ids"]] if work == "all" else []
    function = module if work == "all" else module.scores
    forward = torch.compile(function) if tuned else function

    @torch.no_grad()
    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=tuned):
            outputs = forward(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()
        return outputs

    return step


def torch_matmul_peak(dtype: torch.dtype) -> float:
    """TFLOP/s of the fastest of several products of large square matrices of random values in PyTorch."""
    on_gpu = torch.cuda.is_available()
    side = 8192 if on_gpu else 2048
    x = torch.randn(side, side, device="cuda" if on_gpu else "cpu", dtype=dtype)

    def product() -> None:
        x @ x
        if on_gpu:
            torch.cuda.synchronize()

    return 2 * side**3 / min(clock for clock, _ in measuring.timed(product, 10)) / 1e12


def our_step(config: Config, size: int) -> Callable[[], jax.Array]:
    """One training step of our network, as a function that waits for its end."""
    setup = state_lib.setup(CriticTask(config, None))
    held = {"state": state_lib.create(CriticTask(config, None), setup)}
    batch = sharding.to_devices(measuring.fake(config, size), setup.mesh)
    function = make_train_step(CriticTask(config, None), setup)

    def step() -> jax.Array:
        held["state"], metrics = function(held["state"], batch)
        return jax.block_until_ready(metrics.total)

    return step


def interleaved(config: Config, size: int, rounds: int, seconds: float) -> dict:
    """Our network and eager PyTorch in turn, on the same cores: medians of rounds, and the fastest step of all."""
    peaks = {"jax": measuring.matmul_peak(config.model.compute_dtype), "torch": torch_matmul_peak(torch.float32)}
    tflop = train_step.flops(config, measuring.fake(config, size)) / 1e12
    steps = {"ours": our_step(config, size), "eager": torch_step(config, size, tuned=False)}
    result = measuring.in_turns(steps, rounds, seconds)
    result["matmul_peak_tflop_per_second"] = {name: round(peak, 4) for name, peak in peaks.items()}
    result["tflop_per_step"] = round(tflop, 9)
    for name in steps:
        result[f"{name}_share_of_matmul_peak"] = round(1e3 * tflop / result[f"{name}_ms"] / max(peaks.values()), 6)
    return result


def largest(config: Config, size: int, tuned: bool, work: str, rounds: int, seconds: float) -> dict:
    """`alone` with the largest of `size`, `size / 2`, ... examples for which the memory suffices."""
    while size:
        if result := alone(config, size, tuned, work, rounds, seconds):
            return result
        print(f"out of memory with {size} examples", file=sys.stderr, flush=True)
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        size //= 2
    return {"error": "out of memory"}


def alone(config: Config, size: int, tuned: bool, work: str, rounds: int, seconds: float) -> dict:
    """One PyTorch variant in this process: a training step, or a prediction. Empty if the memory does not suffice."""
    operations = train_step.flops(config, measuring.fake(config, size)) if work == "train" else 0
    try:
        turns.share()
        step = torch_step(config, size, tuned) if work == "train" else torch_inference(config, size, tuned, work)
        began = time.perf_counter()
        step()
        first = time.perf_counter() - began
        turns.alone()
        step()
        count = max(1, round(seconds / measuring.timed(step, 2)[1][0]))
        middle = statistics.median(clock for _ in range(rounds) for clock, _ in measuring.timed(step, count))
    except torch.OutOfMemoryError:
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else measuring.peak_memory()
    speed = {"images_per_second": round(size / middle, 2), "ms": round(1e3 * middle, 2)}
    speed["matmul_peak_tflop_per_second"] = round(torch_matmul_peak(torch.bfloat16 if tuned else torch.float32), 4)
    if work == "train" and tuned:  # eager: products in float32, convolutions in TF32: no one limit holds for both
        achieved = operations / middle / 1e12
        speed["share_of_matmul_peak"] = round(achieved / speed["matmul_peak_tflop_per_second"], 4)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    speed |= {"batch": size, "first_step_seconds": round(first, 2), "peak_gib": round(peak, 2)}
    return speed | {"device": device, "dtype": "bfloat16 autocast" if tuned else "float32"}


def apart(args, fields: list[str]) -> dict:
    """Every variant in a process of its own, one after the other, so that each has all memory of the GPU."""
    folder, result = pathlib.Path(__file__).resolve().parent, {}
    common = ["--preset", args.preset, "--rounds", str(args.rounds), "--seconds", str(args.seconds)]
    common += ["--batch", str(args.batch)] if args.batch else []
    for variant in VARIANTS:
        own = ["train_step.py"] if variant == "ours" else ["torch_peer.py", "--variant", variant]
        command = [sys.executable, str(folder / own[0]), *own[1:], *common, *fields]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines()
        result[variant] = json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": done.stderr[-2000:]}
    speeds = {name: measured.get("images_per_second") for name, measured in result.items()}
    for variant in VARIANTS[1:]:
        if speeds["ours"] and speeds[variant]:
            result[f"ratio_to_{variant}"] = round(speeds["ours"] / speeds[variant], 3)
    return result


def main() -> None:
    """Parses, measures, prints."""
    parser = measuring.arguments(__doc__.split("\n")[0])
    parser.add_argument("--variant", choices=VARIANTS[1:], help="only this one, alone, in this process")
    parser.add_argument("--work", choices=("train", "all", "scores"), default="train", help="of a variant alone")
    args, fields = parser.parse_known_args()
    process.dispatch_in_line()
    if args.variant:  # JAX only counts operations then; on a GPU it would take most of the memory
        jax.config.update("jax_platforms", "cpu")
    config = measuring.preset(args.preset, args.batch, fields)
    config = dataclasses.replace(  # PyTorch's network has no such head
        config,
        model=dataclasses.replace(config.model, tag_head=False),
        loss=dataclasses.replace(config.loss, tag_weight=0.0),
    )
    size = config.data.batch_size
    result = {"benchmark": "torch peer", "preset": args.preset, "batch": size, "torch": torch.__version__}
    if args.variant:
        result |= {"variant": args.variant, "work": args.work}
        result |= largest(config, size, args.variant == "tuned", args.work, args.rounds, args.seconds)
    elif torch.cuda.is_available():
        result |= apart(args, fields)
    else:
        result |= measuring.described(config, size) | {"threads": torch.get_num_threads()}
        result |= interleaved(config, size, args.rounds, args.seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    process.restart()
    main()
