"""Does a ControlNet draw pictures that are looked at where one wants it? Against pictures of the same seeds without it.

Every prompt is drawn with every seed in several *ways*: without a target, by the ControlNet at some scales, and, as a
rival that needs no training, by guidance with KL(target || saliency). A held-out saliency model, which took part in
none of them, predicts where people look at each picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core.errors import ArgumentError
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.metrics.bootstrap import Difference, bootstrap_intervals, paired_differences
from rahf.metrics.steering import AGREEMENT, STEERING, SteeringMetrics, agreement
from rahf.saliency import energy, targets

#: The way of drawing without a target.
UNCONDITIONED = "unconditioned"
#: The way of drawing by guidance with a saliency model.
GUIDED = "KL guidance"
_BATCH = 4


class Target(NamedTuple):
    """Where people shall look.

    Attributes:
      name: for messages and files.
      map: float [h,w], at least 0, of any scale; or [prompts,h,w], one for each prompt, where not every prompt leaves
        room for every place.
      avoid: bool [h,w], True where nobody shall look; None: nowhere in particular.
    """

    name: str
    map: np.ndarray
    avoid: np.ndarray | None = None

    @property
    def maps(self) -> np.ndarray:
        """[1,h,w] or [prompts,h,w]."""
        return self.map.reshape(-1, *self.map.shape[-2:])


@dataclasses.dataclass(frozen=True)
class Ways:
    """How pictures are drawn.

    Attributes:
      scales: of the ControlNet's residuals, one way each; (): it takes no part.
      guide: a saliency model for guidance; None: no such way. It must not be the judge.
      guide_scale: strength of that guidance (`rahf.diffusion.GuidanceOptions.scale`).
      sampling: further arguments of the pipeline: steps, guidance scale, batch size.
    """

    scales: tuple[float, ...] = (1.0, 0.7)
    guide: Any = None
    guide_scale: float = 0.2
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results by way of drawing; intervals are over drawings, a prompt with a seed, each the mean over the targets.

    Attributes:
      metrics: way → metric of `rahf.metrics.steering.STEERING` → value; NaN: undefined.
      intervals: the same → 95 % interval.
      differences: way → metric → value minus that of the unconditioned drawings, paired.
      drawings, targets: how many.
    """

    metrics: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    differences: dict[str, dict[str, Difference]]
    drawings: int
    targets: int


#: Gets a way, a target (None: unconditioned) and its pictures uint8 [B,h,w,3], in the order of the drawings.
Keep = Callable[[str, Target | None, np.ndarray], None]


def evaluate(
    pipe: Pipeline,
    prompts: Sequence[str],
    wanted: Sequence[Target],
    judge: Any,
    seeds: Sequence[int] = (0,),
    ways: Ways = Ways(),
    critic: Any = None,
    keep: Keep | None = None,
) -> Evaluation:
    """Draws and judges. Pictures of one seed begin from the same noise in all ways.

    Args:
      pipe: with a ControlNet, unless `ways.scales` is empty.
      prompts, seeds: at least one each; every prompt is drawn with every seed.
      wanted: the targets, of one size: that of the pictures. `keep` gets them with a map for each drawing.
      judge: a saliency model, `rahf.saliency.predictor.Saliency`, that neither guides nor made the ControlNet's data.
      ways: of drawing besides the unconditioned one.
      critic: `rahf.load` of a critic for ``alignment``; None: that is NaN.
      keep: gets the pictures.

    Raises:
      ArgumentError: nothing to draw or to compare, no ControlNet, a judge that guides, or targets that make no sense.
    """
    _check(pipe, prompts, wanted, judge, seeds, ways)
    size = wanted[0].maps.shape[1:]
    # Each of the drawings has a map of its own from here on: those of one prompt are neighbours.
    wanted = [one._replace(map=np.resize(_checked(one), (len(prompts), *size)).repeat(len(seeds), 0)) for one in wanted]
    drawings = [(prompt, int(seed)) for prompt in prompts for seed in seeds]
    texts, numbers = [prompt for prompt, _ in drawings], [seed for _, seed in drawings]

    size_of_batch = min(ways.sampling.get("batch_size", _BATCH), len(drawings))

    def drawn(way: str, target: Target | None, fields: Callable[[np.ndarray], dict[str, Any]]) -> np.ndarray:
        parts = []
        for first in range(0, len(drawings), size_of_batch):
            # Equal batches: another one would compile anew. With an energy the pipeline takes all that it is given.
            rows = [min(row, len(drawings) - 1) for row in range(first, first + size_of_batch)]
            drawing = {"seeds": [numbers[row] for row in rows], "height": size[0], "width": size[1]}
            steering = {} if target is None else fields(target.map[rows])
            parts.append(pipe([texts[row] for row in rows], **drawing, **ways.sampling, **steering).uint8)
        pictures = np.concatenate(parts)[: len(drawings)]
        if keep is not None:
            keep(way, target, pictures)
        return pictures

    free = drawn(UNCONDITIONED, None, lambda _: {})
    values = {UNCONDITIONED: _judged([free], texts, wanted, judge, critic)}
    for scale in ways.scales:
        way = f"scale {scale:g}"
        control = lambda maps: {"control_image": maps, "controlnet_conditioning_scale": float(scale)}  # noqa: B023, E731
        steered = [drawn(way, one, control) for one in wanted]
        values[way] = _judged(steered, texts, wanted, judge, critic)
    if ways.guide is not None:
        options = GuidanceOptions(scale=ways.guide_scale)
        guidance = lambda maps: {"energy": energy.target(ways.guide, maps), "options": options}  # noqa: E731
        steered = [drawn(GUIDED, one, guidance) for one in wanted]
        values[GUIDED] = _judged(steered, texts, wanted, judge, critic)
    return _summary(values, len(drawings), len(wanted))


def _check(
    pipe: Pipeline, prompts: Sequence[str], wanted: Sequence[Target], judge: Any, seeds: Sequence[int], ways: Ways
) -> None:
    if not prompts or not seeds or not wanted:
        raise ArgumentError("evaluation of GazeFusion: expected at least one prompt, one seed and one target map")
    if not ways.scales and ways.guide is None:
        raise ArgumentError("scales, guide: nothing to compare with unconditioned pictures; give a scale or a guide")
    if len(set(ways.scales)) < len(ways.scales):
        raise ArgumentError(f"scales: expected different ones, found {ways.scales}")
    if (batch_size := ways.sampling.get("batch_size", _BATCH)) < 1:
        raise ArgumentError(f"batch_size: expected at least 1, found {batch_size}")
    if ways.scales and pipe.controlnet is None:
        raise ArgumentError("the pipeline has no ControlNet; set pipe.controlnet, or give scales=()")
    if ways.guide is not None and ways.guide.model_id == judge.model_id:
        raise ArgumentError(
            f"judge: {judge.model_id} also guides, so it would judge its own work; judge with another saliency model"
        )
    names = [one.name for one in wanted]
    if len(set(names)) < len(names):
        raise ArgumentError(f"targets: expected different names, found {', '.join(names)}")
    for one in wanted:
        if one.map.ndim not in (2, 3) or len(one.maps) not in (1, len(prompts)):
            raise ArgumentError(
                f"target {one.name}: expected one map [h,w], or one for each of {len(prompts)} prompts, found shape "
                f"{one.map.shape}"
            )
    shapes = {one.maps.shape[1:] for one in wanted}
    if len(shapes) > 1:
        raise ArgumentError(f"targets: expected maps of one size, found {sorted(shapes)}")


def _checked(target: Target) -> np.ndarray:
    maps = target.maps
    names = [target.name if len(maps) == 1 else f"{target.name}, prompt {row}" for row in range(len(maps))]
    return np.stack([targets.check(one, name, one.shape, target.avoid) for one, name in zip(maps, names)])


def _judged(
    pictures: Sequence[np.ndarray], texts: Sequence[str], wanted: Sequence[Target], judge: Any, critic: Any
) -> np.ndarray:
    """float64 [drawings,6], columns `STEERING`, means over the targets.

    `pictures` are those of each target, or once those that serve all of them.
    """
    predictions = [judge(list(batch)) for batch in pictures]
    alignments = [None if critic is None else critic.score(list(batch), list(texts), "alignment") for batch in pictures]
    values = np.full((len(wanted), len(texts), len(STEERING)), np.nan)
    for row, target in enumerate(wanted):
        number = row % len(pictures)
        for column, one in enumerate(predictions[number]):
            name = f"picture {column} for {target.name}"
            values[row, column, : len(AGREEMENT)] = agreement(one.log_density, target.map[column], target.avoid, name)
        if alignments[number] is not None:
            values[row, :, -1] = alignments[number]
    present = ~np.isnan(values)
    counts = present.sum(0)
    return np.where(counts > 0, np.where(present, values, 0).sum(0) / np.maximum(counts, 1), np.nan)


def _summary(values: dict[str, np.ndarray], drawings: int, count: int) -> Evaluation:
    metrics = {}
    for way, rows in values.items():
        metrics[way] = SteeringMetrics()
        metrics[way].update(rows, np.arange(drawings))
    free = metrics[UNCONDITIONED]
    return Evaluation(
        {way: {name: one.compute()[name] for name in STEERING} for way, one in metrics.items()},
        {way: bootstrap_intervals(one) for way, one in metrics.items()},
        {way: paired_differences(one, free) for way, one in metrics.items() if way != UNCONDITIONED},
        drawings,
        count,
    )
