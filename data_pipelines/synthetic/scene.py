"""One synthetic scene: picture, prompt, annotations and the exact truth, all from a seed.

A scene is a function of seed, split and index. It does not depend on the number of scenes, the number of processes or
the order in which they are drawn.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.prepare.consolidate import RawAnnotation, consolidate
from data_pipelines.store.records import Record
from data_pipelines.synthetic import damage, draw, language, layout, raters
from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError

#: Default side of the pictures in pixels. 64 to 512 give pictures with all details.
SIDE = 96
JPEG_QUALITY = 92


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A picture with its prompt, three annotations, and the truth behind them."""

    uid: str
    image: np.ndarray  # uint8 [S,S,3] RGB
    prompt: str
    words: tuple[str, ...]
    annotations: tuple[RawAnnotation, ...]
    plan: language.Plan  # asserted and shown facts, faults, true word labels
    texture: str
    spots: tuple[tuple[layout.Spot, ...], ...]  # of every group; a missing group's spots stay empty ground
    damages: tuple[damage.Damage, ...]
    damage_mask: np.ndarray  # float32 [S,S] in [0,1], the soft true regions
    misaligned_boxes: tuple[layout.Box, ...]
    quality: np.ndarray  # float32 [4] in [0,1], true qualities in order SCORES

    @property
    def word_labels(self) -> tuple[int, ...]:
        """The true labels: 1 = aligned, 0 = misaligned."""
        return self.plan.word_labels

    @property
    def faults(self) -> tuple[str, ...]:
        """Kinds of all planted faults: misalignments, then damage."""
        return (*self.plan.faults, *(one.kind for one in self.damages))

    def truth(self) -> dict[str, Any]:
        """The truth of the scene that its `Record` does not hold, as plain JSON values."""
        return {
            "uid": self.uid,
            "prompt": self.prompt,
            "words": list(self.words),
            "word_labels": list(self.word_labels),
            "content_words": [int(flag) for flag in self.plan.content],
            "faults": list(self.plan.faults),
            "asserted": dataclasses.asdict(self.plan.asserted),
            "shown": dataclasses.asdict(self.plan.shown),
            "texture": self.texture,
            "misaligned_boxes": [[round(v, 4) for v in box] for box in self.misaligned_boxes],
            "damage": [_rounded(dataclasses.asdict(one)) for one in self.damages],
            "quality": {name: round(float(v), 4) for name, v in zip(SCORES, self.quality)},
            "annotators": [one._asdict() for one in self.annotations],
        }


def _rounded(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in tree.items()}


@dataclasses.dataclass(frozen=True)
class _Look:
    """Photographic quality of the picture, each 0..1, high = good."""

    contrast: float
    exposure: float
    calm: float
    gloss: float

    @property
    def aesthetics(self) -> float:
        mean = 0.34 * self.contrast + 0.28 * self.exposure + 0.20 * self.calm + 0.18 * self.gloss
        return float(np.clip(0.5 + 1.45 * (mean - 0.5), 0, 1))


def _draw_look(rng: np.random.Generator) -> _Look:
    # The four are correlated: good photographers do all of it well.
    skill = rng.random()
    return _Look(*(0.55 * skill + 0.45 * rng.random(4)))


def stream(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """Independent randomness of prompt and layout (0), drawing (1), annotators (2) and viewers (3)."""
    if split not in language.SPLITS:
        raise ArgumentError(f"split {split!r}: expected one of {', '.join(language.SPLITS)}")
    if min(seed, index) < 0:
        raise ArgumentError(f"seed {seed}, index {index}: expected numbers that are not negative")
    return np.random.default_rng((seed, list(language.SPLITS).index(split), index, purpose))


def _say(rng: np.random.Generator, split: str) -> tuple[str, language.Plan]:
    texture = list(draw.TEXTURES)[rng.integers(len(draw.TEXTURES))]
    return texture, language.draw_plan(rng, split, draw.TEXTURES[texture])


def prompt(seed: int, split: str, index: int) -> str:
    """The prompt of a scene, without drawing it. Arguments as for `scene`."""
    return _say(stream(seed, split, index, 0), split)[1].prompt


def scene(seed: int, split: str, index: int, size: int = SIDE) -> Scene:
    """Draws one scene.

    Args:
      seed: of the data set, not negative.
      split: "train", "dev" or "test"; the facts of a prompt occur in one split only.
      index: number of the scene in its split, not negative.
      size: side of the picture in pixels, at least 32. Prompt, labels of words, places of objects and faults
        are the same at every size.

    Raises:
      ArgumentError: an unknown split, or a number out of range.
    """
    if size < 32:
        raise ArgumentError(f"size {size}: expected a side of at least 32 pixels")
    saying, drawing, rating = (stream(seed, split, index, purpose) for purpose in range(3))
    texture, plan = _say(saying, split)
    # A missing group keeps its place: a relation tells where it should be.
    counts = tuple(g.count or a.count for g, a in zip(plan.shown.groups, plan.asserted.groups))
    untrue = plan.asserted.relation if "relation" in plan.faults else None
    placed = layout.place(saying, counts, plan.shown.relation, untrue)
    spots = tuple(tuple(group) for group in placed)
    look = _draw_look(saying)
    canvas, drawn = _draw(drawing, size, texture, plan.shown, spots, look)
    damages, mask = damage.plant_damage(canvas, drawing, drawn)
    boxes = _misaligned(plan, spots)
    quality = _quality(plan, damages, look)
    return Scene(
        uid=f"synthetic-{seed}-{split}-{index:06d}",
        image=np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8),
        prompt=plan.prompt,
        words=plan.words,
        annotations=raters.annotate(rating, size, damages, boxes, plan.word_labels, quality),
        plan=plan,
        texture=texture,
        spots=spots,
        damages=tuple(damages),
        damage_mask=mask,
        misaligned_boxes=boxes,
        quality=quality,
    )


def _draw(rng, size, texture, shown, spots, look) -> tuple[np.ndarray, list[layout.Spot]]:
    """The undamaged picture, float32 [S,S,3], and the spots of the objects in it."""
    canvas = draw.draw_background(rng, size, texture, bold=1 - look.calm)
    angle = rng.uniform(np.pi * 0.55, np.pi * 0.95)  # light from above, left or right
    light = (float(np.cos(angle)) * (1 if rng.random() < 0.7 else -1), -float(np.sin(angle)))
    drawn: list[layout.Spot] = []
    for group, places in zip(shown.groups, spots):
        for spot in places[: group.count]:
            draw.draw_object(canvas, rng, group.shape, group.colour, spot, light, look.gloss)
            drawn.append(spot)
    # Poor contrast is a grey veil; poor exposure is too dark or too bright.
    contrast = np.float32(0.55 + 0.5 * look.contrast)
    lift = np.float32((1 - look.exposure) * 0.20 * (1 if rng.random() < 0.35 else -1))
    canvas -= 0.5
    canvas *= contrast
    canvas += 0.5 + lift
    np.clip(canvas, 0, 1, out=canvas)
    return canvas, drawn


def _misaligned(plan: language.Plan, spots: tuple[tuple[layout.Spot, ...], ...]) -> tuple[layout.Box, ...]:
    """Places that contradict the prompt.

    These are all objects of a group with a wrong shape, a wrong colour or too large a number, both groups of a wrong
    relation, and the empty place of a missing group if a relation tells where it belongs.
    """
    boxes: list[layout.Box] = []
    for group, places, marked in zip(plan.shown.groups, spots, plan.marked):
        told = group.count == 0 and plan.asserted.relation is not None
        if marked or told:
            boxes += [(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for x, y, s in places]
    return tuple(boxes)


def _quality(plan: language.Plan, damages: list[damage.Damage], look: _Look) -> np.ndarray:
    """True qualities, float32 [4] in [0,1], in order SCORES."""
    harm = sum(one.area * one.visibility for one in damages)
    plausibility = float(np.exp(-105 * harm))
    content = sum(plan.content)
    untrue = sum(1 for label in plan.word_labels if not label) / content
    alignment = 1 - untrue**0.6
    aesthetics = float(np.clip(look.aesthetics - 0.12 * (1 - plausibility), 0, 1))
    overall = 0.4 * plausibility + 0.35 * alignment + 0.25 * aesthetics
    overall = float(np.clip(0.5 + 1.3 * (overall - 0.56), 0, 1))  # stretched: people use all of the scale
    return np.array([plausibility, alignment, aesthetics, overall], np.float32)


def record(scene: Scene) -> Record:
    """The scene as stored: the annotators' labels, consolidated like real ones, without the truth.

    The picture is a JPEG of quality 92, the maps are PNGs of the picture's side.
    """
    side = scene.image.shape[0]
    labels = consolidate(scene.annotations, side, side, scene.words)
    picture = io.BytesIO()
    Image.fromarray(scene.image).save(picture, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return Record(
        uid=scene.uid,
        prompt=scene.prompt,
        words=scene.words,
        word_labels=labels.word_labels,
        image=picture.getvalue(),
        implausibility=_png(labels.heatmaps[..., 0]),
        misalignment=_png(labels.heatmaps[..., 1]),
        scores=labels.scores,
    )


def _png(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grey)).save(file, "PNG", compress_level=3)
    return file.getvalue()


def generate(seed: int, split: str, count: int, size: int = SIDE) -> Iterator[Record]:
    """Records 0 to count - 1 of a split, in order. See `scene` for the arguments."""
    for index in range(count):
        yield record(scene(seed, split, index, size))
