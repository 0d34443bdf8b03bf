"""The one table of model families: which config belongs to which `Task`, and what loads a trained model.

To add a family: a subclass of `rahf.config.FamilyConfig`, a subclass of `rahf.training.task.Task`, a loader, and one
entry here. Nothing else in rahf asks which family a model is of.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rahf.config import limits
from rahf.config.model import FamilyConfig
from rahf.config.schema import Config
from rahf.core import hub, shipped
from rahf.core.errors import ArgumentError, ConfigError
from rahf.core.names import suggest
from rahf.critic import loading
from rahf.critic.export import archive
from rahf.saliency import loading as saliency_loading

if TYPE_CHECKING:  # Flax and Orbax: a reader of exported files does without
    from rahf.training.loop import Finished
    from rahf.training.task import Task


class Family(NamedTuple):
    """A family of models. Places are "module:name", so that importing the table imports no family."""

    config: str  # subclass of FamilyConfig
    task: str  # Config → Task
    load: str  # path of a run or checkpoint → what people use (Critic, Generator)


_CRITIC = {"task": "rahf.critic.task:CriticTask.from_config", "load": "rahf.critic.loading:load_local"}
FAMILIES: dict[str, Family] = {
    "critic": Family("rahf.config.critic:CriticConfig", **_CRITIC),
    "resnet": Family("rahf.config.critic:ResNetBaselineConfig", **_CRITIC),
    "clip": Family("rahf.config.critic:ClipBaselineConfig", **(_CRITIC | {"task": "rahf.critic.contrastive:task"})),
    "pixel-diffusion": Family(
        "rahf.config.diffusion:PixelDiffusionConfig",
        task="rahf.diffusion.pixel_generator:no_task",
        load="rahf.diffusion.pixel_generator:load",
    ),
    "motion": Family(
        "rahf.config.motion:MotionConfig",
        task="rahf.motion.task:MotionTask.from_config",
        load="rahf.motion.model:load",
    ),
    "motion-renderer": Family(
        "rahf.config.motion:MotionRendererConfig",
        task="rahf.motion.renderer_task:RendererTask.from_config",
        load="rahf.motion.renderer_task:load",
    ),
    "stable-diffusion": Family(
        "rahf.config.stable_diffusion:StableDiffusionConfig",
        task="rahf.steer.learning:task",
        load="rahf.diffusion.pipeline:load",
    ),
    "gazefusion": Family(
        "rahf.config.gazefusion:GazeFusionConfig",
        task="rahf.saliency.gazefusion.task:GazeFusionTask.from_config",
        load="rahf.saliency.gazefusion.task:load",
    ),
    "augsal": Family(
        "rahf.config.augsal:AugsalConfig",
        task="rahf.saliency.augsal.task:AugsalTask.from_config",
        load="rahf.saliency.augsal.model:load",
    ),
    "saliency": Family(
        "rahf.config.saliency:SaliencyConfig",
        task="rahf.saliency.task:SaliencyTask",
        load="rahf.saliency.loading:load_local",
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
    limits.check(config)
    return resolve(family_of(config.model).task)(config)


def train(config: Config) -> Finished:
    """Trains to `config.train.steps`, resuming if `config.workdir` holds an interrupted run.

    Returns:
      The step reached, the last evaluation's metrics, and the signal that interrupted the run, if one did.

    Raises:
      RahfError: see `rahf.training.loop.train`.
      ArgumentError: no config, but perhaps the path of one.
    """
    if not isinstance(config, Config):
        raise ArgumentError(f"train: expected a rahf.Config, found {config!r}; rahf.config.load(path) reads one")
    from rahf.training import loop  # Flax and Orbax: a reader of exported files does without

    return loop.train(task(config))


def load(path: str | os.PathLike, *, revision: str | None = None, **options: Any) -> Any:
    """Loads a trained model of any family.

    Args:
      path: a run directory (its best checkpoint, else the newest), one checkpoint of it
        (`RUN/checkpoints/latest/1000`), a file of `rahf export`, the name of a model that comes with rahf ("lite",
        "saliency-lite"), or the id of a Hugging Face repository that holds a run directory or one exported file
        ("owner/name"; downloaded once). A local path that exists always wins.
      revision: branch, tag or commit of the repository; None: its main branch.
      options: of the family's loader. A critic takes `dtype`: "float32" or "bfloat16" to compute in.

    Returns:
      A `rahf.Critic`, or what the model's family is used through (`rahf.diffusion.Generator`,
      `rahf.saliency.predictor.Saliency`).

    Raises:
      CheckpointError, ExportError: no model there, a damaged one, or a repository that cannot be downloaded.
      ConfigError: its `config.json` cannot be read, or is of a family that is not registered.
      ArgumentError: an option with a value that it cannot have.
    """
    local, downloaded = _local(path, revision)
    if loading.is_exported(local):
        if archive.kind_of(local) == "saliency":
            _check_options(saliency_loading.load_local, options, "an exported saliency model")
            return saliency_loading.load_local(local, **options)
        _check_options(loading.load_local, options, "an exported critic")
        return loading.load_local(local, downloaded=downloaded, **options)
    from rahf.training import saved_model  # Flax and Orbax: a reader of exported files does without

    model = saved_model.find(local).config.model
    loader = resolve(family_of(model).load)
    _check_options(loader, options, f"a {model.family} model")
    return loader(local, **options, **({"downloaded": True} if loader is loading.load_local and downloaded else {}))


def family_name(path: str | os.PathLike, revision: str | None = None) -> str:
    """The family of a trained model, of an exported critic "critic". Arguments and errors as of `load`."""
    local, _ = _local(path, revision)
    if loading.is_exported(local):
        return archive.kind_of(local)
    from rahf.training import saved_model  # Flax and Orbax: a reader of exported files does without

    return saved_model.find(local).config.model.family


def _local(path: str | os.PathLike, revision: str | None) -> tuple[str | os.PathLike, bool]:
    """The path on this machine of what `load` is given, and whether it comes from the hub."""
    path = shipped.resolve(path)
    downloaded = hub.is_id(path, revision)
    return (hub.download(str(path), revision), True) if downloaded else (path, False)


def _check_options(loader: Callable[..., Any], options: dict[str, Any], what: str) -> None:
    """Refuses options that a family's loader does not take. Raises ArgumentError."""
    parameters = list(inspect.signature(loader).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name != "downloaded"]
    for name in options:
        if name not in known:
            remedy = suggest(name, known) if known else f" Leave it out: {what} is loaded without options."
            raise ArgumentError(f"{name}: {what} has no such option of rahf.load.{remedy}")
