"""Numbers that no run could use: sizes below 1, shares outside of [0,1], rates below 0.

Found before anything is built, and named by their field.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any

from rahf.core.errors import ConfigError

#: Whole numbers that may be 0, as those may whose default is 0. All others are sizes and counts of at least 1.
_MAY_BE_0 = {
    "steps", "warmup_steps", "eval_every", "attention_from", "eos_token_id", "jpeg_quality", "steps_offset",
    "stop_range",
}  # fmt: skip
#: Ids, and numbers that may be below 0. A mesh is checked against the devices.
_FREE = {"task_ids", "pad_token_ids", "image_mean", "mesh", "margin", "guidance_scale", "gamma"}
_BELOW_1 = {"dropout", "ema_decay", "b1", "b2", "prompt_dropout", "image_dropout"}
_SHARES = {
    "crop_probability", "crop_keep", "crop_keeps_mass", "flip_probability", "photometric_probability", "brightness",
    "hue", "grey_probability", "final_fraction", "tag_rest", "eta", "place_share",
    "edit_probability", "pair_margin", "patch_sides", "edit_strength",
}  # fmt: skip
_ABOVE_0 = {"image_std", "layer_norm_eps", "eps", "prior", "blur", "tower_rate"}


def check(config: Any, where: str = "") -> None:
    """Checks all numbers of a config.

    Args:
      config: a `Config`, or a group of its fields such as a model's.
      where: its name, for messages: "model" gives "model.vit.heads".

    Raises:
      ConfigError: names the field, what is expected and what it is.
    """
    for path, name, size, value in _numbers(config, where):
        expected = _expected(name, size)
        if abs(value) > _LARGEST:  # an integer may even be too large for a float
            raise ConfigError(f"{path}: expected a number of reasonable size, found {value!r:.40}")
        low, below = (1 if expected == _SIZE else 0), 1 if name in _BELOW_1 else math.inf
        high = 1 if name in _SHARES else math.inf
        in_range = math.isfinite(value) and low <= value <= high and value < below and (value or name not in _ABOVE_0)
        if not in_range:
            raise ConfigError(f"{path}: expected {expected}, found {value}")


_SIZE = "at least 1"
_LARGEST = 1 << 63


def _expected(name: str, size: bool) -> str:
    """What a number must be, in words."""
    if name in _BELOW_1:
        return "at least 0 and below 1"
    if name in _SHARES:
        return "0 to 1"
    if name in _ABOVE_0:
        return "a number above 0"
    return _SIZE if size and name not in _MAY_BE_0 else "0 or more"


def _numbers(group: Any, where: str) -> Iterator[tuple[str, str, bool, float]]:
    """Path, name, whether it is a whole number that is not 0 by default, and value of all numbers below a group."""
    for name, (hint, default) in _fields(type(group)).items():
        value, path = getattr(group, name), f"{where}.{name}" if where else name
        if name in _FREE:
            continue
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, path)
            continue
        size = (hint is int or int in typing.get_args(hint)) and default != 0
        numbers = {path: value} if not isinstance(value, tuple) else {f"{path}[{i}]": v for i, v in enumerate(value)}
        for place, number in numbers.items():
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield place, name, size, number


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, Any]]:
    """Type and default of each field."""
    hints = typing.get_type_hints(cls)
    return {field.name: (hints[field.name], field.default) for field in dataclasses.fields(cls)}
