"""What this machine has, and whether what training and inference rest on works here; `rahf doctor` prints it.

A module of its own, because `doctor.py` is imported for every ``--help`` and only parses and prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import operator
import os
import pathlib
import platform
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

from rahf.core import compile_cache, process
from rahf.core.version import __version__

Verdict = Literal["ok", "warning", "broken", "absent"]

#: Distribution → the module that is imported of it, with an attribute where the package loads its parts lazily.
#: Without these nothing runs.
_ESSENTIAL = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax.nnx",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint:CheckpointManager",
    "grain": "grain:DatasetIterator.close",
    "array-record": "array_record.python.array_record_module:ArrayRecordReader",
    "numpy": "numpy",
}
_USUAL = {
    "sentencepiece": "sentencepiece",
    "tensorflow-datasets": "tensorflow_datasets:features.FeaturesDict",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "pillow": "PIL.Image",
    "simplejpeg": "simplejpeg",
    "scipy": "scipy.ndimage",
}
#: The same of optional parts, and what they are for.
_OPTIONAL = {
    "torch": ("torch", "published .pt checkpoints"),
    "diffusers": ("diffusers:DiffusionPipeline", "the critic inside diffusion pipelines"),
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
        ("devices", gpu_memory),
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
    """Versions of Python and of the packages that `rahf` rests on. Imports each of them."""
    checks = [
        Check("versions", name, "ok", version)
        for name, version in (("rahf", __version__), ("python", platform.python_version()))
    ]
    lowest = _lowest_versions()
    for name, place in (_ESSENTIAL | _USUAL).items():
        try:
            version, problem = importlib.metadata.version(name), import_problem(place)
            if not problem and _numbers(version) < _numbers(lowest.get(name, "0")):
                problem = f"too old: pip install '{name}>={lowest[name]}'"
        except importlib.metadata.PackageNotFoundError:
            version, problem = "", f"not installed: pip install {name}"
        verdict: Verdict = "ok" if not problem else "broken" if name in _ESSENTIAL else "warning"
        checks.append(Check("versions", name, verdict, ", ".join(filter(None, (version, problem)))))
    return checks


def import_problem(place: str) -> str:
    """Why "module" or "module:attribute" cannot be imported; "" if it can."""
    module, _, attribute = place.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            imported = importlib.import_module(module)
            if attribute:
                operator.attrgetter(attribute)(imported)
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way
        return f"but it does not work: {_line(error)}"
    return ""


def _lowest_versions() -> dict[str, str]:
    """The lowest version that `rahf` allows of each package, by its name; {} if it is not installed as a package."""
    try:
        required = importlib.metadata.requires("rahf") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    bounds = (re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", line.partition(";")[0].strip()) for line in required)
    return {bound[1].lower().replace("_", "-"): bound[2] for bound in bounds if bound}


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version, for comparison: (0, 12, 1) of "0.12.1.dev3"."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


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


def gpu_memory() -> list[Check]:
    """On a GPU beside PyTorch: whether JAX leaves memory to it."""
    import jax

    if jax.default_backend() != "gpu" or importlib.util.find_spec("torch") is None:
        return []
    settings = [f"{name}={os.environ[name]}" for name in process.GPU_MEMORY_SETTINGS if os.environ.get(name)]
    if settings:
        return [Check("devices", "memory beside PyTorch", "ok", ", ".join(settings))]
    text = (
        "JAX reserves 75% of each GPU when it starts; where PyTorch needs it, import rahf.interop before JAX is used, "
        "or set XLA_PYTHON_CLIENT_PREALLOCATE=false or XLA_CLIENT_MEM_FRACTION=0.3"
    )
    return [Check("devices", "memory beside PyTorch", "warning", text)]


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

    from rahf.nn.attention import attention  # as the network calls it; it imports JAX, which may be broken

    if jax.default_backend() != "gpu":
        return [Check("speed", "fused attention", "ok", f"XLA ({jax.default_backend()})")]
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 128, 4, 64), jnp.bfloat16) for key in keys)
    mask = jnp.arange(128) < jnp.array([128, 77])[:, None]
    expected = attention(q, k, v, mask=mask, implementation="xla")
    try:
        fused = attention(q, k, v, mask=mask, implementation="cudnn")
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
    """The extras that are installed. Imports each of them."""
    checks = []
    for name, (place, purpose) in _OPTIONAL.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check("optional parts", name, "absent", f"for {purpose}"))
            continue
        problem = import_problem(place)
        text = f"{version}, {problem}" if problem else version
        checks.append(Check("optional parts", name, "warning" if problem else "ok", text))
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
