"""One planted example: a picture of the folder, damaged and rated, and the truth behind its labels."""

from __future__ import annotations

import base64
import dataclasses
import io
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.planted import damage, wording
from data_pipelines.planted.pictures import Picture
from data_pipelines.prepare.consolidate import consolidate
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import encode_map
from data_pipelines.store.records import Record
from data_pipelines.synthetic import raters
from rahf import images
from rahf.core.batch import SCORES
from rahf.core.files import read_regular

#: Smallest side of a picture in pixels: damage of a smaller one would be a few pixels large.
SMALLEST_SIDE = 64
_MOST_BYTES = 1 << 29  # of an encoded file; a picture within the limit of pixels needs fewer
_QUALITIES = (80, 97)  # of JPEG; clean and damaged pictures get the same
_CROP = (0.55, 1.0)  # side of a crop as a share of the shorter side


@dataclasses.dataclass(frozen=True)
class Options:
    """How pictures become examples.

    Attributes:
      size: longer side of the stored pictures and maps in pixels; smaller pictures keep their size.
      crop: take a random square of each copy, of 0.55 to 1 of the shorter side. Only where no prompt says what the
        whole picture shows.
      exact: the implausibility map is the exact mask instead of what three simulated annotators marked.
      default_prompt: of pictures whose prompt nobody knows; all labels of words and alignment are then missing.
      seed: of all randomness.
    """

    size: int = 512
    crop: bool = False
    exact: bool = False
    default_prompt: str = "a photo"
    seed: int = 0


class Example(NamedTuple):
    """A record, the truth behind it as JSON values, and its undamaged pixels for a contact sheet."""

    record: Record
    truth: dict[str, Any]
    clean: np.ndarray  # uint8 [h,w,3]


def make(folder: str, picture: Picture, copy: int, options: Options, prompts: wording.Prompts | None = None) -> Example:
    """Reads, damages and rates one copy of a picture; a function of the file, the number of the copy and the seed.

    Args:
      folder: that the picture's name starts from.
      picture: of `pictures.find`.
      copy: number of the copy; each has other damage.
      options: see there.
      prompts: of all pictures, for untrue prompts; None: prompts stay true.

    Raises:
      Refused: the file cannot be decoded, or is too small.
    """
    rng = np.random.default_rng((options.seed, zlib.crc32(picture.name.encode()), copy))
    clean = _pixels(pathlib.Path(folder) / picture.name, picture, options, rng)
    canvas = clean.astype(np.float32) / 255
    damages, mask = damage.plant(canvas, rng)
    has_prompt = picture.prompt is not None
    words = wording.true_wording(picture.prompt if has_prompt else options.default_prompt)
    if has_prompt and prompts is not None:
        words = prompts.untrue(rng, picture.prompt)
    quality = _quality(clean, damages, words)
    height, width = mask.shape
    annotations = raters.annotate(rng, height, damages, (), words.labels, quality, aspect=width / height)
    labels = consolidate(annotations, width, height, words.words)
    encoded = simplejpeg.encode_jpeg(
        np.round(canvas * 255).astype(np.uint8),
        int(rng.integers(*_QUALITIES)),
        colorspace="RGB",
        colorsubsampling="444",
    )
    scores = labels.scores.copy()
    if not has_prompt:
        scores[[SCORES.index("alignment"), SCORES.index("overall")]] = np.nan
    true = all(words.labels)
    uid = f"{picture.name}#{copy}"
    exact = np.round(mask * 255).astype(np.uint8)
    record = Record(
        uid=uid,
        prompt=words.prompt,
        words=words.words,
        word_labels=labels.word_labels if has_prompt else None,
        image=encoded,
        implausibility=encode_map(exact if options.exact else labels.heatmaps[..., 0]),
        misalignment=encode_map(labels.heatmaps[..., 1]) if has_prompt and true else None,
        scores=scores,
    )
    return Example(record, _truth(record, damages, exact, words, has_prompt, quality, annotations), clean)


def _pixels(file: pathlib.Path, picture: Picture, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The undamaged picture, uint8 [h,w,3], at most `options.size` pixels long."""
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise Refused("undecodable", f"{picture.name} has {size} bytes, expected at most {_MOST_BYTES}")
        pixels = images.load_rgb(read_regular(file), what=picture.name)
    except (images.ImageError, OSError) as error:
        raise Refused("undecodable", str(error)) from error
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise Refused("too small", f"{picture.name}: {width}x{height} pixels, expected at least {SMALLEST_SIDE}")
    box = (0, 0, width, height)
    if options.crop and picture.prompt is None:
        side = max(SMALLEST_SIDE, int(rng.uniform(*_CROP) * min(height, width)))
        left, top = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
        box = (left, top, left + side, top + side)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(1.0, options.size / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=box))


def _quality(clean: np.ndarray, damages: list, words: wording.Wording) -> np.ndarray:
    """True qualities, float32 [4] in [0,1], in order SCORES; simple rules, as nobody rated anything."""
    harm = sum(one.area * one.visibility for one in damages)
    plausibility = float(np.exp(-140 * harm))
    alignment = 1 - words.untrue_share**0.6
    unit = clean.astype(np.float32) / 255
    contrast, colour = float(unit.mean(-1).std()), float(unit.std(-1).mean())
    look = np.clip(0.15 + 1.6 * contrast + 1.8 * colour, 0, 1)
    aesthetics = float(np.clip(look - 0.35 * (1 - plausibility), 0, 1))
    overall = 0.4 * plausibility + 0.35 * alignment + 0.25 * aesthetics
    overall = float(np.clip(0.5 + 1.3 * (overall - 0.56), 0, 1))  # stretched: people use all of the scale
    return np.array([plausibility, alignment, aesthetics, overall], np.float32)


def _truth(record, damages, exact, words, has_prompt, quality, annotations) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(exact).save(file, "PNG", compress_level=6)
    return {
        "uid": record.uid,
        "prompt": record.prompt,
        "word_labels": list(words.labels) if has_prompt else None,
        "content_words": [int(flag) for flag in words.content],
        "faults": list(words.faults),
        "damage": [
            {name: round(v, 4) if isinstance(v, float) else v for name, v in dataclasses.asdict(one).items()}
            for one in damages
        ],
        "quality": {name: round(float(value), 4) for name, value in zip(SCORES, quality)},
        "annotators": [one._asdict() for one in annotations],
        "mask_png": base64.b64encode(file.getvalue()).decode(),
    }
