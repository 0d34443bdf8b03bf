"""A training step as a program for an NVIDIA GPU, made on a machine that has none.

`lowered` needs nothing but JAX: the program before XLA's passes for GPUs, with the calls of cuDNN's fused attention.
`compiled` runs those passes for an H100: the kernels, their order and the plan of the memory that the card would get.
It needs NVIDIA's compiler and JAX's plugin, of the version of JAX, but no driver:

    pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12

What only the card can decide is left open: which of several kernels is fastest (autotuning), and workspaces of cuDNN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.experimental.topologies
import measuring
from jax._src.cudnn import fused_attention_stablehlo

from rahf.config import Config
from rahf.critic.task import CriticTask
from rahf.nn import gradients
from rahf.training import sharding
from rahf.training import state as state_lib
from rahf.training.step import make_train_step

H100 = pathlib.Path(__file__).with_name("h100.txtpb")
#: The compiler needs no time for good machine code that nothing runs.
FLAGS = "--xla_llvm_disable_expensive_passes=true --xla_gpu_disable_gpuasm_optimizations=true"


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """While this is active, JAX traces for an NVIDIA GPU: it does not look at this machine.

    JAX asks for cuDNN's version and the GPU's generation while it traces fused attention; gradients are reordered only
    for CPUs.
    """
    with contextlib.ExitStack() as stack:
        patch = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
        patch(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
        patch(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
        patch(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)
        patch(gradients, "reordered", lambda: False)
        yield


def for_gpu(config: Config) -> Config:
    """The config in bfloat16 with fused attention, as a GPU runs it."""
    model = dataclasses.replace(config.model, compute_dtype="bfloat16", attention="cudnn")
    return dataclasses.replace(config, model=model)


def traced(config: Config, size: int, devices: Sequence[Any] | None = None) -> Any:
    """The training step of a config in bfloat16, traced for a GPU; allocates nothing.

    Args:
      config: of a critic.
      size: examples.
      devices: that it is for; None: of any NVIDIA GPU.
    """
    task = CriticTask(for_gpu(config), None)
    setup = state_lib.setup(task, None if devices is None else list(devices))
    place = sharding.batch_sharding(setup.mesh)
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=place)  # noqa: E731
    batch = jax.tree.map(shape, measuring.fake(config, size))
    with without_gpu():
        return make_train_step(task, setup).trace(setup.shapes, batch)


def lowered(config: Config, size: int) -> str:
    """The training step for CUDA as StableHLO text."""
    trace = traced(config, size)
    with without_gpu():
        return trace.lower(lowering_platforms=("cuda",)).as_text()


def compiled(config: Config, size: int) -> Any:
    """The training step compiled for an H100.

    Raises:
      RuntimeError: the plugin or NVIDIA's compiler is not installed.
    """
    devices = topology()
    trace = traced(config, size, devices)
    with without_gpu():
        return trace.lower().compile()


def compiled_here(config: Config, size: int) -> Any:
    """The training step of a config as it is, compiled for this machine's device."""
    task = CriticTask(config, None)
    setup = state_lib.setup(task)
    return make_train_step(task, setup).lower(setup.shapes, measuring.fake(config, size)).compile()


def topology() -> Sequence[Any]:
    """One H100 that is not there."""
    if not importlib.util.find_spec("jax_plugins") or not importlib.util.find_spec("jax_plugins.xla_cuda12"):
        raise RuntimeError(
            "compiling for a GPU: JAX's plugin is not installed; "
            "pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12, or give a saved program by --hlo"
        )
    return jax.experimental.topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100.read_text(), topology="1x1x1"
    ).devices


def environment() -> dict[str, str]:
    """Variables that a process that calls `compiled` must be started with: they make NVIDIA's compiler known."""
    spec = importlib.util.find_spec("nvidia")
    folders = [pathlib.Path(place) / "cuda_nvcc" for place in (spec.submodule_search_locations if spec else [])]
    compiler = next((folder for folder in folders if (folder / "bin" / "ptxas").is_file()), None)
    if compiler is None:
        raise RuntimeError("compiling for a GPU: no ptxas; pip install nvidia-cuda-nvcc-cu12")
    return {
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "JAX_PLATFORMS": "",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={compiler} {FLAGS}".strip(),
        "PATH": f"{compiler / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
