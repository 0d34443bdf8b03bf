"""Packs what a bare GPU machine with Python 3.12 lacks: wheels, and a prepared dataset. It needs no network then.

    python benchmarks/gpu_pack.py --data data/rehearsal        # what a machine with JAX, Flax and PyTorch lacks
    python benchmarks/gpu_pack.py --data data/rehearsal --installed freeze.txt

`freeze.txt` is what `pip freeze` (or `pip list --format=freeze`) prints there: then exactly what is missing is packed.
Without it, packages that come with JAX, Flax, PyTorch and transformers are taken to be there. Of a dataset the first
records of each split are taken, at most `--megabytes` in all. Copy the folder with the repository: `make gpu`, or
`python benchmarks/gpu.py`, installs its wheels outside of the machine's own packages and uses its data.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from data_pipelines import store
from rahf.core.files import replacing_folder

#: Tags of the wheels that such a machine takes.
PLATFORMS = tuple(f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)) + (
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
)
#: Comes with JAX, Flax, Orbax, PyTorch or transformers: a machine that has those has it, in versions of its own.
USUAL = frozenset(
    """absl-py aiofiles anyio attrs certifi charset-normalizer click cloudpickle einops etils filelock flatbuffers flax
    fsspec h11 hf-xet httpcore httpx huggingface-hub humanize idna jax jaxlib jaxtyping jinja2 markdown-it-py markupsafe
    mdurl ml-dtypes mpmath msgpack networkx numpy opt-einsum optax orbax-checkpoint packaging pandas pillow
    prometheus-client protobuf psutil pyarrow pygments python-dateutil pyyaml regex requests rich safetensors scipy
    sentencepiece setuptools shellingham simplejson six sympy tensorstore tokenizers torch tqdm transformers treescope
    typer typing-extensions urllib3 uvloop wadler-lindig wrapt zipp""".split()
)


def requirements(extra: Sequence[str] = ()) -> dict[str, str]:
    """All packages that rahf needs at run time, directly or not, with the versions installed here.

    Those of rahf's extra "lite", the published tower of the small critic, are among them where they are installed.
    """
    wanted: list[tuple[Requirement, tuple[str, ...]]] = [(Requirement(name), ("",)) for name in extra]
    wanted += [(Requirement(line), ("", "lite")) for line in importlib.metadata.requires("rahf") or []]
    versions: dict[str, str] = {}
    while wanted:
        requirement, extras = wanted.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras)
        if name in versions or not applies:
            continue
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional need of a need
        wanted += [(Requirement(line), ("",)) for line in importlib.metadata.requires(name) or []]
    return versions


def installed(file: pathlib.Path | None) -> frozenset[str]:
    """Names of the packages on the machine, from `pip freeze`; None: the usual ones.

    Raises:
      ValueError: a file without a single package.
    """
    if file is None:
        return USUAL
    names = (re.match(r"[A-Za-z0-9][\w.\-]*", line.strip()) for line in file.read_text().splitlines())
    packages = frozenset(canonicalize_name(name[0]) for name in names if name)
    if not packages:
        raise ValueError(f"{file}: no packages; expected what `pip freeze` prints, a name==version in each line")
    return packages


def download(versions: dict[str, str], folder: pathlib.Path) -> list[str]:
    """Fetches wheels for Python 3.12 on Linux, and builds those of packages of Python alone that publish none.

    Returns the packages for which there is neither, which are then not packed.
    """
    missing = []
    options = [f"--platform={platform}" for platform in PLATFORMS]
    options += ["--python-version=3.12", "--implementation=cp", "--abi=cp312", "--abi=abi3", "--abi=none"]
    for name, version in sorted(versions.items()):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", *options, "-d", str(folder), f"{name}=={version}"]
        if subprocess.run(command, capture_output=True).returncode and not build(f"{name}=={version}", folder):
            missing.append(f"{name}=={version}")
    return missing


def build(requirement: str, folder: pathlib.Path) -> bool:
    """Builds a package's wheel from its source; keeps one that runs on every machine, and returns whether it is one."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        built = subprocess.run([*command, "-w", place, requirement], capture_output=True).returncode == 0
        wheels = list(pathlib.Path(place).glob("*-none-any.whl")) if built else []
        for wheel in wheels:
            shutil.copy(wheel, folder)
    return bool(wheels)


def copy_data(source: pathlib.Path, target: pathlib.Path, size: int) -> dict[str, int]:
    """Writes a dataset of the first records of each split of `source`, together at most `size` bytes.

    All splits but train are kept whole, unless they take more than half of the room. Returns records by split.

    Raises:
      DatasetError: `source` is no prepared dataset, or not even one record has room.
    """
    sizes = {name: sum(map(_bytes_of, store.open_split(source, name))) for name in store.splits(source)}
    tokenizer = store.tokenizer_path(source).read_bytes()
    room = size - len(tokenizer)
    while room > 0:
        rooms = _rooms(sizes, room)
        splits = {name: _first(store.open_split(source, name), rooms[name]) for name in sizes}
        counts = store.write_dataset(target, splits, f"The first records of {source.name}.", tokenizer)
        written = sum(file.stat().st_size for file in target.iterdir())
        if written <= size:
            return counts
        room = int(0.98 * room * size / written)  # files of few records are larger than these
    raise store.DatasetError(f"{source}: not one record fits into {size / 1e6:.1f} MB; raise --megabytes")


def _rooms(sizes: Mapping[str, int], room: int) -> dict[str, int]:
    """How many of `room` bytes each split gets, given the bytes of its records."""
    others = sum(taken for name, taken in sizes.items() if name != "train")
    rooms = {name: int(taken * min(1.0, room / 2 / max(others, 1))) for name, taken in sizes.items()}
    if "train" in rooms:
        rooms["train"] = room - sum(taken for name, taken in rooms.items() if name != "train")
    return rooms


def _bytes_of(record: store.Record) -> int:
    texts = len(record.uid.encode()) + len(record.prompt.encode()) + sum(len(word) for word in record.words)
    return texts + sum(len(part) for part in (record.image, record.implausibility, record.misalignment) if part) + 500


def _first(records: store.RecordSource, room: int) -> Iterator[store.Record]:
    """The first records that have room together."""
    for number in range(len(records)):
        record = records[number]
        room -= _bytes_of(record)
        if room < 0:
            return
        yield record


def pack(
    out: pathlib.Path, data: pathlib.Path | None, file: pathlib.Path | None, megabytes: float, also: Sequence[str]
) -> str:
    """Writes the pack; returns what is in it, in one line for each part."""
    lines = []
    with replacing_folder(out) as unfinished:
        wheels = unfinished / "wheels"
        wheels.mkdir()
        there = installed(file)
        lacking = {name: version for name, version in requirements(also).items() if name not in there}
        missing = download(lacking, wheels)
        sizes = sum(wheel.stat().st_size for wheel in wheels.iterdir())
        lines.append(f"{len(list(wheels.iterdir()))} wheels, {sizes / 1e6:.1f} MB")
        if missing:
            lines.append(f"without a wheel for Python 3.12, not packed: {', '.join(missing)}")
        if data is not None:
            counts = copy_data(data, unfinished / "data", int(megabytes * 1e6))
            size = sum(f.stat().st_size for f in (unfinished / "data").rglob("*") if f.is_file())
            lines.append(f"{data}: {', '.join(f'{n} {c}' for n, c in counts.items())} records, {size / 1e6:.1f} MB")
    return "\n".join(lines)


def main() -> None:
    """Parses, packs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu_pack", metavar="DIR", help="made anew")
    parser.add_argument("--data", default=None, metavar="DIR", help="prepared dataset; default: none")
    parser.add_argument("--installed", default=None, metavar="FILE", help="what `pip freeze` prints on the machine")
    parser.add_argument("--megabytes", type=float, default=40.0, help="of data at most (default: 40)")
    parser.add_argument("--also", nargs="*", default=[], metavar="PACKAGE", help="further packages, installed here")
    args = parser.parse_args()
    data, file = (pathlib.Path(value) if value else None for value in (args.data, args.installed))
    print(pack(pathlib.Path(args.out), data, file, args.megabytes, args.also))


if __name__ == "__main__":
    main()
