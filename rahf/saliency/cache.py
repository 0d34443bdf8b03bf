"""The maps of a frozen tower, of every training picture and of its mirror image (`train.cache_tower`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from data_pipelines.gaze import examples
from rahf.config import Config
from rahf.core.errors import ConfigError
from rahf.critic.tower_cache import TowerCache, of_tower


def check(config: Config) -> None:
    """Raises ConfigError: several processes, or a tower with dropout."""
    if config.data.augment is not None:
        raise ConfigError("train.cache_tower: augmented pictures are other ones every time; set data.augment to None")
    if jax.process_count() > 1:
        raise ConfigError("train.cache_tower: one process only, found several; leave it out on clusters")
    if config.model.tower == "vit" and config.model.vit.dropout:
        raise ConfigError("train.cache_tower: model.vit.dropout gives other outputs every time; set it to 0")


class SaliencyCache(TowerCache):
    """Picture number 2 i is record i, number 2 i + 1 its mirror image; without `model.flip` none are mirrored."""

    fields: ClassVar[tuple[str, ...]] = ("stride", "image_height", "image_width", "flip", "frozen_stages")

    @property
    def _copies(self) -> int:
        return 1 + self.config.model.flip

    def _is_cached(self, path: str) -> bool:
        if self.config.model.tower != "efficientnet":
            return of_tower(path)
        part = path.split("/")
        stage = part[1].split("_")[1] if part[1:] and part[1].startswith("stage_") else "0"
        return part[0] == "tower" and int(stage) < self.config.model.frozen_stages

    def _count(self) -> int:
        return len(self.source) * self._copies

    def _canvas(self) -> tuple[int, int]:
        return self.config.model.image_height, self.config.model.image_width

    def _place(self, index: int) -> int:
        return index // self._copies

    def _picture(self, index: int, on_damage: Callable[[str], None]) -> np.ndarray:
        record = self.source[self._place(index)]
        picture = examples.canvas(record.image, self.config.model, on_damage)
        return picture[:, ::-1] if index % self._copies else picture

    def _places(self, batch: Any) -> np.ndarray:
        return batch.index * self._copies + batch.flipped
