"""One mesh with axes data, fsdp, tensor; rules from parameter path to PartitionSpec."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rahf.config import MeshConfig
from rahf.core.errors import ConfigError
from rahf.nn import functional

AXES = ("data", "fsdp", "tensor")

#: Where a layer's arithmetic is shared: dimension of the kernel that the tensor axis cuts. First match counts.
_TENSOR_RULES = (
    (re.compile(r"(query|key|value|wi|gate)/kernel$"), 1),
    (re.compile(r"(query|key|value|wi)/bias$"), 0),
    (re.compile(r"(out|wo)/kernel$"), 0),
    (re.compile(r"(^|/)embedding$"), 0),
    (re.compile(r"(^|/)output$"), 1),
)
_SMALLEST_SHARDED = 2**14  # parameters; smaller ones are cheaper to hold than to gather


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Arranges all devices along the axes.

    Raises:
      ConfigError: the numbers do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ConfigError(f"mesh {dict(zip(AXES, sizes))}: positive numbers, at most one -1")
    product = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % product:
        raise ConfigError(
            f"mesh {dict(zip(AXES, sizes))} needs a multiple of {product} devices, there are {len(devices)}; give "
            "mesh.data, mesh.fsdp and mesh.tensor whose product divides that"
        )
    sizes = [len(devices) // product if s == -1 else s for s in sizes]
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f"mesh {dict(zip(AXES, sizes))} needs {math.prod(sizes)} devices, there are {len(devices)}; "
            "set one of mesh.data, mesh.fsdp, mesh.tensor to -1 to take what is left"
        )
    if jax.process_count() > 1 and jax.local_device_count() % sizes[2]:
        raise ConfigError(
            f"mesh.tensor {sizes[2]}: must divide the {jax.local_device_count()} devices of each process, because "
            "processes load different examples and devices along the tensor axis see the same ones"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def fitting(config: MeshConfig, devices: int) -> MeshConfig:
    """The mesh of a run if it fits this number of devices, else plain data parallelism over them."""
    sizes = [config.data, config.fsdp, config.tensor]
    product = math.prod(s for s in sizes if s != -1)
    fits = devices % product == 0 if -1 in sizes else product == devices
    return config if fits else MeshConfig()


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How one parameter lies on the mesh: tensor axis by rule, fsdp axis on its longest remaining dimension."""
    axes: list[str | None] = [None] * len(shape)
    if math.prod(shape) >= _SMALLEST_SHARDED:
        for pattern, dimension in _TENSOR_RULES:
            if pattern.search(path) and dimension < len(shape):
                if mesh.shape["tensor"] > 1 and shape[dimension] % mesh.shape["tensor"] == 0:
                    axes[dimension] = "tensor"
                break
        free = [d for d in range(len(shape)) if axes[d] is None and shape[d] % mesh.shape["fsdp"] == 0]
        if free and mesh.shape["fsdp"] > 1:
            axes[max(free, key=lambda d: shape[d])] = "fsdp"
    return PartitionSpec(*axes)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a state: optimizer moments lie like the parameters they belong to."""

    def one(path, leaf):
        names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        return NamedSharding(mesh, parameter_spec("/".join(names), tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def placed(shapes: Any, mesh: Mesh) -> Any:
    """The jax.ShapeDtypeStruct of every leaf, with its NamedSharding."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        tree_shardings(shapes, mesh),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples are spread over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def sharing(mesh: Mesh) -> int:
    """Number of shares into which the examples of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def rounded_up(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch size of at least `batch_size` that the devices share evenly.

    For evaluations: what no example fills is padding, which counts nowhere, so a larger batch changes nothing.
    """
    return -(-batch_size // sharing(mesh)) * sharing(mesh)


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """Makes global arrays of the batch that this process has loaded."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def describe(params: functional.Params, mesh: Mesh) -> str:
    """One line: devices, mesh, parameters, and what each device holds of them."""
    flat = functional.flatten(params)
    shares = 0
    for path, leaf in flat.items():
        parts = [mesh.shape[a] for a in parameter_spec(path, tuple(leaf.shape), mesh) if a]
        shares += int(leaf.size) // math.prod(parts)
    sizes = " ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    held = "" if shares == functional.count(params) else f", {shares / 1e6:.2f} M on each device"
    devices = f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind} ({sizes})"
    return f"{devices}, {functional.count(params) / 1e6:.2f} M parameters{held}"
