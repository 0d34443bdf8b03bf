"""`rahf generate`: prompts and seeds → PNG files with their parameters inside, and a contact sheet."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from rahf.core.errors import ArgumentError
from rahf.core.files import write_atomically
from rahf.core.version import __version__
from rahf.critic import loading
from rahf.diffusion import lora as lora_lib
from rahf.diffusion import pipeline_inputs
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.pixel_generator import Generator
from rahf.diffusion.published.controlnet_folder import load_controlnet
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.images.decode import load_rgb
from rahf.saliency import targets
from rahf.steer.generators import load_generator
from rahf.text import PromptWarning, prompt_lists

#: Name of the PNG text that holds the parameters as JSON.
METADATA = "rahf"
_SHEET, _CELL, _MARGIN, _LINE = "contact_sheet.png", 256, 6, 16


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """How pictures are drawn; fields as of `rahf.diffusion.Pipeline`.

    Attributes:
      guidance_scale: None: the model's usual one.
      critic: path of a critic that guides; None: no guidance.
      score, critic_scale: which score it raises, and how strongly (`rahf.diffusion.GuidanceOptions.scale`).
      image, mask: paths of a picture to start from, and of its mask (white: repaint).
      lora: files of adapters, each perhaps with ``:SCALE``.
      saliency: path of a map, white where people shall look; needs `controlnet`.
      controlnet: folder of the ControlNet that reads it, in the layout of diffusers.
      saliency_scale: how strongly it steers: one number, or one per step.
      scheduler: "ddim", "ddpm", "euler", "dpmsolver++" or "pndm" instead of the model's own.
      karras: spread the steps of euler and dpmsolver++ as Karras et al. 2022 do, whatever the model says.
    """

    num_inference_steps: int = 50
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int = 4
    eta: float | None = None
    scheduler: str | None = None
    karras: bool = False
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    critic: str | None = None
    score: str = "overall"
    critic_scale: float = 0.1
    lora: tuple[str, ...] = ()
    saliency: str | None = None
    controlnet: str | None = None
    saliency_scale: tuple[float, ...] = (1.0,)


class GeneratedFile(NamedTuple):
    """One picture on disk."""

    path: pathlib.Path
    prompt: str
    seed: int


def generate_files(
    model: str | os.PathLike | Pipeline | Generator,
    prompts: Sequence[str],
    out: str | os.PathLike,
    seeds: Sequence[int] = (0,),
    options: GenerateOptions = GenerateOptions(),
    progress: Callable[[int, int], None] | None = None,
) -> list[GeneratedFile]:
    """Draws every prompt with every seed.

    Writes ``out/000-seed0.png``, …, numbered by prompt, and ``out/contact_sheet.png``: a row per prompt, a column per
    seed. A picture is written as soon as it is drawn.

    Args:
      model: what `rahf.diffusion.load` takes, a run of GazeFusion, or what these load.
      prompts, seeds: at least one each.
      out: folder; must not exist, or be empty.
      progress: called with the numbers of steps that are done and of all steps.

    Raises:
      ArgumentError: an option that the model does not have, numbers that make no sense, or a folder that is not empty.
      ImageError: an image or mask that cannot be read.
      OSError: something cannot be written.
    """
    folder = pathlib.Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"{folder}: exists already and is not empty; choose another folder")
    if not prompts or not seeds:
        raise ArgumentError("generate: expected at least one prompt and one seed")
    pipe = load_generator(model)
    draw = _pipeline_drawer(pipe, options) if isinstance(pipe, Pipeline) else _generator_drawer(pipe, options)
    jobs = [(number, prompt, int(seed)) for number, prompt in enumerate(prompts) for seed in seeds]
    written, drawn = [], []
    for first, batch in _batches(jobs, options.batch_size):
        report = None
        if progress is not None:
            report = functools.partial(_report, progress, first, len(batch), len(jobs))
        # Equal batches: a smaller one would compile anew.
        full = [*batch, *[batch[-1]] * (min(options.batch_size, len(jobs)) - len(batch))]
        images = draw([prompt for _, prompt, _ in full], [seed for _, _, seed in full], report)
        for (number, prompt, seed), image in zip(batch, images):
            path = folder / f"{number:03d}-seed{seed}.png"
            write_atomically(path, png(image, parameters(options, prompt, seed, image, model)))
            written.append(GeneratedFile(path, prompt, seed))
            drawn.append(image)
    write_atomically(folder / _SHEET, png(contact_sheet(drawn, list(prompts), len(seeds))))
    return written


def _report(progress: Callable[[int, int], None], first: int, batch: int, count: int, done: int, total: int) -> None:
    """Steps of one batch → steps of all pictures."""
    progress(first * total + done * batch, count * total)


def parameters(options: GenerateOptions, prompt: str, seed: int, image: np.ndarray, model: Any) -> dict[str, Any]:
    """What a picture was drawn with, as its PNG holds it."""
    fields = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    if options.critic is None:
        fields = {name: value for name, value in fields.items() if name not in ("score", "critic_scale")}
    fields = {name: value for name, value in fields.items() if name not in ("lora", "karras") or value}
    if options.saliency is None:
        del fields["saliency_scale"]
    fields.pop("batch_size")  # has no influence
    size = {"height": image.shape[0], "width": image.shape[1]}
    where = {"model": os.fspath(model)} if isinstance(model, (str, os.PathLike)) else {}
    return {"prompt": prompt, "seed": seed, **fields, **size, **where, "rahf": __version__}


def png(image: np.ndarray, metadata: dict[str, Any] | None = None) -> bytes:
    """A picture uint8 [h,w,3] as PNG, with its parameters as JSON in the text `METADATA`."""
    info = PngInfo()
    if metadata is not None:
        info.add_itxt(METADATA, json.dumps(metadata, ensure_ascii=False))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def contact_sheet(
    images: Sequence[np.ndarray], prompts: Sequence[str], columns: int, headings: Sequence[str] = ()
) -> np.ndarray:
    """Pictures in rows of `columns`, each row below the start of its prompt; uint8 [h,w,3] on white.

    `headings` stand above the columns.
    """
    height, width = images[0].shape[:2]
    scale = min(1.0, _CELL / max(height, width))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    rows = -(-len(images) // columns)
    step_x, step_y = cell[0] + _MARGIN, cell[1] + _MARGIN + _LINE
    top = _MARGIN + (_LINE if headings else 0)
    sheet = Image.new("RGB", (_MARGIN + columns * step_x, top + rows * step_y), "white")
    pen = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        pen.text((_MARGIN + column * step_x, _MARGIN // 2), heading[: max(1, step_x // 6)], fill="black")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        at = (_MARGIN + column * step_x, top + row * step_y)
        if column == 0:
            # Pillow's own font has Latin letters only.
            text = prompts[row].encode("latin-1", "replace").decode("latin-1")
            pen.text(at, text[: max(1, columns * step_x // 6)], fill="black")
        sheet.paste(Image.fromarray(image).resize(cell, Image.Resampling.LANCZOS), (at[0], at[1] + _LINE))
    return np.asarray(sheet)


def _batches(jobs: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    if size < 1:
        raise ArgumentError(f"batch_size: expected at least 1, found {size}")
    for first in range(0, len(jobs), size):
        yield first, jobs[first : first + size]


def _steering(options: GenerateOptions) -> dict[str, Any]:
    """Arguments of guidance by a critic; without one, none."""
    if options.critic is None:
        return {}
    critic = loading.load(options.critic)
    return {"reward": critic.reward(options.score), "options": GuidanceOptions(scale=options.critic_scale)}


def _pictures(options: GenerateOptions) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Image uint8 [h,w,3] and mask float32 [h,w] of the options."""
    image = None if options.image is None else load_rgb(options.image)
    mask = None if options.mask is None else load_rgb(options.mask).mean(-1, dtype=np.float32) / 255
    if mask is not None and image is None:
        raise ArgumentError("mask: expected an image, too: the picture that is to be repainted")
    return image, mask


def _control(pipe: Pipeline, options: GenerateOptions, image: np.ndarray | None) -> dict[str, Any]:
    """Arguments of a ControlNet by a saliency map; without one, none."""
    if options.saliency is None and options.controlnet is None:
        return {}
    if options.saliency is None or options.controlnet is None:
        raise ArgumentError(
            "saliency, controlnet: expected both: a map, and the folder of the ControlNet that reads it"
        )
    default, multiple = pipe.config.model.image_size, pipe.scale_factor
    batch = None if image is None else image[None]
    size = pipeline_inputs.size(options.height, options.width, batch, default, multiple)
    target = targets.read(options.saliency, size)
    pipe.controlnet = load_controlnet(options.controlnet)
    scale = options.saliency_scale
    return {"control_image": target, "controlnet_conditioning_scale": scale[0] if len(scale) == 1 else scale}


def _pipeline_drawer(pipe: Pipeline, options: GenerateOptions) -> Callable[..., np.ndarray]:
    for place in options.lora:
        file, scale = lora_and_scale(place)
        pipe.params = lora_lib.merged(pipe.params, lora_lib.read(file, pipe), scale)
    if options.scheduler is not None:
        pipe.scheduler = dataclasses.replace(pipe.scheduler, kind=options.scheduler)
    if options.karras:
        if pipe.scheduler.kind not in ("euler", "dpmsolver++"):
            raise ArgumentError(f"karras: expected the scheduler euler or dpmsolver++, found {pipe.scheduler.kind}")
        pipe.scheduler = dataclasses.replace(pipe.scheduler, use_karras_sigmas=True)
    image, mask = _pictures(options)
    fixed = {
        **_control(pipe, options, image),
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": 7.5 if options.guidance_scale is None else options.guidance_scale,
        "height": options.height,
        "width": options.width,
        "image": image,
        "mask_image": mask,
        "strength": options.strength,
        "eta": options.eta or 0.0,
        "batch_size": options.batch_size,
        **_steering(options),
    }

    def draw(prompts: list[str], seeds: list[int], progress: Any) -> np.ndarray:
        return pipe(prompts, seeds=seeds, progress=progress, **fixed).uint8

    return draw


def _generator_drawer(generator: Generator, options: GenerateOptions) -> Callable[..., np.ndarray]:
    """The family of earlier versions: one size, its own sampler, pictures to repaint but not to start from."""
    side = generator.config.model.image_size
    sizes = {options.height, options.width} - {None, side}
    refused = {"scheduler": options.scheduler, "strength": options.strength, "height and width": sizes or None}
    refused |= {"lora": options.lora or None, "karras": options.karras or None}
    refused |= {"saliency": options.saliency, "controlnet": options.controlnet}
    refused["image without a mask"] = options.image if options.mask is None else None
    for name, value in refused.items():
        if value is not None:
            raise ArgumentError(f"{name}: this model draws {side} x {side} pixels from noise; leave it out")
    image, mask = _pictures(options)
    fixed = {
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": 2.0 if options.guidance_scale is None else options.guidance_scale,
        **_steering(options),
        **({} if options.eta is None else {"eta": options.eta}),
    }

    def draw(prompts: list[str], seeds: list[int], progress: Any) -> np.ndarray:
        if mask is None:
            generated = generator(prompts, seeds, **fixed)
        else:
            generated = generator.inpaint(image, mask >= 0.5, prompts, seeds, **fixed)
        if progress is not None:
            progress(options.num_inference_steps, options.num_inference_steps)
        return generated.uint8

    return draw


def lora_and_scale(place: str) -> tuple[str, float]:
    """``FILE:0.8`` → file and scale; a file alone has scale 1. Raises ArgumentError for a scale that is no number."""
    file, colon, scale = place.rpartition(":")
    if not colon or os.path.exists(place):
        return place, 1.0
    try:
        return file, float(scale)
    except ValueError as error:
        raise ArgumentError(f"lora: expected FILE or FILE:SCALE, found {place!r}") from error


def prompts_of_file(path: str | os.PathLike) -> list[str]:
    """The prompts of a list: one a line, or a table as `rahf.text.prompt_lists` reads it.

    Raises:
      ArgumentError: it cannot be read, has no prompts, or a row that is refused.
    """
    listed = prompt_lists.read(path)
    if listed.refused:
        raise ArgumentError(f"{path}: {listed.refused[0]}")
    return [one.prompt for one in listed.prompts]


def silence_repeats() -> None:
    """Prompts are encoded batch by batch; a warning about one is shown once."""
    warnings.filterwarnings("once", category=PromptWarning)
