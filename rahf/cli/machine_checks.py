"""`rahf doctor`: what this machine has, and whether what training and inference rest on works here."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import rahf
from rahf.core import compile_cache

Verdict = Literal["ok", "warning", "broken", "absent"]

#: Without these nothing runs.
_ESSENTIAL = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy")
_FURTHER = ("sentencepiece", "tensorflow-datasets", "transformers", "safetensors", "pillow", "simplejpeg", "scipy")
#: Optional part → the module by which it is recognised, and what it is for.
_OPTIONAL = {
    "torch": ("torch", "published .pt checkpoints"),
    "diffusers": ("diffusers", "the critic inside diffusion pipelines"),
    "ray": ("ray", "scoring large folders on many machines"),
    "notebook": ("notebook", "the notebooks"),
}
_LITTLE_MEMORY, _LITTLE_DISK = 2 * 2**30, 5 * 2**30  # bytes below which a warning is due


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report."""

    section: str
    name: str
    verdict: Verdict  # "broken" makes `rahf doctor` exit with 1
    found: str


def examine(workdir: str | os.PathLike = ".") -> list[Check]:
    """Looks at everything. Never raises: what fails becomes a line that says so.

    Args:
      workdir: where runs would go; its disk is measured.
    """
    parts: list[tuple[str, Callable[[], list[Check]]]] = [
        ("versions", versions),
        ("devices", devices),
        ("memory", lambda: space(workdir)),
        ("speed", fused_attention),
        ("speed", cached_compilation),
        ("optional parts", optional),
    ]
    found = []
    for section, look in parts:
        try:
            found += look()
        except Exception as error:  # noqa: BLE001 - a broken installation fails in any way
            found.append(Check(section, getattr(look, "__name__", section), "broken", _line(error)))
    return found


def versions() -> list[Check]:
    """Versions of Python and of the packages that `rahf` rests on."""
    checks = [
        Check("versions", name, "ok", version)
        for name, version in (("rahf", rahf.__version__), ("python", platform.python_version()))
    ]
    for name in (*_ESSENTIAL, *_FURTHER):
        try:
            checks.append(Check("versions", name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            verdict: Verdict = "broken" if name in _ESSENTIAL else "warning"
            checks.append(Check("versions", name, verdict, f"not installed: pip install {name}"))
    return checks


def devices() -> list[Check]:
    """What JAX sees, and whether it computes."""
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
    found = float(jnp.arange(8.0) @ jnp.arange(8.0))
    right = found == 140.0
    what = "works" if right else f"0·0+…+7·7 = {found}, not 140"
    checks.append(Check("devices", "arithmetic", "ok" if right else "broken", what))
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        unused = "there is an NVIDIA GPU that JAX does not use: pip install rahf[gpu]"
        checks.append(Check("devices", "gpu", "warning", unused))
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
        there = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
        free = shutil.disk_usage(there).free
        enough = free >= _LITTLE_DISK or name == "shared memory"
        writable = os.access(there, os.W_OK)
        what = f"{_gib(free)} free in {there}" + ("" if writable else ", but it cannot be written to")
        checks.append(Check("memory", name, "ok" if enough and writable else "warning", what))
    return checks


def fused_attention() -> list[Check]:
    """cuDNN's attention with a mask against XLA's, on an NVIDIA GPU; elsewhere XLA is what there is."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "gpu":
        return [Check("speed", "fused attention", "ok", f"XLA ({jax.default_backend()})")]
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 128, 4, 64), jnp.bfloat16) for key in keys)
    mask = jnp.arange(128)[None, None, None, :] < jnp.array([128, 77])[:, None, None, None]
    wanted = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
    try:
        found = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        apart = float(jnp.abs(found - wanted).max())
    except Exception as error:  # noqa: BLE001 - cuDNN and XLA refuse in many ways
        return [Check("speed", "fused attention", "warning", f"XLA; cuDNN does not work here: {_line(error)}")]
    verdict: Verdict = "ok" if apart < 0.05 else "warning"
    return [Check("speed", "fused attention", verdict, f"cuDNN, masks included; differs by {apart:.1e} from XLA")]


def cached_compilation() -> list[Check]:
    """Writes a probe into the compilation cache and compiles it again from there."""
    folder = compile_cache.location()
    if folder is None:
        return [Check("speed", "compile cache", "warning", "off (RAHF_COMPILE_CACHE); every start compiles again")]
    import jax

    name = "jax_persistent_cache_min_compile_time_secs"
    shortest = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    try:
        missed, hits = _compile_probe(), _compile_probe()
    finally:
        jax.config.update(name, shortest)
    if hits:
        return [Check("speed", "compile cache", "ok", f"works, in {folder}")]
    why = "" if os.access(folder, os.W_OK) else ", which cannot be written to"
    twice = f"a program was compiled twice ({missed} hits) in spite of {folder}{why}"
    return [Check("speed", "compile cache", "warning", twice)]


_STAMP = time.time_ns() % 2**20  # so that the first probe of a process is new to the cache


def _compile_probe() -> int:
    """Compiles; how often the cache had it."""
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
    """Which extras are installed. Nothing is imported."""
    checks = []
    for name, (module, purpose) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            checks.append(Check("optional parts", name, "absent", f"for {purpose}"))
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            checks.append(Check("optional parts", name, "ok", importlib.metadata.version(name)))
    return checks


def _free_memory() -> int | None:
    """Bytes that programs may still take, by Linux's own estimate and the limit of a container."""
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


def run(as_json: bool = False, workdir: str | os.PathLike = ".", console: Any = None) -> int:
    """Prints what `examine` has found, as a table or as JSON.

    Returns:
      Exit code: 1 if something is broken without which nothing works, else 0.
    """
    compile_cache.enable()
    checks = examine(workdir)
    broken = [check for check in checks if check.verdict == "broken"]
    if as_json:
        print(json.dumps({"ok": not broken, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
    else:
        _table(checks, broken, console)
    return 1 if broken else 0


_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "broken": "[red]✗[/]", "absent": "[bright_black]–[/]"}


def _table(checks: list[Check], broken: list[Check], console: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            table.add_row("", Text(section, style="bold"), "")
        table.add_row(_MARKS[check.verdict], Text(f"  {check.name}"), Text(check.found))
    console.print(table)
    warnings = sum(check.verdict == "warning" for check in checks)
    said = f"{len(broken)} broken: {', '.join(c.name for c in broken)}" if broken else "everything essential works"
    console.print(f"\n{said}{f', {warnings} to look at' if warnings else ''}")
