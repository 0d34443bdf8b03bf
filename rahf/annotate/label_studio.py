"""Answers as Label Studio's JSON, and back. Nothing is fetched: an address in a task only names a file of the folder.

Marks are key points in percent of the picture as shown, scores are ratings of 1 to 5, wrong words are spans of the
prompt (https://labelstud.io/guide/export#Label-Studio-JSON-format-of-annotated-tasks). Marks of a critic are
predictions of a task, and never results of a person's annotation.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image

from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.opinions import POINT_FIELDS
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import SUFFIXES
from rahf import images
from rahf.annotate.exporting import Exported
from rahf.core import json_text
from rahf.core.errors import AnnotateError
from rahf.core.files import open_atomically, read_regular
from rahf.core.labels import SCORES
from rahf.core.names import one_line
from rahf.images.orientation import of_loaded
from rahf.text import split_words
from rahf.text.words import pieces

#: Label of a key point → field of an answer.
LABELS = {"implausible": "points_implausible", "misaligned": "points_misaligned"}
_MISSING_WORD = "misaligned"
_MOST_BYTES = 1 << 29
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file

#: What to paste into a project's "Labeling Interface" in Label Studio for the tasks that `write` makes.
_MARKS = '<Label value="implausible" background="#b34700"/><Label value="misaligned" background="#005a9c"/>'
CONFIG = (
    f"""<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <KeyPointLabels name="marks" toName="image">
    {_MARKS}
  </KeyPointLabels>
  <Text name="prompt" value="$prompt"/>
  <Labels name="words" toName="prompt"><Label value="misaligned" background="#a61b1b"/></Labels>
"""
    + "".join(f'  <Header value="{name}"/><Rating name="{name}" toName="image" maxRating="5"/>\n' for name in SCORES)
    + "</View>\n"
)
#: Added where critics' marks are exported: the control of the predictions.
_PREMARKS_CONFIG = f"""  <KeyPointLabels name="premarks" toName="image">
    {_MARKS}
  </KeyPointLabels>
"""


def task(exported: Exported, number: int, prefix: str) -> dict[str, Any]:
    """A task with one annotation per person, and one prediction per critic whose marks people were shown.

    ``meta.premarks`` says, as in a feedback file, who was shown which of them and agreed.

    Args:
      exported: a picture with its answers.
      number: of the task.
      prefix: put before the path of the picture, such as "/data/local-files/?d=pictures/".
    """
    annotations = [
        {"completed_by": {"email": rater}, "was_cancelled": False, "result": list(_results(exported, answer))}
        for rater, answer in exported.answers.items()
    ]
    data = {"image": prefix + exported.name, "prompt": exported.prompt, "uid": exported.uid}
    tree = {"id": number, "data": data, "annotations": annotations}
    if not exported.shown:
        return tree
    return {**tree, "predictions": _predictions(exported), "meta": {"premarks": exported.premarks()}}


def _predictions(exported: Exported) -> list[dict[str, Any]]:
    """The marks of each critic that people were shown."""
    listed = []
    for model, marks in {one.model: one.marks for one in exported.shown.values()}.items():
        results = [
            _key_point(exported, f"c{len(LABELS) * place + kind}", "premarks", label, x, y) | {"score": value}
            for kind, (label, field) in enumerate(LABELS.items())
            for place, (x, y, value) in enumerate(marks.get(field, []))
        ]
        listed.append({"model_version": model, "result": results})
    return listed


def _results(exported: Exported, answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    count = 0
    for label, field in LABELS.items():
        for x, y in answer[field]:
            count += 1
            yield _key_point(exported, f"p{count}", "marks", label, x, y)
    for name, score in answer["scores"].items():
        yield _result(f"s{name}", "rating", name, "image", {"rating": score}) | _size(exported)
    start = 0
    for text, word in pieces(exported.prompt, split_words(exported.prompt)):
        if word is not None and not answer["word_labels"][word]:
            value = {"start": start, "end": start + len(text), "text": text, "labels": [_MISSING_WORD]}
            yield _result(f"w{word}", "labels", "words", "prompt", value)
        start += len(text)


def _size(exported: Exported) -> dict[str, int]:
    return {"original_width": exported.width, "original_height": exported.height, "image_rotation": 0}


def _key_point(exported: Exported, name: str, control: str, label: str, x: float, y: float) -> dict[str, Any]:
    value = {
        "x": 100 * x / exported.width,
        "y": 100 * y / exported.height,
        "width": 0.5,
        "keypointlabels": [label],
    }
    return _result(name, "keypointlabels", control, "image", value) | _size(exported)


def _result(name: str, kind: str, control: str, to: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "type": kind, "from_name": control, "to_name": to, "origin": "manual", "value": value}


def write(exported: Iterator[Exported], path: str | os.PathLike, prefix: str = "") -> tuple[int, int]:
    """Writes tasks, and beside them the configuration of the project with the ending ``.xml``.

    Returns:
      Number of pictures, and of answers.
    """
    count = answered = 0
    premarks = False
    with open_atomically(path) as file:
        file.write(b"[")
        for one in exported:
            premarks |= bool(one.shown)
            file.write(b"\n" if not count else b",\n")
            file.write(json.dumps(task(one, count + 1, prefix), ensure_ascii=False).encode())
            count += 1
            answered += len(one.answers)
        file.write(b"\n]\n")
    with open_atomically(pathlib.Path(path).with_suffix(".xml")) as file:
        file.write((CONFIG.replace("</View>", f"{_PREMARKS_CONFIG}</View>") if premarks else CONFIG).encode())
    return count, answered


@dataclasses.dataclass
class Converted:
    """Counts of a conversion: pictures and annotations written, results that are not read, and what was refused."""

    pictures: int = 0
    annotations: int = 0
    unread: dict[str, int] = dataclasses.field(default_factory=dict)
    refused: list[str] = dataclasses.field(default_factory=list)


def read(path: str | os.PathLike, pictures: str | os.PathLike, out: str | os.PathLike) -> Converted:
    """Turns an export of Label Studio into a feedback file.

    Key points (or rectangles and ellipses, of which the centre counts) labelled "implausible" and "misaligned" are
    marks; ratings and numbers of controls named after a score are scores; labelled spans of the prompt are wrong words.
    A mark that a person took over from a prediction unchanged (``origin`` "prediction") is a model's: it is counted and
    not read; ``meta.premarks`` of `write` is kept. What nobody was asked stays missing: marks where no annotation of
    the file has any, words likewise.

    Args:
      path: JSON, a list of tasks.
      pictures: folder in which the pictures are, found by their path or name.
      out: feedback file to write.

    Raises:
      AnnotateError: not a list of tasks, or none can be used.
    """
    tasks = _tasks(path)
    folder, converted = Folder(pictures), Converted()
    names = _files(folder)
    results = [one for tree in tasks for annotation in _annotations(tree) for one in _list(annotation.get("result"))]
    asked = {
        "marks": any(one.get("type") in _SHAPES for one in results),
        "words": any(one.get("type") in ("labels", "hypertextlabels") for one in results),
    }
    lines = []
    for number, tree in enumerate(tasks):
        try:
            line = _line(tree, folder, names, asked, converted)
        except (Refused, images.ImageError) as why:
            converted.refused.append(f"task {one_line(tree.get('id', number), 20)}: {one_line(why, 200)}")
            continue
        lines.append(line)
        converted.pictures += 1
        converted.annotations += len(line["annotators"])
    if not lines:
        first = f": {converted.refused[0]}" if converted.refused else ""
        raise AnnotateError(f"{path}: no task can be used{first}")
    with open_atomically(out) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return converted


def _tasks(path: str | os.PathLike) -> list[dict[str, Any]]:
    if not os.path.isfile(path):
        state = "is no file" if os.path.exists(path) else "does not exist"
        raise AnnotateError(f"--tasks {path} {state}; expected Label Studio's export “JSON”")
    if os.path.getsize(path) > _MOST_BYTES:
        raise AnnotateError(f"{path}: more than {_MOST_BYTES // 10**6} MB; export fewer tasks at once")
    try:
        tree = json_text.parse(read_regular(path))
    except ValueError as error:
        raise AnnotateError(f"{path}: not JSON ({one_line(error, 100)})") from error
    if not isinstance(tree, list) or not all(isinstance(one, dict) for one in tree):
        raise AnnotateError(f"{path}: expected a list of tasks, as Label Studio's export “JSON” gives")
    return tree


def _list(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _annotations(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = _list(tree.get("annotations") if "annotations" in tree else tree.get("completions"))
    return [one for one in listed if not one.get("was_cancelled")]


def _files(folder: Folder) -> dict[str, list[str]]:
    """Paths of the folder's pictures by their name."""
    root, by_name = pathlib.Path(folder.root), {}
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            by_name.setdefault(file.name, []).append(file.relative_to(root).as_posix())
    return by_name


def _picture_name(address: Any, names: Mapping[str, list[str]]) -> str:
    """The file of the folder that an address names: the longest end of its path that fits.

    Raises:
      Refused: none, or several that fit as well.
    """
    if not isinstance(address, str) or not address:
        raise Refused("missing field", "no data.image")
    try:
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d", [None])[0]
    except ValueError as error:
        raise Refused("missing image", f"data.image is {address!r:.80}, no address") from error
    path = pathlib.PurePosixPath(unquote(local if local is not None else parts.path or address))
    candidates = names.get(path.name) or names.get(_UPLOAD.sub("", path.name)) or []
    if not candidates:
        raise Refused("missing image", f"no file {path.name!r:.100} below --images")
    common = [_common_end(path.parts, pathlib.PurePosixPath(one).parts) for one in candidates]
    best = [one for one, length in zip(candidates, common) if length == max(common)]
    if len(best) > 1:
        raise Refused("missing image", f"{path.name!r:.100} is in several folders below --images")
    return best[0]


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    length = 0
    for one, other in zip(reversed(first), reversed(second)):
        if one != other:
            break
        length += 1
    return length


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A picture: its upright size, and the orientation with which its pixels are stored."""

    width: int
    height: int
    orientation: int

    def point(self, x: float, y: float, result: Mapping[str, Any]) -> list[float]:
        """Percent of a result → pixels of the upright picture."""
        u, v = x / 100, y / 100
        rotation = result.get("image_rotation") or 0
        if rotation not in (0, 90, 180, 270):
            raise Refused("malformed", f"image_rotation is {rotation!r:.20}, expected 0, 90, 180 or 270")
        # Label Studio gives percent of the picture as the person had turned it, clockwise: turn it back.
        u, v = {0: (u, v), 90: (v, 1 - u), 180: (1 - u, 1 - v), 270: (1 - v, u)}[rotation]
        if self._is_stored_size(result):
            u, v = _UPRIGHT[self.orientation](u, v)
        return [round(u * self.width, 2), round(v * self.height, 2)]

    def _is_stored_size(self, result: Mapping[str, Any]) -> bool:
        """Whether a result speaks of the pixels as stored, before EXIF turns them: by its original size."""
        size = result.get("original_width"), result.get("original_height")
        if not all(isinstance(side, (int, float)) and side > 0 for side in size) or self.width == self.height:
            return False
        return self.orientation >= 5 and (size[0] > size[1]) != (self.width > self.height)


#: EXIF orientation → place in the stored picture to place in the upright one, in shares of the sides.
_UPRIGHT = {
    1: lambda u, v: (u, v),
    2: lambda u, v: (1 - u, v),
    3: lambda u, v: (1 - u, 1 - v),
    4: lambda u, v: (u, 1 - v),
    5: lambda u, v: (v, u),
    6: lambda u, v: (1 - v, u),
    7: lambda u, v: (1 - v, 1 - u),
    8: lambda u, v: (v, 1 - u),
}


def _shown(folder: Folder, name: str) -> _Shown:
    data = folder.read(name, "image")
    height, width = images.load_rgb(data, what=name).shape[:2]
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return _Shown(width, height, of_loaded(image))


def _line(
    tree: Mapping[str, Any],
    folder: Folder,
    names: Mapping[str, list[str]],
    asked: Mapping[str, bool],
    converted: Converted,
) -> dict[str, Any]:
    data = tree.get("data")
    if not isinstance(data, dict):
        raise Refused("missing field", "no data")
    prompt = next((data[k] for k in ("prompt", "caption", "text") if isinstance(data.get(k), str)), "")
    words = split_words(prompt)
    if not words:
        raise Refused("missing prompt", "no data.prompt, data.caption or data.text with a word")
    name = _picture_name(data.get("image"), names)
    shown = _shown(folder, name)
    annotators = [_annotator(one, prompt, words, shown, asked, converted) for one in _annotations(tree)]
    annotators = [one for one in annotators if one]
    if not annotators:
        raise Refused("no label", "no annotation says anything that is read here")
    uid = data.get("uid")
    meta = tree.get("meta")
    premarks = _list(meta.get("premarks")) if isinstance(meta, dict) else []
    line = {
        "uid": uid if isinstance(uid, str) and uid else name,
        "image": name,
        "prompt": prompt,
        "width": shown.width,
        "height": shown.height,
        "annotators": annotators,
    }
    return {**line, "premarks": premarks} if premarks else line


#: Type of a result → whether its x and y are the middle already.
_SHAPES = {"keypointlabels": True, "keypoint": True, "ellipselabels": True, "rectanglelabels": False}


def _annotator(
    annotation: Mapping[str, Any],
    prompt: str,
    words: Sequence[str],
    shown: _Shown,
    asked: Mapping[str, bool],
    converted: Converted,
) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if asked["marks"]:
        answer.update({field: [] for field in POINT_FIELDS.values()})
    if asked["words"]:
        answer["word_labels"] = [1] * len(words)
    for result in _list(annotation.get("result")):
        kind, value = result.get("type"), result.get("value")
        if kind in _SHAPES and result.get("origin") == "prediction":
            name = f"{one_line(kind, 30)} taken over from a prediction"
            converted.unread[name] = converted.unread.get(name, 0) + 1
        elif not isinstance(value, dict) or not _take(answer, kind, value, result, prompt, words, shown):
            name = one_line(f"{kind} of {result.get('from_name')}", 60)
            converted.unread[name] = converted.unread.get(name, 0) + 1
    return answer


def _take(
    answer: dict[str, Any],
    kind: Any,
    value: Mapping[str, Any],
    result: Mapping[str, Any],
    prompt: str,
    words: Sequence[str],
    shown: _Shown,
) -> bool:
    """Adds a result to an answer; False: it is not read here."""
    if kind in _SHAPES:
        x, y = json_text.finite(value.get("x")), json_text.finite(value.get("y"))
        named = value.get(kind) if isinstance(value.get(kind), list) else [result.get("from_name")]
        fields = [LABELS[str(label).lower()] for label in named if str(label).lower() in LABELS]
        if x is None or y is None or not fields:
            return False
        if not _SHAPES[kind]:
            x += (json_text.finite(value.get("width")) or 0) / 2
            y += (json_text.finite(value.get("height")) or 0) / 2
        if not (0 <= x <= 100 and 0 <= y <= 100):
            raise Refused("malformed", f"a mark at {x}, {y} percent lies outside the picture")
        for field in fields:
            answer[field].append(shown.point(x, y, result))
        return True
    name = str(result.get("from_name")).lower()
    if kind in ("rating", "number") and name in SCORES:
        score = value.get(kind)
        if isinstance(score, bool) or score not in (1, 2, 3, 4, 5):
            raise Refused("bad score", f"{name} is {score!r:.20}, expected 1 to 5")
        answer.setdefault("scores", {})[name] = int(score)
        return True
    if kind in ("labels", "hypertextlabels"):
        start, end = value.get("start"), value.get("end")
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in (start, end)):
            return False
        position = 0
        for text, word in pieces(prompt, words):
            if word is not None and start < position + len(text) and end > position:
                answer["word_labels"][word] = 0
            position += len(text)
        return True
    return False
