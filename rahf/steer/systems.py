"""Systems that draw pictures from the same noise: models as they are, and four ways to steer one of them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core.errors import ArgumentError, RahfError
from rahf.critic import loading, provenance
from rahf.diffusion.latents.doodl import DoodlOptions, DoodlResult, doodl
from rahf.diffusion.latents.sgool import SaliencyOptions, heatmap_column, of_heatmap, sgool
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.steer import judges as judges_lib
from rahf.steer.generators import load_generator
from rahf.steer.judges import Judge
from rahf.steer.sgool_files import load_saliency

#: Ways to draw with the model, besides its own way all by the energy of the guide.
METHODS = ("plain", "guidance", "doodl", "sgool")
#: Cost of an update of the noise, in samplings without steering: EDICT calls the network twice a step, and its
#: gradient three times more, each call for a forward and a backward pass of about two forward passes.
_UPDATE = {"edict": 8.0, "ddim": 4.0}
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}")


@dataclasses.dataclass(frozen=True)
class SystemOptions:
    """How all systems draw, and how those that steer do.

    Attributes:
      num_inference_steps, guidance_scale, negative_prompt, height, width: as of the pipeline.
      guidance: of universal guidance.
      doodl: of DOODL and SGOOL; its steps and guidance scale are its own.
      salient: of SGOOL.
      saliency: model that says where people look; None: the guide.
      heatmap: its heatmap; None: its first.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    guidance: GuidanceOptions = GuidanceOptions()
    doodl: DoodlOptions = DoodlOptions()
    salient: SaliencyOptions = SaliencyOptions()
    saliency: Any = None
    heatmap: str | None = None


class System(NamedTuple):
    """Draws pictures.

    Attributes:
      name: of its folder and in tables.
      parameters: all that decides about its pictures, besides prompt and seed; JSON.
      draw: (prompts, seeds, progress) → pictures uint8 [B,h,w,3]. `progress` gets shares of a batch, 0 to 1.
      samplings: cost of a picture, in samplings without steering.
      took_part: ids of the models that its pictures were steered or trained by, or chosen by, and how each did.
      notes: what a reader must know besides.
    """

    name: str
    parameters: dict[str, Any]
    draw: Callable[[Sequence[str], Sequence[int], Callable[[float], None]], np.ndarray]
    samplings: float
    took_part: dict[str, str]
    notes: tuple[str, ...] = ()


def systems(
    model: str | os.PathLike | Pipeline,
    methods: Sequence[str] = ("plain",),
    others: Sequence[tuple[str, str | os.PathLike | Pipeline]] = (),
    guide: Judge | None = None,
    options: SystemOptions = SystemOptions(),
) -> list[System]:
    """The systems, in order: the methods with `model`, then other models in their own way.

    Args:
      model: model directory or run of Stable Diffusion, or a pipeline.
      methods: of `METHODS`, at least one.
      others: name and model of each.
      guide: whose energy steers; needed by all methods but ``plain``.
      options: of drawing.

    Raises:
      ArgumentError: an unknown method, no guide, names that are no names of folders or occur twice, or no pipeline.
      CheckpointError: a model cannot be read.
      NotPredicted: what says where people look has no such heatmap.
    """
    for method in methods:
        if method not in METHODS:
            raise ArgumentError(f"systems: expected some of {', '.join(METHODS)}, found {method!r}")
        if method != "plain" and guide is None:
            raise ArgumentError(f"systems: {method} needs a guide, a model whose score it raises; give --guide MODEL")
    listed = [*methods, *(name for name, _ in others)]
    for name in listed:
        if not _NAME.fullmatch(name):
            raise ArgumentError(f"models: {name!r} is no name; expected letters, digits, '.', '+', '-' and '_'")
        if listed.count(name) > 1 or name.lower() in {"boxes"}:
            raise ArgumentError(f"systems, models: {name!r} occurs twice or is taken; give it another name")
    pipe = _pipeline(model)
    own = _training(pipe)
    made = [_steered(pipe, model, method, guide, options) for method in methods]
    made = [one._replace(took_part={**own[0], **one.took_part}, notes=own[1]) for one in made]
    for name, place in others:
        other = _pipeline(place)
        took_part, notes = _training(other)
        made.append(_plain(other, place, name, options)._replace(took_part=took_part, notes=notes))
    return made


def _pipeline(model: Any) -> Pipeline:
    pipe = load_generator(model)
    if not isinstance(pipe, Pipeline):
        raise ArgumentError(f"{model}: expected a Stable Diffusion pipeline, found {type(pipe).__name__}")
    if pipe.inpaints:
        raise ArgumentError(f"{model}: a model of inpainting; give one that draws whole pictures")
    return pipe


def _parameters(pipe: Pipeline, place: Any, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    name = provenance.run_name(pipe.config)
    return {
        "method": method,
        "model": os.fspath(place) if isinstance(place, (str, os.PathLike)) else "pipeline",
        "model_id": provenance.model_id(pipe.config, pipe.params, pipe.tokenizer, name, None),
        **{key: value for key, value in fields.items() if value is not None},
    }


def _plain(pipe: Pipeline, place: Any, name: str, options: SystemOptions) -> System:
    sampling = _sampling(options)

    def draw(prompts: Sequence[str], seeds: Sequence[int], progress: Callable[[float], None]) -> np.ndarray:
        report = lambda done, total: progress(done / total)  # noqa: E731
        return pipe(list(prompts), seeds=list(seeds), batch_size=len(seeds), progress=report, **sampling).uint8

    return System(name, _parameters(pipe, place, "plain", sampling), draw, 1.0, {})


def _sampling(options: SystemOptions) -> dict[str, Any]:
    names = ("num_inference_steps", "guidance_scale", "negative_prompt", "height", "width")
    return {name: getattr(options, name) for name in names}


def _steered(pipe: Pipeline, place: Any, method: str, guide: Judge | None, options: SystemOptions) -> System:
    if method == "plain" or guide is None:
        return _plain(pipe, place, "plain", options)
    took_part = {guide.model_id: "guided"}
    of_guide = {"guide": guide.model_id, "scores": list(guide.scores)}
    if method == "guidance":
        sampling = _sampling(options)

        def guided(prompts: Sequence[str], seeds: Sequence[int], progress: Callable[[float], None]) -> np.ndarray:
            energy = judges_lib.guide_energy(guide, prompts)
            images = pipe(list(prompts), seeds=list(seeds), energy=energy, options=options.guidance, **sampling)
            progress(1.0)
            return images.uint8

        visits = options.guidance.recurrences * (3.0 if options.guidance.through_denoiser else 1.0)
        fields = {**sampling, **of_guide, "guidance": dataclasses.asdict(options.guidance)}
        return System(method, _parameters(pipe, place, method, fields), guided, visits, took_part)
    looks, saliency_id = guide.model, guide.model_id
    if method == "sgool" and options.saliency is not None:
        looks = load_saliency(options.saliency)
        saliency_id = getattr(looks, "model_id", type(looks).__name__)
        took_part.setdefault(saliency_id, "said where people look")
    if method == "sgool":
        heatmap_column(looks, options.heatmap)  # a wrong one must not cost the pictures of other systems
    fixed = {name: getattr(options, name) for name in ("negative_prompt", "height", "width")}

    def optimised(prompts: Sequence[str], seeds: Sequence[int], progress: Callable[[float], None]) -> np.ndarray:
        arguments = dict(
            seeds=list(seeds),
            options=options.doodl,
            progress=lambda done, total, _: progress(done / total),
            **fixed,
        )
        energy = judges_lib.guide_energy(guide, prompts)
        if method == "doodl":
            result: DoodlResult = doodl(pipe, list(prompts), energy, **arguments)
        else:
            saliency = of_heatmap(looks, list(prompts), options.heatmap)
            result = sgool(pipe, list(prompts), energy, saliency, salient=options.salient, **arguments)
        return np.round(result.images * 255).astype(np.uint8)

    fields = {**fixed, **of_guide, "doodl": dataclasses.asdict(options.doodl)}
    updates, per_sampling = options.doodl.iterations, options.doodl.num_inference_steps / options.num_inference_steps
    cost = updates * _UPDATE[options.doodl.backend]
    if method == "sgool":
        fields |= {"salient": dataclasses.asdict(options.salient), "saliency": saliency_id, "heatmap": options.heatmap}
        cost += 2.0 * (updates / options.salient.refresh_every)  # the pictures that it looks at
    return System(method, _parameters(pipe, place, method, fields), optimised, (cost + 2.0) * per_sampling, took_part)


def _training(pipe: Pipeline) -> tuple[dict[str, str], tuple[str, ...]]:
    """Ids of the critics that a model learned from, and how each took part; and what is not known of them."""
    feedback = pipe.config.feedback
    if not feedback.method:
        return {}, ()
    chosen = feedback.method == "chosen"
    notes = [f"trained on the choice {feedback.chosen}: name who chose with --took-part"] if chosen else []
    roles = {} if chosen else {path: "trained it" for path in feedback.critics}
    if feedback.held_out:
        roles.setdefault(feedback.held_out, "chose its checkpoint")
    took_part: dict[str, str] = {}
    for path, role in roles.items():
        try:
            took_part[loading.load(path).model_id] = role
        except (RahfError, OSError):
            notes.append(f"{path}, which {role}, cannot be loaded: compare by hand")
            took_part[path] = role
    return took_part, tuple(notes)
