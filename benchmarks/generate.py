"""Times one step of the U-Net and a whole sampling, ours and PyTorch's, in turns on one device. Prints one JSON line.

    python benchmarks/generate.py --preset sd15 --side 256 --steps 4     # the networks of Stable Diffusion 1.5
    python benchmarks/generate.py --preset demo                          # widths and cells of configs/diffusion/demo.py

Both run the same random parameters: ours are exported, and `diffusers` loads the folder. A step is one call of the
U-Net for one picture with classifier-free guidance, a batch of two. A sampling encodes the prompt, takes `--steps` of
DDIM and decodes. PyTorch is eager, in the same dtype. Needs `pip install rahf[torch]`, and for `sd15` 12 GB of
memory and 5 GB of disk. The differences of the results stand beside the times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np

from rahf.config import AutoencoderKLConfig, ClipTextConfig, StableDiffusionConfig, UNetConfig
from rahf.core import process
from rahf.diffusion import untrained
from rahf.diffusion.networks.stable_diffusion import Conditions
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.published.export_folder import write_pipeline
from rahf.nn import functional
from rahf.nn.execution import jit_convolving
from rahf.nn.flops import count_flops

#: The demo's generator works on cells of 4 x 4 pixels; here an autoencoder makes them, as in this family.
DEMO = StableDiffusionConfig(
    image_size=64,
    unet=UNetConfig(
        block_out_channels=(64, 128),
        cross_attention=(False, True),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        num_attention_heads=(4, 4),
        cross_attention_dim=128,
        norm_num_groups=8,
    ),
    vae=AutoencoderKLConfig(block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8),
    text_encoder=ClipTextConfig(vocab_size=1024, width=128, depth=2, heads=4, mlp_width=512, eos_token_id=1023),
    pad_token_ids=(1023,),
)
PRESETS = {"sd15": StableDiffusionConfig(), "demo": DEMO, "tiny": untrained.TINY}
PROMPT = "a cat"


def torch_pipeline(pipe: Pipeline) -> Any:
    """The same networks in `diffusers`, on the GPU if PyTorch has one."""
    import torch
    from diffusers import DiffusionPipeline

    with tempfile.TemporaryDirectory() as folder:
        exported = pathlib.Path(folder) / "exported"
        write_pipeline(exported, pipe.config.model, jax.device_get(pipe.params), pipe.tokenizer)
        peer = DiffusionPipeline.from_pretrained(exported)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    peer = peer.to(place) if pipe.config.model.compute_dtype == "float32" else peer.to(place, dtype=torch.bfloat16)
    peer.set_progress_bar_config(disable=True)
    return peer


Work = Mapping[str, Callable[[], np.ndarray]]


def unet_steps(pipe: Pipeline, peer: Any, side: int) -> tuple[Work, int]:
    """One call of either U-Net on the same latents and conditions, and its floating-point operations."""
    import torch

    model, cells = pipe.config.model, side // pipe.scale_factor
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, cells, cells, pipe.channels)).astype(np.float32)
    words = rng.standard_normal((2, model.text_encoder.positions, model.unet.cross_attention_dim)).astype(np.float32)
    times = np.full(2, 500, np.float32)
    forward = lambda params, *inputs: functional.merge(pipe.graphdef, params)(*inputs)  # noqa: E731
    compiled = jit_convolving(forward, max(model.unet.block_out_channels))  # as the pipeline does
    ours = [*map(jnp.asarray, (latents, times)), Conditions(jnp.asarray(words))]
    place = {"device": peer.device, "dtype": peer.dtype}
    theirs = [torch.from_numpy(np.moveaxis(latents, -1, 1)).to(**place), torch.tensor(500, device=peer.device)]
    words = torch.from_numpy(words).to(**place)

    def eager() -> np.ndarray:
        with torch.inference_mode():
            output = peer.unet(*theirs, encoder_hidden_states=words).sample
        return np.moveaxis(output.float().cpu().numpy(), 1, -1)

    work = {"ours": lambda: np.asarray(compiled(pipe.params, *ours), np.float32), "eager": eager}
    return work, count_flops(forward, pipe.params, *ours)


def samplings(pipe: Pipeline, peer: Any, side: int, steps: int) -> Work:
    """A whole sampling of either pipeline from the same noise."""
    import torch

    cells = side // pipe.scale_factor
    noise = np.random.default_rng(0).standard_normal((1, cells, cells, pipe.channels)).astype(np.float32)
    common = {"num_inference_steps": steps, "guidance_scale": 7.5, "height": side, "width": side}
    theirs = torch.from_numpy(np.moveaxis(noise, -1, 1)).to(peer.device, peer.dtype)
    return {
        "ours": lambda: pipe(PROMPT, latents=noise, **common).images,
        "eager": lambda: peer(PROMPT, latents=theirs, output_type="np", **common).images,
    }


def compared(work: Work, rounds: int, seconds: float) -> dict[str, Any]:
    """Times of both, and how far their results are apart, beside the size of these."""
    results = {name: call() for name, call in work.items()}
    difference = float(np.abs(results["ours"] - results["eager"]).max())
    largest = float(np.abs(results["eager"]).max())
    measured = measuring.in_turns(work, rounds, seconds)
    return {**measured, "largest_difference": round(difference, 7), "largest_value": round(largest, 4)}


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--side", type=int, default=None, help="of the pictures, in pixels; default: 256, demo 64")
    parser.add_argument("--work", choices=("unet_step", "sampling"), default=None, help="only this")
    parser.add_argument("--steps", type=int, default=10, help="of a sampling")
    parser.add_argument("--rounds", type=int, default=5, help="measurements; the median counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of a measurement")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both")
    args = parser.parse_args()
    process.share_gpu_memory()
    process.dispatch_in_line()
    import torch

    model = dataclasses.replace(PRESETS[args.preset], compute_dtype=args.dtype)
    side = args.side or min(model.image_size, 256)
    pipe = untrained.pipeline(model)
    peer = torch_pipeline(pipe)
    work, flops = unet_steps(pipe, peer, side)
    result = {
        "benchmark": "generate",
        "preset": args.preset,
        "side": side,
        "sampling_steps": args.steps,
        **measuring.device(),
        "dtype": args.dtype,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "million_parameters": round(functional.count(pipe.params) / 1e6, 1),
        "tflop_per_unet_step": round(flops / 1e12, 6),
    }
    works = {"unet_step": work, "sampling": samplings(pipe, peer, side, args.steps)}
    for name in works if args.work is None else [args.work]:
        result[name] = compared(works[name], args.rounds, args.seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    process.restart()
    main()
