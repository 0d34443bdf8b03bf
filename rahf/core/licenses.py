"""Where the parameters of a model came from and under which licence: recorded beside them, said at every load.

`model.json` is written by `rahf import`, `start.json` by a run that starts from other parameters. No JAX here.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rahf.core.files import write_atomically

MODEL_FILE, START_FILE = "model.json", "start.json"
UNKNOWN = "unknown"

#: Licences that allow any use; of these nothing is said at load. Compared in lower case, blanks as hyphens.
_PERMISSIVE = re.compile(
    r"apache-?(licen[cs]e-)?(v|version-)?2(\.0)?|mit(-licen[cs]e)?|bsd(-\d-clause)?|cc0(-1\.0)?|cc-by-4\.0|isc"
    r"|unlicense"
)
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LICENSE_FIELD = re.compile(r"^license(_name)?:[ \t]*['\"]?([^'\"#\n]+?)['\"]?[ \t]*$", re.MULTILINE)

_log = logging.getLogger(__name__)


def folder_license(folder: pathlib.Path) -> str:
    """The licence that the model card of a hub's folder (`README.md`) names, "unknown" if none does."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return UNKNOWN
    front = _FRONT_MATTER.search(card)
    found = dict(_LICENSE_FIELD.findall(front[1])) if front else {}
    if found.get("", UNKNOWN).lower() == "other":  # the hub's word for one that it has no name for
        return found.get("_name", UNKNOWN)
    return found.get("", UNKNOWN)


def model_licenses(run: pathlib.Path) -> dict[str, str]:
    """Licences of the parameters that a model was imported with or started from.

    Args:
      run: directory with `config.json`.

    Returns:
      Licence by the name of the weights; empty for a model that was trained from scratch.
    """
    found: dict[str, str] = {}
    imported = _read(run / MODEL_FILE)
    if imported:
        found[str(imported.get("source", run.name))] = str(imported.get("license", UNKNOWN))
    for part in _read(run / START_FILE).values():
        if isinstance(part, Mapping):
            own = {part.get("name", UNKNOWN): part.get("license", UNKNOWN)}
            inherited = part.get("licenses", own)  # of a model: of all that it came from itself
            found.update({str(name): str(license) for name, license in inherited.items()})
    return found


def is_permissive(license: str) -> bool:
    """Whether a licence is known to allow any use."""
    return bool(_PERMISSIVE.fullmatch(license.strip().lower().replace(" ", "-")))


def notice(run: pathlib.Path) -> str | None:
    """One line about licences that restrict the use of a model, or that are unknown; None if there are none."""
    restricted = {name: text for name, text in model_licenses(run).items() if not is_permissive(text)}
    if not restricted:
        return None
    said = "; ".join(f"{name}: licence {license}" for name, license in sorted(restricted.items()))
    return f"weights of {run.name} come from {said}"


def tell(run: pathlib.Path) -> None:
    """Says the licences of a model that is being loaded, by the standard library's logging (stderr by default)."""
    line = notice(run)
    if line:
        _log.warning("%s", line)


def tell_exported(name: str, licenses: str) -> None:
    """The same for an exported file, which keeps the licences as one text with semicolons; "" if there are none."""
    restricted = [text for text in licenses.split("; ") if text and not is_permissive(text)]
    if restricted:
        _log.warning("weights of %s: licence %s", name, "; ".join(restricted))


def write(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes `start.json`; a run from scratch has none."""
    file = workdir / START_FILE
    if not record:
        file.unlink(missing_ok=True)  # of an attempt that ended before its first checkpoint
        return
    write_atomically(file, json.dumps(record, indent=1) + "\n")


def table(record: Mapping[str, Any]) -> list[str]:
    """The record of a start as a few lines for the terminal."""
    if not record:
        return []
    rows = [("starts from", "revision", "licence", "parameters", "positions")]
    for kind in ("vision", "text", "model"):
        if kind in record:
            rows.append(_row(kind, record[kind]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    random = record["random"]
    return [*lines, f"random: {', '.join(parts(random)) or 'nothing'} ({len(random)} tensors)"]


def _row(kind: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    moved = part.get("positions")
    positions = "as published" if kind == "vision" else ""
    if moved:
        grid = "{0[0]}x{0[1]} to {1[0]}x{1[1]}".format(moved["from"], moved["to"])
        positions = f"{grid}, {moved['interpolation']}"
    return (
        f"{kind} {part['name']}",
        (part.get("revision") or "-")[:12],
        part.get("license", UNKNOWN),
        f"{part['parameters'] / 1e6:.1f} M",
        positions,
    )


def parts(paths: Iterable[str]) -> list[str]:
    """Parameter paths → the parts of the network that they belong to, in order, each once."""
    return list(dict.fromkeys(path.split("/")[0] for path in paths))


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Names that one of the patterns stands for (``*`` for anything)."""
    patterns = list(patterns)
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        tree = None
    # A record that cannot be read is no permission.
    return tree if isinstance(tree, dict) else {"damaged": {"name": file.name, "license": UNKNOWN}}
