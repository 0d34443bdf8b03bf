"""Checks a feedback file without preparing it: every fault with its line and field (`rahf prepare feedback --check`).

`line.schema.json` describes a line; what a schema cannot say is checked here: words, pictures, maps, sizes, second
lines of one picture. The lines without a fault are those that `data_pipelines.feedback.prepare` uses.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jsonschema

from data_pipelines.feedback import labels, lines
from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.opinions import read_opinions
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import storable
from rahf import images, text
from rahf.core import json_text
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.names import one_line

SCHEMA_FILE = pathlib.Path(__file__).with_name("line.schema.json")
_MOST_OF_A_LINE = 50  # faults that are listed
_LONGEST_VALUE = 60


class Fault(NamedTuple):
    """What is wrong with a line.

    Attributes:
      line: number, from 1.
      field: as ``annotators[0].scores.overall``; "": the whole line.
      message: what was expected and what is there.
      refused: whether `rahf prepare feedback` refuses the line for it; False: the line is used all the same.
    """

    line: int
    field: str
    message: str
    refused: bool = True


class Checked(NamedTuple):
    """Counts of a check."""

    lines: int
    refused: int
    faults: list[Fault]


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    """The validator of a line."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def check(annotations: str | os.PathLike, pictures: str | os.PathLike) -> Checked:
    """Checks all lines of a file.

    Args:
      annotations: JSONL file.
      pictures: folder that the paths start from.

    Raises:
      DatasetError: no such file or folder.
    """
    folder, path = Folder(pictures), pathlib.Path(annotations)
    faults: list[Fault] = []
    owners: dict[str, int] = {}
    count = refused = 0
    with lines.open_file(path) as file:
        for number, _, raw in lines.read(file):
            count += 1
            own = list(_of_line(number, raw, folder, owners))
            refused += any(fault.refused for fault in own)
            faults += own
    return Checked(count, refused, faults)


def _of_line(number: int, raw: bytes, folder: Folder, owners: dict[str, int]) -> Iterator[Fault]:
    try:
        tree = json_text.parse(raw.removeprefix(b"\xef\xbb\xbf").decode().rstrip())
    except ValueError as error:
        yield Fault(number, "", f"not JSON: {one_line(error, 120)}")
        return
    by_schema = list(_by_schema(number, tree))
    yield from by_schema
    if not isinstance(tree, dict):
        return
    try:
        line = lines.parse(raw)
    except Refused as why:
        if not by_schema:
            yield Fault(number, _field_of(str(why)), one_line(why, 200))
        return
    words = len(text.split_words(line.prompt))
    of_words = list(_word_counts(number, tree, words))
    yield from of_words
    if not by_schema and not of_words:
        yield from _by_reader(number, tree, words)
    yield from _pictures(number, line, folder)
    first = owners.setdefault(line.uid, number)
    if first != number:
        yield Fault(number, "uid" if tree.get("uid") else "image", f"line {first} has the same uid or picture")


def _by_schema(number: int, tree: Any) -> Iterator[Fault]:
    for error in list(_leaves(validator().iter_errors(tree)))[:_MOST_OF_A_LINE]:
        yield Fault(number, _path(error.absolute_path), _message(error))


def _leaves(errors: Iterable[jsonschema.ValidationError]) -> list[jsonschema.ValidationError]:
    return sorted(errors, key=lambda error: [str(part) for part in error.absolute_path])


def _path(parts: Iterable[Any]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return one_line(path, 120)


def _message(error: jsonschema.ValidationError) -> str:
    """What was expected, in our words: those of the library repeat the whole value."""
    value = one_line(json.dumps(error.instance), _LONGEST_VALUE)
    expected = error.validator_value
    if error.validator == "required":
        missing = [name for name in expected if name not in error.instance]
        return f"the field {', '.join(missing)} is missing"
    if error.validator == "anyOf":
        return "neither 'image' nor 'uid', so no picture can be found"
    if error.validator == "type":
        return f"expected {' or '.join([expected] if isinstance(expected, str) else expected)}, found {value}"
    if error.validator == "pattern":
        return "the text is empty"
    if error.validator == "enum":
        return f"expected one of {', '.join(json.dumps(one) for one in expected)}, found {value}"
    bounds = {"minimum": "at least", "maximum": "at most", "minItems": "at least", "maxItems": "at most"}
    kind = " values" if error.validator.endswith("Items") else ""
    return f"expected {bounds.get(error.validator, error.validator)} {expected}{kind}, found {value}"


def _word_counts(number: int, tree: Mapping[str, Any], words: int) -> Iterator[Fault]:
    annotators = tree.get("annotators")
    places = [("word_labels", tree.get("word_labels"))]
    for index, one in enumerate(annotators if isinstance(annotators, list) else ()):
        places.append((f"annotators[{index}].word_labels", one.get("word_labels") if isinstance(one, dict) else None))
    for field, word_labels in places:
        if isinstance(word_labels, list) and len(word_labels) != words:
            yield Fault(number, field, f"{len(word_labels)} labels for {words} words of the prompt")


def _by_reader(number: int, tree: Mapping[str, Any], words: int) -> Iterator[Fault]:
    """What the reader itself says of a line that the schema allows: contradictions, no label at all, unknown fields."""
    try:
        opinions = read_opinions(tree, words)
    except Refused as why:
        yield Fault(number, _field_of(str(why)), one_line(why, 200))
        return
    if opinions.missing():
        yield Fault(number, "", "neither annotators nor the line itself say anything of the picture")
    for name in opinions.unread:
        yield Fault(number, one_line(name, 80), "this field is not known and not read", refused=False)


def _field_of(message: str) -> str:
    """The field that a message of the reader begins with, or ""."""
    start = message.split(":")[0].split(" is ")[0].split(" are ")[0]
    if start in SCORES:
        return f"scores.{start}"
    return start if start and " " not in start else ""


def _pictures(number: int, line: lines.FeedbackLine, folder: Folder) -> Iterator[Fault]:
    name = None
    try:
        name = line.image or folder.picture_of(line.uid)
        header = images.check_header(storable(folder.read(name, "image"), name))
    except (Refused, images.ImageError, OSError, ValueError) as why:
        yield Fault(number, "image" if line.image else "uid", one_line(why, 200))
        return
    try:
        shown = labels.shown_size(line.tree, (header.width, header.height))
    except Refused as why:
        yield Fault(number, "width", one_line(why, 200))
        return
    for heatmap in HEATMAPS:
        path = line.tree.get(heatmap)
        if isinstance(path, str):
            try:
                lines.check_text(heatmap, path)
                images.load_map(folder.read(path, "map"), what=path)
            except (Refused, images.ImageError, OSError, ValueError) as why:
                yield Fault(number, heatmap, one_line(why, 200))
    yield from _points_outside(number, line.tree, shown)


def _points_outside(number: int, tree: Mapping[str, Any], shown: labels.Size) -> Iterator[Fault]:
    annotators = tree.get("annotators")
    for index, one in enumerate(annotators if isinstance(annotators, list) else ()):
        for field in ("points_implausible", "points_misaligned"):
            points = one.get(field) if isinstance(one, dict) else None
            for at, point in enumerate(points if isinstance(points, list) else ()):
                pair = isinstance(point, list) and len(point) == 2 and None not in map(json_text.finite, point)
                if pair and not (0 <= point[0] <= shown[0] and 0 <= point[1] <= shown[1]):
                    message = f"{point[0]}, {point[1]} lies outside the picture of {shown[0]} x {shown[1]} pixels"
                    yield Fault(number, f"annotators[{index}].{field}[{at}]", message, refused=False)
