"""`rahf predict`: images and prompts → overlays, heatmaps, JSON, and a summary in the terminal."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from rahf.core import exit_codes, terminal
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError, ImageError
from rahf.core.files import open_regular, write_atomically
from rahf.core.names import one_line
from rahf.critic import drawing, loading
from rahf.critic.feedback import Feedback, png
from rahf.critic.provenance import Provenance
from rahf.images.inputs import check_order
from rahf.text.prompts import names_file, prompt_list

#: Suffixes of the pictures that are written for each image, after its own name.
SUFFIXES = ("feedback", *HEATMAPS)
_MAX_PROMPT_BYTES = 1_000_000


def predict(
    model: str | os.PathLike,
    images: Sequence[str],
    prompt: str | Sequence[str] | None = None,
    out: str | os.PathLike | None = "predictions",
    json_file: str | os.PathLike | None = None,
    generate: bool = False,
    prompts_file: str | os.PathLike | None = None,
    batch_size: int | None = None,
    console: Console | None = None,
    errors: Console | None = None,
    coco_file: str | os.PathLike | None = None,
) -> int:
    """Predicts feedback on images and writes it to files.

    For an image `cat.jpg` it writes `cat_feedback.png` (picture, both overlays, score bars) and, at the
    picture's own size, `cat_implausibility.png` and `cat_misalignment.png`: 8 bit grey, 255 stands for 1.0.
    Images of the same name are numbered. An input image is never overwritten.

    Args:
      model: as in `rahf.load`.
      images: paths.
      prompt: of all images, or one per image; None: from `prompts_file`, or else the text file beside each
        image (`cat.txt` for `cat.jpg`).
      out: folder of the output files; None: "predictions".
      json_file: file of the results; None: `predictions.json` in `out`.
      generate: decide about words by generation instead of constrained scoring.
      prompts_file: text file with one prompt per line, in the order of the images.
      batch_size: images per step of the network.
      console: for the summary; None: stdout.
      errors: for errors and notes, one line each; None: stderr.
      coco_file: file of the regions of all heatmaps in COCO's form, with paths of images from its own folder on; None:
        none is written.

    Returns:
      Exit code: see `rahf.core.exit_codes`. The other images are processed where one cannot be used.

    Raises:
      ValueError: no images, or prompts that are missing, empty, or of another number.
      OSError: a file cannot be written.
      rahf.core.errors.CheckpointError, rahf.config.ConfigError: the model cannot be loaded.
    """
    console, errors = console or terminal.console(), errors or terminal.console(stderr=True)
    if not images:
        raise ArgumentError("no images given")
    images = [os.fsdecode(path) for path in images]
    run = _Run(images, out, json_file, console, errors, coco_file)
    usable, prompts = run.with_prompts(given_prompts(images, prompt, prompts_file))
    run.out.mkdir(parents=True, exist_ok=True)
    critic = loading.load(model)  # imports JAX, so after all that can be checked without
    if note := critic.outputs.note():
        run.note(note)
    if usable:
        results = critic.iterate(
            [images[i] for i in usable],
            prompts,
            batch_size,
            generate,
            on_error=lambda at, error: run.failed(usable[at], error),
        )
        for at, feedback in results:
            run.succeeded(usable[at], feedback)
    return run.finish(critic.provenance)


class _Run:
    """The results and failures of one call of `predict`."""

    def __init__(self, images, out, json_file, console: Console, errors: Console, coco_file=None):
        self.images, self.console, self.errors = images, console, errors
        self.out = pathlib.Path(out or "predictions")
        self.json_file = pathlib.Path(json_file) if json_file else self.out / "predictions.json"
        inputs = {key for path in images for key in _keys(pathlib.Path(path))}
        if inputs & _keys(self.json_file):
            raise ArgumentError(f"--json {self.json_file} would overwrite an image; give another file")
        self.coco_file = pathlib.Path(coco_file) if coco_file else None
        if self.coco_file is not None and (inputs | _keys(self.json_file)) & _keys(self.coco_file):
            raise ArgumentError(f"--coco {self.coco_file} would overwrite an image or --json; give another file")
        self.coco: dict[int, dict[str, Any]] = {}
        self.names = _names(images, self.out, inputs | _keys(self.json_file))
        self.results: dict[int, dict[str, Any]] = {}
        self.failures: dict[int, str] = {}

    def with_prompts(self, prompts: Sequence[str | ImageError]) -> tuple[list[int], list[str]]:
        """Positions and prompts of the images that have a prompt; the others count as failed."""
        for number, prompt in enumerate(prompts):
            if isinstance(prompt, ImageError):
                self.failed(number, prompt)
        usable = [n for n, prompt in enumerate(prompts) if isinstance(prompt, str)]
        return usable, [prompts[n] for n in usable]

    def failed(self, number: int, error: ImageError) -> None:
        """Records a failure and prints it as one line."""
        message = one_line(str(error))
        self.failures[number] = message
        self.errors.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)

    def succeeded(self, number: int, feedback: Feedback) -> None:
        """Writes the pictures of an image and prints its summary."""
        kinds = [kind for kind in SUFFIXES if kind not in HEATMAPS or feedback.has_heatmap(kind)]
        files = {kind: self.out / f"{self.names[number]}_{kind}.png" for kind in kinds}
        write_atomically(files["feedback"], png(feedback.show()))
        for name in kinds[1:]:
            grey = (feedback.heatmap(name) * 255).round().astype(np.uint8)
            write_atomically(files[name], png(grey))
        result = feedback.to_json()
        if self.coco_file is not None:
            first = 1 + sum(len(one["annotations"]) for one in self.coco.values())
            self.coco[number] = feedback.to_coco(number + 1, first)
            # A dataset is made of pictures below a folder, which may be anywhere: names start from the file's own.
            name = os.path.relpath(self.images[number], self.coco_file.absolute().parent)
            self.coco[number]["image"]["file_name"] = name
        self.results[number] = result | {"files": {kind: str(path) for kind, path in files.items()}}
        _summary(self.console, feedback, result, files["feedback"])
        for note in feedback.notes:
            self.note(f"{feedback.name}: {note}")

    def note(self, text: str) -> None:
        """Prints what a reader of the results must know, as one line."""
        self.errors.print(Text.assemble(("note: ", "yellow"), one_line(text)), soft_wrap=True)

    def finish(self, model: Provenance) -> int:
        """Writes the JSON, prints where the files are, and returns the exit code."""
        document = {
            "model": model.model_id,
            "preprocessing": model.preprocessing_hash,
            "weight_license": model.weight_license,
            "percentiles_of": model.quantiles and model.quantiles.reference,
            "scales": {
                "scores": "0..1, high = good",
                "heatmaps": "0..1, high = bad; in the PNG files 255 = 1.0",
                "boxes": "left, top, right, bottom in pixels of the upright image",
                "regions": "area in pixels of the upright image, mass: sum of the heatmap over them",
            },
            "images": [self.results[number] for number in sorted(self.results)],
            "errors": [{"image": self.images[n], "error": self.failures[n]} for n in sorted(self.failures)],
        }
        write_atomically(self.json_file, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
        if self.coco_file is not None:
            write_atomically(self.coco_file, (json.dumps(self._coco_document()) + "\n").encode())
        done, failed = len(self.results), len(self.failures)
        counts = f"{done} done" + (f", {failed} failed" if failed else "")
        pictures = f"pictures in {self.out}, " if done else ""
        where = f"{pictures}{'numbers' if done else 'errors'} in {self.json_file}"
        self.console.print(Text(one_line(f"{counts}; {where}")), soft_wrap=True)
        return exit_codes.of_counts(done, failed)

    def _coco_document(self) -> dict[str, Any]:
        """The regions of all images; `rahf prepare regions` reads it."""
        ordered = [self.coco[number] for number in sorted(self.coco)]
        return {
            "images": [one["image"] for one in ordered],
            "annotations": [annotation for one in ordered for annotation in one["annotations"]],
            "categories": [{"id": number, "name": name} for number, name in enumerate(HEATMAPS, 1)],
        }


def given_prompts(
    images: Sequence[str], prompt: str | Sequence[str] | None, prompts_file: str | os.PathLike | None
) -> list[str | ImageError]:
    """One prompt per image, or the error of an image without one.

    Args:
      images: paths.
      prompt: of all images, or one per image.
      prompts_file: text file with one prompt per line. Without this and `prompt`: the text file beside each image.

    Raises:
      ValueError: none at all, both, or another number than images.
    """
    if prompt is not None and prompts_file is not None:
        raise ArgumentError("give --prompt or --prompts, not both")
    if prompts_file is not None:
        # Only a newline ends a prompt: str.splitlines would also cut at U+2028 and other characters inside of one.
        lines = [line.removesuffix("\r") for line in _read_text(pathlib.Path(prompts_file)).split("\n")]
        while lines and not lines[-1].strip():
            lines.pop()
        prompt = lines
    if prompt is None:
        from_files = [_beside(path) for path in images]
        if all(isinstance(one, _NoPrompt) for one in from_files):
            raise ArgumentError(
                "no prompt: give --prompt TEXT for all images, --prompts FILE with one line per image, "
                f"or a text file beside each image ({_sidecar(images[0]) or 'IMAGE.txt'})"
            )
        return from_files
    check_order(images, prompt, "IMAGE --prompt TEXT")
    if isinstance(prompt, str) and names_file(prompt):
        raise ArgumentError(
            f"--prompt: {prompt[:200]!r} is a file, not a text; to read prompts from it, give --prompts FILE"
        )
    return list(prompt_list(prompt, len(images)))


class _NoPrompt(ImageError):
    """There is no text file beside an image."""


def _beside(path: str) -> str | ImageError:
    sidecar = _sidecar(path)
    if not os.path.lexists(path):
        return ImageError(f"{path}: No such file or directory")
    if sidecar is None or not os.path.exists(sidecar):
        return _NoPrompt(f"{path}: no prompt; give --prompt TEXT or write it to {sidecar or 'a text file'}")
    try:
        text = " ".join(_read_text(sidecar).split())
    except (OSError, ValueError) as error:
        return ImageError(f"{path}: its prompt cannot be read: {error}")
    return text or ImageError(f"{path}: its prompt file {sidecar} is empty")


def _sidecar(path: str) -> pathlib.Path | None:
    try:
        return pathlib.Path(path).with_suffix(".txt")
    except ValueError:  # a path without a name
        return None


def _read_text(path: pathlib.Path) -> str:
    with open_regular(path) as file:
        data = file.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise ArgumentError(f"{path}: more than {_MAX_PROMPT_BYTES} bytes, too long for prompts")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _names(images: Sequence[str], out: pathlib.Path, taken: set[str]) -> list[str]:
    """A file name for each image: the letters and digits of its stem, numbered where two would be equal."""
    names, taken = [], set(taken)
    for path in images:
        # File names have at most 255 bytes: room for the suffix, at 4 bytes a character.
        stem = re.sub(r"[^\w.-]+", "_", pathlib.Path(path).stem).strip("._") or "image"
        stem = stem[:50]
        number = 1
        while True:
            name = stem if number == 1 else f"{stem}-{number}"
            keys = {key for kind in SUFFIXES for key in _keys(out / f"{name}_{kind}.png")}
            if not keys & taken:
                break
            number += 1
        names.append(name)
        taken |= keys
    return names


def _keys(path: pathlib.Path) -> set[str]:
    """Keys that identify a file, also on file systems that ignore case."""
    try:
        return {os.path.abspath(path).casefold(), os.path.realpath(path).casefold()}
    except ValueError:  # a NUL in the name: no such file can exist
        return set()


def _summary(console: Console, feedback: Feedback, result: dict[str, Any], panel: pathlib.Path) -> None:
    console.print(Text(one_line(feedback.name), style="bold"), soft_wrap=True)
    console.print(drawing.prompt_text(feedback.prompt, feedback.words, feedback.word_labels.tolist()))
    console.print(drawing.score_bars([feedback.scores[name] for name in SCORES]))
    for name in HEATMAPS:
        summary = result["heatmaps"][name]
        if summary is None:
            continue
        share, count = summary["share_above"], summary["region_count"]
        regions = "1 region" if count == 1 else f"{count} regions"
        marked = f"{share:.1%} of the picture in {regions}" if count else "nothing marked"
        console.print(Text(f"{name}: {marked}, highest value {summary['max']:.2f}"))
    console.print(Text(one_line(f"→ {panel}") + "\n", style="bright_black"), soft_wrap=True)
