"""A trained Augsal: where people look at a picture, and what its properties are, read out of a diffusion model."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import AugsalConfig, Config
from rahf.core.errors import ArgumentError, CheckpointError
from rahf.core.tree import Params
from rahf.diffusion.pipeline import Pipeline
from rahf.images import letterbox
from rahf.nn import functional
from rahf.nn.boxes import regions
from rahf.saliency import frozen_pipeline
from rahf.saliency.augsal import features
from rahf.saliency.augsal.readouts import AugsalNetwork, Readings
from rahf.text import ClipTokenizer
from rahf.training import saved_model


class Augsal:
    """The readouts with their pipeline.

    Attributes:
      config, params: of the run.
      pipe: the frozen pipeline.
    """

    def __init__(self, config: Config, params: Params, tokenizer: ClipTokenizer):
        self.config, self.params = config, params
        model: AugsalConfig = config.model
        self.pipe = Pipeline(dataclasses.replace(config, model=model.pipeline), params["base"], tokenizer)
        graphdef, _ = functional.abstract(lambda: AugsalNetwork(model))
        plan = features.steps_of(model.pipeline.scheduler, model.num_inference_steps, model.times)

        def run(params, pictures, boxes, conditions):
            network = functional.merge(graphdef, params)
            latents = network.base.encode(pictures)
            back = features.inverted(network.base, latents, conditions, plan)
            seen = features.collect(network.base, back.trajectory[:-1], plan.timestep, conditions)
            return network.readouts(seen, pictures, boxes, regions(boxes, (model.resolution,) * 2))

        self._run = jax.jit(run)

    def __call__(self, pictures: Any, boxes: Any = None) -> Readings:
        """Reads out pictures.

        Args:
          pictures: [B,s,s,3] float in [0,1] or uint8, s the `image_size` of training; one, [s,s,3], is taken, too.
          boxes: float [B,4], the region whose properties are read, in shares of the sides: left, top, right, bottom;
            None: the whole picture.

        Raises:
          ArgumentError: another size, or boxes that are none. ImageError: pixels outside of [0,1].
        """
        side = self.config.model.image_size
        task = self.pipe.task("", image=pictures)
        image = task.image
        if image.shape[1:3] != (side, side):
            raise ArgumentError(f"pictures: expected {side} x {side} pixels, as trained, found {image.shape[1:3]}")
        whole = np.tile(np.float32([0, 0, 1, 1]), (len(image), 1))
        boxes = whole if boxes is None else np.asarray(boxes, np.float32)
        in_order = boxes.shape == whole.shape and (boxes[:, :2] < boxes[:, 2:]).all()
        if not in_order or boxes.min() < 0 or boxes.max() > 1:
            raise ArgumentError(f"boxes: expected [{len(image)},4]: left < right, top < bottom, all in [0,1]")
        conditions, _ = self.pipe.conditions(task.ids, task.negative_ids, (side, side))
        return self._run(self.params, jnp.asarray(image), boxes, conditions)

    def measure(self, pictures: Any, region: Any) -> np.ndarray:
        """Properties [B,6] of a region of pictures of any size, for `editor.Editor`: of the box around what is above 0.

        Args:
          pictures: float [B,H,W,3] in [0,1]; letterboxed into the square of training.
          region: float [B,H,W].
        """
        model = self.config.model
        grid, side = (model.resolution,) * 2, model.image_size
        fill = letterbox.fill_value((0.5, 0.5, 0.5))
        canvases, boxes = [], []
        for picture, mask in zip(np.asarray(pictures), np.asarray(region) > 0):
            frame = letterbox.fit(picture.shape[:2], grid)
            pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            canvases.append(letterbox.place(pixels, frame, (side, side), side // model.resolution, fill))
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            height, width = mask.shape
            shares = np.array(
                [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
            )
            scale = np.array([frame.columns, frame.rows, frame.columns, frame.rows])
            start = np.array([frame.left, frame.top, frame.left, frame.top])
            boxes.append((start + shares * scale) / model.resolution)
        return np.asarray(self(np.stack(canvases), np.stack(boxes)).properties)


def load(path: str | os.PathLike) -> Augsal:
    """Loads a run directory or one checkpoint of it.

    Raises:
      CheckpointError: no model there, or one of another family.
    """
    saved = saved_model.find(path, expected="a run directory of the family augsal")
    model = saved.config.model
    if not isinstance(model, AugsalConfig):
        raise CheckpointError(f"{saved.run}: a model of the family {model.family!r}, no Augsal; use rahf.load")
    params = saved.params(lambda: AugsalNetwork(model))
    return Augsal(saved.config, params, frozen_pipeline.tokenizer_of(saved, model.pipeline))
