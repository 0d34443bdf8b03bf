"""Origin and license of a model's parameters: recorded in the run directory, logged whenever a model is loaded.

`rahf import` writes `model.json`. A run that starts from other parameters writes `start.json`. No JAX here.
"""

from __future__ import annotations

import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from rahf.core import json_text, tree
from rahf.core.files import read_regular, read_regular_text, write_atomically
from rahf.core.names import one_line

MODEL_FILE, START_FILE = "model.json", "start.json"
UNKNOWN = "unknown"

#: Licenses that allow any use; loading a model does not log them. Compared in lower case, with hyphens for blanks.
_PERMISSIVE = re.compile(
    r"apache-?(licen[cs]e-)?(v|version-)?2(\.0)?|mit(-licen[cs]e)?|bsd(-\d-clause)?|cc0(-1\.0)?|cc-by-4\.0|isc"
    r"|unlicense"
)
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LICENSE_FIELD = re.compile(r"^license(_name)?:[ \t]*['\"]?([^'\"#\n]+?)['\"]?[ \t]*$", re.MULTILINE)

_log = logging.getLogger(__name__)


def folder_license(folder: pathlib.Path) -> str:
    """The license in the model card (`README.md`) of a folder in the layout of the Hugging Face hub, or "unknown"."""
    try:
        card = read_regular_text(folder / "README.md")
    except (OSError, UnicodeDecodeError):
        return UNKNOWN
    front_matter = _FRONT_MATTER.search(card)
    fields = dict(_LICENSE_FIELD.findall(front_matter[1])) if front_matter else {}
    if fields.get("", UNKNOWN).lower() == "other":  # the hub writes the name of an unlisted license to `license_name`
        return fields.get("_name", UNKNOWN)
    return fields.get("", UNKNOWN)


def model_licenses(run: pathlib.Path) -> dict[str, str]:
    """Licenses of the parameters that a model was imported with or started from.

    Args:
      run: directory with `config.json`.

    Returns:
      License by the name of the weights; empty for a model that was trained from scratch.
    """
    licenses: dict[str, str] = {}
    imported = _read_record(run / MODEL_FILE)
    if imported:
        licenses[str(imported.get("source", run.name))] = str(imported.get("license", UNKNOWN))
    for part in _read_record(run / START_FILE).values():
        if isinstance(part, Mapping):
            own = {part.get("name", UNKNOWN): part.get("license", UNKNOWN)}
            # A model has a list of all weights that it was itself made from; a tower has only its own license.
            inherited = part.get("licenses", own)
            inherited = inherited if isinstance(inherited, Mapping) else {**own, "damaged": UNKNOWN}
            licenses.update({str(name): str(license) for name, license in inherited.items()})
    return licenses


def is_permissive(license: str) -> bool:
    """Whether a license is known to allow any use."""
    return bool(_PERMISSIVE.fullmatch(license.strip().lower().replace(" ", "-")))


def license_notice(run: pathlib.Path) -> str | None:
    """One line about licenses that restrict the use of a model or are unknown; None if there are none."""
    restricted = {name: text for name, text in model_licenses(run).items() if not is_permissive(text)}
    if not restricted:
        return None
    sources = "; ".join(f"{name}: license {license}" for name, license in sorted(restricted.items()))
    return one_line(f"weights of {run.name} come from {sources}")


def log_licenses(run: pathlib.Path) -> None:
    """Logs the `license_notice` of a model that is loaded, as a warning: by default Python prints it to stderr."""
    notice = license_notice(run)
    if notice:
        _log.warning("%s", notice)


def log_export_licenses(name: str, weight_license: str) -> None:
    """Logs the licenses of an exported file that restrict its use.

    Args:
      name: of the file.
      weight_license: its licenses, joined by ``"; "``; "" if there are none.
    """
    restricted = [license for license in weight_license.split("; ") if license and not is_permissive(license)]
    if restricted:
        _log.warning("weights of %s: license %s", one_line(name), one_line("; ".join(restricted)))


def write_start_record(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes `start.json`. An empty record, of a run from scratch, removes it."""
    file = workdir / START_FILE
    if not record:
        file.unlink(missing_ok=True)  # an earlier attempt may have ended before its first checkpoint
        return
    write_atomically(file, json.dumps(record, indent=1) + "\n")


def start_table(record: Mapping[str, Any]) -> list[str]:
    """The record of `write_start_record` as lines for the terminal."""
    if not record:
        return []
    rows = [("starts from", "revision", "license", "parameters", "positions")]
    for kind in ("vision", "text", "model"):
        if kind in record:
            rows.append(_row(kind, record[kind]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    random = record["random"]
    return [*lines, f"random: {', '.join(tree.top_names(random)) or 'nothing'} ({len(random)} tensors)"]


def _row(kind: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    resized = part.get("positions")
    positions = "as published" if kind == "vision" else ""
    if resized:
        grid = "{0[0]}x{0[1]} to {1[0]}x{1[1]}".format(resized["from"], resized["to"])
        positions = f"{grid}, {resized['interpolation']}"
    return (
        f"{kind} {part['name']}",
        (part.get("revision") or "-")[:12],
        part.get("license", UNKNOWN),
        f"{part['parameters'] / 1e6:.1f} M",
        positions,
    )


def _read_record(file: pathlib.Path) -> dict[str, Any]:
    try:
        record = json_text.parse(read_regular(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        record = None
    # An unreadable record counts as: license unknown.
    return record if isinstance(record, dict) else {"damaged": {"name": file.name, "license": UNKNOWN}}
