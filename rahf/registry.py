"""The one table of model families: which config belongs to which `Task`, and what loads a trained model.

To add a family: a subclass of `rahf.config.FamilyConfig`, a subclass of `rahf.training.task.Task`, a loader, and one
entry here. Nothing else in rahf asks which family a model is of.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rahf.config.model import FamilyConfig
from rahf.config.schema import Config
from rahf.core.errors import ConfigError
from rahf.critic import loading

if TYPE_CHECKING:  # Flax and Orbax: a reader of exported files does without
    from rahf.training.loop import Finished
    from rahf.training.task import Task


class Family(NamedTuple):
    """A family of models. Places are "module:name", so that importing the table imports no family."""

    config: str  # subclass of FamilyConfig
    task: str  # Config → Task
    load: str  # path of a run or checkpoint → what people use (Critic, Generator)


FAMILIES: dict[str, Family] = {
    "critic": Family(
        "rahf.config.critic:CriticConfig", "rahf.critic.task:CriticTask.from_config", "rahf.critic.from_run:load"
    ),
    "resnet": Family(
        "rahf.config.critic:ResNetBaselineConfig",
        "rahf.critic.task:CriticTask.from_config",
        "rahf.critic.from_run:load",
    ),
    "clip": Family(
        "rahf.config.critic:ClipBaselineConfig", "rahf.critic.task:CriticTask.from_config", "rahf.critic.from_run:load"
    ),
    "pixel-diffusion": Family(
        "rahf.config.diffusion:PixelDiffusionConfig",
        "rahf.diffusion.task:PixelDiffusionTask.from_config",
        "rahf.diffusion.pixel_generator:load",
    ),
}


def resolve(place: str | Callable[..., Any]) -> Any:
    """The object at "module:name.of.it"; anything else is returned as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


def family_of(config: FamilyConfig) -> Family:
    """The entry of a model's family.

    Raises:
      ConfigError: the family is not in the table.
    """
    if config.family not in FAMILIES:
        raise ConfigError(
            f"model.family {config.family!r} is not registered; known: {', '.join(sorted(FAMILIES))}. A family of "
            "another package is added to rahf.registry.FAMILIES"
        )
    return FAMILIES[config.family]


def task(config: Config) -> Task:
    """The task of a run's config: what `rahf.training.loop.train` is given.

    Raises:
      ConfigError, TrainError, DatasetError, PretrainedError: as the family's task.
    """
    return resolve(family_of(config.model).task)(config)


def train(config: Config) -> Finished:
    """Trains to `config.train.steps`, resuming if `config.workdir` holds an interrupted run.

    Returns:
      The step reached, the last evaluation's metrics, and the signal that interrupted the run, if one did.

    Raises:
      RahfError: see `rahf.training.loop.train`.
    """
    from rahf.training import loop  # Flax and Orbax: a reader of exported files does without

    return loop.train(task(config))


def load(path: str | os.PathLike, **options: Any) -> Any:
    """Loads a trained model of any family: a run directory, a checkpoint of it, an exported file, or a hub id.

    Args:
      path: where the model is.
      options: of the family's loader; a critic takes `dtype`.

    Returns:
      A `rahf.Critic`, or what the model's family is used through (`rahf.diffusion.Generator`).

    Raises:
      CheckpointError, ExportError: no model there, or a damaged one.
      ConfigError: its `config.json` cannot be read, or is of a family that is not registered.
    """
    if loading.is_exported(path):
        return loading.load(path, **options)
    from rahf.training import saved_model  # Flax and Orbax: a reader of exported files does without

    return resolve(family_of(saved_model.find(path).config.model).load)(path, **options)
