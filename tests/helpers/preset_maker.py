"""Presets cut down to a size that trains in seconds, every choice of structure kept."""

import dataclasses
from typing import Any

from rahf.config import Config

#: What is cut, by field name: a number to this at most, a list of widths to these.
_SIZES = {
    "patch_size": 8,
    "width": 32,
    "mlp_width": 48,
    "heads": 2,
    "head_width": 16,
    "depth": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "vocab_size": 64,
    "batch_size": 2,
    "eval_batch_size": 2,
    "max_prompt_tokens": 9,
    "max_target_tokens": 11,
    "max_words": 5,
    "warmup_steps": 1,
}
#: Two stages lead from 4 patches to half of the image, the rest is bilinear; one to the quarter.
_LISTS = {"conv_widths": (8, 8), "up_widths": (8, 8), "dense_widths": (8,)}
IMAGE_SIZE = 32
#: Not structure: where things lie, and how long a run is.
_IGNORED = {"start", "workdir", "path", "tokenizer", "image_size", "steps", "eval_every", "checkpoint_every"}


def shrink(config: Config) -> Config:
    """The config with small sizes, every flag kept; nothing is downloaded."""
    small = _shrunk(config)
    model = dataclasses.replace(small.model, image_size=IMAGE_SIZE)
    return dataclasses.replace(small, model=model, start=type(config.start)())


def _shrunk(value: Any) -> Any:
    changes = {}
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if field.name in _SIZES:
            changes[field.name] = min(found, _SIZES[field.name])
        elif field.name in _LISTS:
            changes[field.name] = _LISTS[field.name][: len(found)]
        elif dataclasses.is_dataclass(found):
            changes[field.name] = _shrunk(found)
    return dataclasses.replace(value, **changes)


def structure(config: Config) -> dict[str, Any]:
    """Every field that `shrink` must not touch, by path."""
    return dict(_kept(config, ""))


def _kept(value: Any, prefix: str):
    for field in dataclasses.fields(value):
        found, path = getattr(value, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(found):
            yield from () if field.name in _IGNORED else _kept(found, path + ".")
        elif field.name not in (*_SIZES, *_LISTS, *_IGNORED):
            yield path, found
