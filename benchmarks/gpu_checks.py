"""Checks that a GPU computes what the network means. Prints one JSON line; its "passed" says whether all is well.

    python benchmarks/gpu_checks.py attention      # cuDNN's fused kernel against XLA in float32, forward and backward
    python benchmarks/gpu_checks.py precision      # bfloat16 against float32: outputs, and each parameter's gradient
    python benchmarks/gpu_checks.py upsampling     # sub-pixel against transposed convolution: values and time
    python benchmarks/gpu_checks.py export         # an exported file on this device against the same on the CPU

Errors are ‖x - reference‖ / ‖reference‖ unless a name says otherwise. On a CPU the same checks run with XLA in the
place of cuDNN.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np

import rahf
from rahf.config import Config
from rahf.core import tree
from rahf.critic.critic import Critic
from rahf.critic.export.write import write_export
from rahf.critic.networks import build as build_lib
from rahf.critic.networks import heads
from rahf.critic.task import CriticTask
from rahf.nn import functional, layers
from rahf.nn.attention import attention, padded_attention
from rahf.text import Tokenizer, train_tokenizer
from rahf.training.step import loss_and_gradients

#: Largest errors that pass. bfloat16 has 8 bits: one rounding is 0.004, and a network adds up dozens.
_KERNEL, _OUTPUTS, _GRADIENT, _EXPORT = 0.02, 0.05, 0.2, 1e-3


def error(x: Any, reference: Any) -> float:
    """‖x - reference‖ / ‖reference‖ in float64; NaN and infinity are passed on, so that they never pass."""
    x, reference = (np.asarray(jax.device_get(value), np.float64) for value in (x, reference))
    return float(np.linalg.norm(x - reference) / max(np.linalg.norm(reference), 1e-30))


def check_attention(config: Config, size: int) -> dict[str, Any]:
    """Every attention of the network at its sizes: image tower, fusion stack, decoder, and its view of the memory."""
    model, data = config.model, config.data
    grid = model.image_size // model.vit.patch_size
    image, text, target = grid**2 + model.vit.class_token, data.max_prompt_tokens, data.max_target_tokens
    vit = dict(heads=model.vit.heads, width=model.vit.width // model.vit.heads)
    t5 = dict(heads=model.t5.heads, width=model.t5.head_width, scale=1.0)
    cases = {
        "vit": dict(queries=image, keys=image, **vit),
        "encoder": dict(queries=image + text, keys=image + text, masked=True, biased=True, **t5),
        "decoder": dict(queries=target, keys=target, causal=True, biased=True, **t5),
        "cross": dict(queries=target, keys=image + text, masked=True, **t5),
    }
    errors = {name: _attention_errors(size, **case) for name, case in cases.items()}
    worst = max(value for case in errors.values() for value in case.values())
    implementation = "cudnn" if jax.default_backend() == "gpu" else "xla, padded"
    return {"implementation": implementation, "errors": errors, "worst": worst, "passed": worst <= _KERNEL}


def _attention_errors(size, queries, keys, heads, width, masked=False, biased=False, causal=False, scale=None):
    """Errors of the output and of the gradients of query, key, value and bias."""
    stream = jax.random.split(jax.random.key(queries), 5)
    shapes = [(size, queries, heads, width), (size, keys, heads, width), (size, keys, heads, width)]
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(stream, shapes)]
    if scale == 1.0:  # T5's initial queries are small instead
        inputs[0] = inputs[0] * jnp.bfloat16(width**-0.5)
    if biased:
        inputs.append(jax.random.normal(stream[3], (1, heads, queries, keys), jnp.float32))
    mask = jnp.arange(keys) < keys - 7 * jnp.arange(size)[:, None] if masked else None
    weights = jax.random.normal(stream[4], shapes[0], jnp.float32)
    implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"

    def fused(q, k, v, bias=None):
        return padded_attention(q, k, v, mask, bias, causal, scale, implementation)

    def reference(q, k, v, bias=None):
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        with jax.default_matmul_precision("highest"):
            return attention(q, k, v, mask=mask, bias=bias, causal=causal, scale=scale, implementation="xla")

    results = []
    for function in (fused, reference):

        def value(*x, function=function):
            out = function(*x).astype(jnp.float32)
            return (out * weights).sum(), out

        run = jax.jit(jax.value_and_grad(value, argnums=tuple(range(len(inputs))), has_aux=True))
        (_, out), grads = run(*inputs)
        results.append([out, *grads])
    names = ("output", "query", "key", "value", "bias")
    return {name: round(error(a, b), 6) for name, a, b in zip(names, *results)}


def check_precision(config: Config, size: int) -> dict[str, Any]:
    """bfloat16 with fused attention against float32 with XLA's: what the network gives, and each gradient."""
    model = dataclasses.replace(config.model, compute_dtype="float32", attention="xla", tag_head=False)
    exact = dataclasses.replace(config, model=model, loss=dataclasses.replace(config.loss, tag_weight=0.0))
    short = dataclasses.replace(exact, model=dataclasses.replace(model, compute_dtype="bfloat16", attention="auto"))
    params, batch = functional.init(build_lib.build(model), 0), jax.device_put(measuring.fake(config, size))
    outputs, gradients = [], []
    for one in (exact, short):
        graphdef, _ = functional.abstract(build_lib.build(one.model))
        task = CriticTask(one, None)

        def run(params, batch, task=task, graphdef=graphdef):
            logits = functional.merge(graphdef, params)(batch)
            grads = loss_and_gradients(task, graphdef, params, batch, 0)[1]
            return logits, grads

        with jax.default_matmul_precision("highest" if one is exact else "default"):
            logits, grads = jax.device_get(jax.jit(run)(params, batch))
        outputs.append({"heatmaps": logits.heatmaps, "scores": logits.scores, "sequence": logits.sequence})
        gradients.append(tree.flatten(grads))
    of_outputs = {name: round(error(outputs[1][name], outputs[0][name]), 6) for name in outputs[0]}
    return {"outputs": of_outputs, **compared(gradients[1], gradients[0], max(of_outputs.values()))}


def compared(gradients: dict[str, np.ndarray], exact: dict[str, np.ndarray], of_outputs: float) -> dict[str, Any]:
    """How far the gradients of all parameters are from exact ones, the worst of them by name.

    Gradients below a millionth of the largest one's norm are left out: they are zero but for rounding.
    """
    largest = max(np.linalg.norm(value) for value in exact.values())
    errors = {
        path: error(gradients[path], value)
        for path, value in exact.items()
        if not np.linalg.norm(value) <= 1e-6 * largest
    }
    worst = sorted(errors.items(), key=lambda item: -np.nan_to_num(item[1], nan=np.inf))[:8]
    passed = of_outputs <= _OUTPUTS and all(value <= _GRADIENT for value in errors.values())
    return {
        "gradients": len(errors),
        "gradient_error_median": round(float(np.median(list(errors.values()))), 6),
        "gradient_errors_worst": {path: round(value, 5) for path, value in worst},
        "passed": passed,
    }


def check_upsampling(config: Config, size: int) -> dict[str, Any]:
    """The stages of a heatmap head: sub-pixel form against the transposed convolution that it stands for."""
    head, side = config.model.heatmap_head, config.model.image_size // config.model.vit.patch_size
    widths = heads.up_widths(head, config.model.image_size, side)
    inputs = (head.conv_widths or (config.model.t5.width,))[-1]
    stages, dtype = [], jnp.dtype("bfloat16")
    for width in widths:
        graphdef, params = functional.split(layers.UpConv3x3(inputs, width, dtype=dtype))
        kernel = jax.random.normal(jax.random.key(1), params["kernel"].shape) * (9 / 4 * inputs) ** -0.5
        params = {"kernel": kernel, "bias": jax.random.normal(jax.random.key(2), (width,))}
        x = jax.random.normal(jax.random.key(3), (size, side, side, inputs), dtype)
        forms = {
            "subpixel": lambda params, x, graphdef=graphdef: functional.merge(graphdef, params)(x),
            "transposed": transposed_convolution,
        }
        exact = jax.jit(transposed_convolution)(params, x.astype(jnp.float32))
        stage: dict[str, Any] = {"shape": [size, side, side, inputs, width]}
        for name, form in forms.items():
            stage[f"{name}_error"] = round(error(jax.jit(form)(params, x), exact), 6)
            both = jax.jit(jax.grad(lambda p, x, form=form: jnp.square(form(p, x).astype(jnp.float32)).sum(), (0, 1)))
            call = functools.partial(both, params, x)
            stage[f"{name}_ms"] = round(1e3 * min(measuring.per_call(call, 0.2, 3)), 4)
        stages.append(stage)
        inputs, side = width, 2 * side
    worst = max(stage["subpixel_error"] for stage in stages)
    times = {f"{name}_ms": round(sum(stage[f"{name}_ms"] for stage in stages), 4) for name in forms}
    return {"stages": stages, "worst": worst, **times, "passed": worst <= _KERNEL}


def transposed_convolution(params: functional.Params, x: jax.Array) -> jax.Array:
    """`layers.UpConv3x3` as a convolution of the input with zeros between its pixels, in the dtype of x."""
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"][::-1, ::-1].astype(x.dtype),
        (1, 1),
        ((1, 2), (1, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest" if x.dtype == jnp.float32 else None,
    )
    return y + jnp.broadcast_to(params["bias"], y.shape).astype(y.dtype)


_PROMPTS = ["a red cat on a blue mat", "two dogs and one green bird", "a bird", "three blue cats and a mat"]


def check_export(config: Config, size: int, folder: pathlib.Path) -> dict[str, Any]:
    """A process without the GPU exports a critic and predicts with the file; this process predicts with it, too."""
    command = [sys.executable, __file__, "export", "--write", str(folder), "--preset", "tiny"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    written = subprocess.run(command, env=environment, capture_output=True, text=True)
    if written.returncode:
        raise RuntimeError(f"the process that exports failed: {written.stderr[-1500:]}")
    expected = np.load(folder / "cpu.npz")
    prediction = predicted(rahf.load(folder / "model.rahf"))
    differences = {name: float(np.abs(prediction[name] - expected[name]).max()) for name in expected.files}
    spread = {name: float(np.ptp(expected[name])) for name in expected.files}
    return {
        "largest_absolute_difference": {name: round(value, 8) for name, value in differences.items()},
        "spread_of_the_outputs": {name: round(value, 4) for name, value in spread.items()},
        "passed": all(value <= _EXPORT for value in differences.values()),
    }


def write_critic(config: Config, folder: pathlib.Path) -> None:
    """Exports a critic with random parameters whose outputs vary, and writes what it predicts on this device."""
    tokenizer = Tokenizer(train_tokenizer(_PROMPTS, 400))
    params = functional.init(build_lib.build(config.model), 0)
    for name, part in params.items():  # the heads start with almost constant outputs
        if name.startswith(("heatmap_", "score_")):
            part["out"]["kernel"] = part["out"]["kernel"] * 20
    model = dataclasses.replace(config.model, compute_dtype="float32")
    critic = Critic(dataclasses.replace(config, model=model), params, tokenizer, "gpu-check", 0)
    write_export(critic, folder / "model.rahf", platforms=("cpu", "cuda"))
    np.savez(folder / "cpu.npz", **predicted(rahf.load(folder / "model.rahf")))


def predicted(critic: Critic) -> dict[str, np.ndarray]:
    """Predictions for four pictures of noise."""
    images = np.random.default_rng(0).integers(0, 256, (len(_PROMPTS), 80, 96, 3), np.uint8)
    prediction = critic(list(images), _PROMPTS)
    return {name: getattr(prediction, name) for name in ("heatmaps", "scores", "word_probabilities")}


def main() -> None:
    """Parses, checks, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("attention", "precision", "upsampling", "export"))
    parser.add_argument("--preset", default="tiny", help="a config file's name, or a short name of measuring.PRESETS")
    parser.add_argument("--batch", type=int, default=2, help="examples")
    parser.add_argument("--write", metavar="DIR", help="export: only write the file and the CPU's prediction there")
    args, fields = parser.parse_known_args()
    config = measuring.preset(args.preset, args.batch, fields)
    device = jax.local_devices()[0].device_kind
    result = {"benchmark": "check", "check": args.check, "preset": args.preset, "device": device, "batch": args.batch}
    if args.write:
        write_critic(config, pathlib.Path(args.write))
        return
    if args.check == "export":
        with tempfile.TemporaryDirectory() as folder:
            result |= check_export(config, args.batch, pathlib.Path(folder))
    else:
        check = {"attention": check_attention, "precision": check_precision, "upsampling": check_upsampling}
        result |= check[args.check](config, args.batch)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
