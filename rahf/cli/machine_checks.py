"""What this machine has, and whether what training and inference rest on works here; `rahf doctor` prints it.

A module of its own, because `doctor.py` is imported for every ``--help`` and only parses and prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

from rahf.core import compile_cache
from rahf.core.version import __version__

Verdict = Literal["ok", "warning", "broken", "absent"]

#: Without these nothing runs.
_ESSENTIAL = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy")
_USUAL = ("sentencepiece", "tensorflow-datasets", "transformers", "safetensors", "pillow", "simplejpeg", "scipy")
#: Optional part → the module by which it is recognised, and what it is for.
_OPTIONAL = {
    "torch": ("torch", "published .pt checkpoints"),
    "diffusers": ("diffusers", "the critic inside diffusion pipelines"),
    "ray": ("ray", "scoring on many machines"),
    "notebook": ("notebook", "the notebooks"),
}
#: Bytes below which a check warns.
_LITTLE_MEMORY, _LITTLE_DISK = 2 * 2**30, 5 * 2**30


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report."""

    section: str
    name: str
    verdict: Verdict  # "broken" makes `rahf doctor` exit with 1
    found: str  # what there is, or what is wrong


def examine(workdir: str | os.PathLike = ".") -> list[Check]:
    """Runs all checks. Never raises: a check that fails becomes a line that says so.

    Args:
      workdir: where runs would go; its disk is measured.
    """
    compile_cache.enable()
    parts: list[tuple[str, Callable[[], list[Check]]]] = [
        ("versions", versions),
        ("devices", devices),
        ("memory", lambda: space(workdir)),
        ("speed", fused_attention),
        ("speed", cached_compilation),
        ("optional parts", optional),
    ]
    checks = []
    for section, check in parts:
        try:
            checks += check()
        except Exception as error:  # noqa: BLE001 - a broken installation fails in any way
            checks.append(Check(section, getattr(check, "__name__", section), "broken", _line(error)))
    return checks


def versions() -> list[Check]:
    """Versions of Python and of the packages that `rahf` rests on."""
    checks = [
        Check("versions", name, "ok", version)
        for name, version in (("rahf", __version__), ("python", platform.python_version()))
    ]
    for name in (*_ESSENTIAL, *_USUAL):
        try:
            checks.append(Check("versions", name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            verdict: Verdict = "broken" if name in _ESSENTIAL else "warning"
            checks.append(Check("versions", name, verdict, f"not installed: pip install {name}"))
    return checks


def devices() -> list[Check]:
    """The devices that JAX sees, and whether it computes on the default one."""
    import jax
    import jax.numpy as jnp

    checks = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        limit, used = stats.get("bytes_limit"), stats.get("bytes_in_use", 0)
        memory = f", {_gib(limit - used)} of {_gib(limit)} free" if limit else ""
        checks.append(Check("devices", f"{device.platform}:{device.id}", "ok", f"{device.device_kind}{memory}"))
    if jax.process_count() > 1:
        checks.append(Check("devices", "processes", "ok", f"{jax.process_index()} of {jax.process_count()}"))
    product = float(jnp.arange(8.0) @ jnp.arange(8.0))
    correct = product == 140.0
    result = "works" if correct else f"0·0+…+7·7 = {product}, not 140"
    checks.append(Check("devices", "arithmetic", "ok" if correct else "broken", result))
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        remedy = "there is an NVIDIA GPU that JAX does not use: pip install rahf[gpu]"
        checks.append(Check("devices", "gpu", "warning", remedy))
    return checks


def space(workdir: str | os.PathLike = ".") -> list[Check]:
    """Free memory of the host, and free disk where runs and temporary files go."""
    checks = []
    if (free := _free_memory()) is not None:
        verdict: Verdict = "ok" if free >= _LITTLE_MEMORY else "warning"
        checks.append(Check("memory", "host memory", verdict, f"{_gib(free)} free, {os.cpu_count()} cores"))
    places = {"disk for runs": pathlib.Path(workdir), "disk for temporary files": pathlib.Path(tempfile.gettempdir())}
    if pathlib.Path("/dev/shm").is_dir():
        places["shared memory"] = pathlib.Path("/dev/shm")
    for name, place in places.items():
        folder = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
        free = shutil.disk_usage(folder).free
        enough = free >= _LITTLE_DISK or name == "shared memory"
        writable = os.access(folder, os.W_OK)
        text = f"{_gib(free)} free in {folder}" + ("" if writable else ", but it cannot be written to")
        checks.append(Check("memory", name, "ok" if enough and writable else "warning", text))
    return checks


def fused_attention() -> list[Check]:
    """On an NVIDIA GPU compares cuDNN's masked attention with XLA's. Other backends have XLA's only."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "gpu":
        return [Check("speed", "fused attention", "ok", f"XLA ({jax.default_backend()})")]
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 128, 4, 64), jnp.bfloat16) for key in keys)
    mask = jnp.arange(128)[None, None, None, :] < jnp.array([128, 77])[:, None, None, None]
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
    try:
        fused = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        difference = float(jnp.abs(fused - expected).max())
    except Exception as error:  # noqa: BLE001 - cuDNN and XLA refuse in many ways
        return [Check("speed", "fused attention", "warning", f"XLA; cuDNN does not work here: {_line(error)}")]
    verdict: Verdict = "ok" if difference < 0.05 else "warning"
    return [Check("speed", "fused attention", verdict, f"cuDNN, masks included; differs by {difference:.1e} from XLA")]


def cached_compilation() -> list[Check]:
    """Writes a probe into the compilation cache and compiles it again from there."""
    folder = compile_cache.location()
    if folder is None:
        return [Check("speed", "compile cache", "warning", "off (RAHF_COMPILE_CACHE); every start compiles again")]
    import jax

    name = "jax_persistent_cache_min_compile_time_secs"
    configured = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    try:
        hits_first, hits_second = _compile_probe(), _compile_probe()
    finally:
        jax.config.update(name, configured)
    if hits_second:
        return [Check("speed", "compile cache", "ok", f"works, in {folder}")]
    reason = "" if os.access(folder, os.W_OK) else ", which cannot be written to"
    text = f"a program was compiled twice ({hits_first} hits) in spite of {folder}{reason}"
    return [Check("speed", "compile cache", "warning", text)]


_STAMP = time.time_ns() % 2**20  # so that the first probe of a process is new to the cache


def _compile_probe() -> int:
    """Compiles the probe. Returns how often the cache supplied it: 0 or 1."""
    import jax
    import jax.monitoring

    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        jax.jit(lambda x: x * 2.0 + _STAMP).lower(jax.ShapeDtypeStruct((3,), "float32")).compile()
    finally:
        with contextlib.suppress(AttributeError, ValueError):
            jax.monitoring.unregister_event_listener(listen)
    return len(hits)


def optional() -> list[Check]:
    """The extras that are installed. Imports none of them."""
    checks = []
    for name, (module, purpose) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            checks.append(Check("optional parts", name, "absent", f"for {purpose}"))
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            checks.append(Check("optional parts", name, "ok", importlib.metadata.version(name)))
    return checks


def _free_memory() -> int | None:
    """Bytes that programs may still allocate, by Linux's estimate and the limit of the container; None: unknown."""
    try:
        lines = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):
        group = pathlib.Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
