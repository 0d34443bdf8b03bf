"""Names of modules in version 0.1. They work for one more version, with a DeprecationWarning that names the new module.

A finder in `sys.meta_path` resolves `import rahf.viz`, `from rahf.batch import SCORES` and `from rahf import viz` to
the modules of today. `import rahf` and `import data_pipelines` install it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_NETWORKS, _SAMPLE = "rahf.critic.networks", "rahf.diffusion.sample"

#: Module of today for each former one; several where one was divided.
MODULES: Mapping[str, str | tuple[str, ...]] = {
    "data_pipelines.consolidate": "data_pipelines.prepare.consolidate",
    "data_pipelines.deaths": "data_pipelines.loading.worker_failures",
    "data_pipelines.examples": "data_pipelines.loading.examples",
    "data_pipelines.git_lfs": "rahf.core.files",
    "data_pipelines.labelled": "data_pipelines.loading.labels",
    "data_pipelines.loader": "data_pipelines.loading.loader",
    "data_pipelines.preparation": "data_pipelines.prepare.counts",
    "data_pipelines.records": "data_pipelines.store.records",
    "data_pipelines.store_writer": "data_pipelines.store.write",
    "data_pipelines.stored_images": "data_pipelines.prepare.stored_images",
    "data_pipelines.tf_example": "data_pipelines.store.tf_example",
    "data_pipelines.transforms": "data_pipelines.loading.transforms",
    "data_pipelines.worker": "data_pipelines.loading.worker",
    "rahf.batch": "rahf.core.batch",
    "rahf.compile_cache": "rahf.core.compile_cache",
    "rahf.config_schema": ("rahf.config.schema", "rahf.config"),
    "rahf.cpu": "rahf.core.process",
    "rahf.diffusion.blocks": "rahf.diffusion.networks.blocks",
    "rahf.diffusion.generator": "rahf.diffusion.pixel_generator",
    "rahf.diffusion.painter": "rahf.steer.inpainting",
    "rahf.diffusion.unet": "rahf.diffusion.networks.pixel_unet",
    "rahf.evaluate": "rahf.critic.evaluation.evaluator",
    "rahf.evaluated_model": "rahf.critic.evaluation.model",
    "rahf.evaluation_report": "rahf.critic.evaluation.run",
    "rahf.export": "rahf.critic.export.write",
    "rahf.export_functions": "rahf.critic.export.functions",
    "rahf.exported": "rahf.critic.export.read",
    "rahf.exported.archive": "rahf.critic.export.archive",
    "rahf.exported.program": "rahf.critic.export.program",
    "rahf.feedback": "rahf.critic.feedback",
    "rahf.inputs": ("rahf.images.inputs", "rahf.text.prompts"),
    "rahf.loading": "rahf.critic.loading",
    "rahf.losses": "rahf.critic.losses",
    "rahf.model_card": "rahf.critic.export.card",
    "rahf.models": "rahf.nn",
    "rahf.models.attention": "rahf.nn.attention",
    "rahf.models.augmented": f"{_NETWORKS}.augmented_prompt",
    "rahf.models.baselines": f"{_NETWORKS}.build",
    "rahf.models.baselines.clip": (f"{_NETWORKS}.clip", "rahf.nn.clip_text"),
    "rahf.models.baselines.resnet": (f"{_NETWORKS}.resnet", "rahf.nn.resnet"),
    "rahf.models.execution": "rahf.nn.execution",
    "rahf.models.flops": "rahf.nn.flops",
    "rahf.models.functional": "rahf.nn.functional",
    "rahf.models.gradients": "rahf.nn.gradients",
    "rahf.models.heads": f"{_NETWORKS}.heads",
    "rahf.models.initial": "rahf.nn.initial",
    "rahf.models.kinds": "rahf.critic.families",
    "rahf.models.layers": "rahf.nn.layers",
    "rahf.models.rahf": (f"{_NETWORKS}.multi_head", f"{_NETWORKS}.build", "rahf.critic.apply"),
    "rahf.models.t5": "rahf.nn.t5",
    "rahf.models.tags": f"{_NETWORKS}.word_tags",
    "rahf.models.vit": "rahf.nn.vit",
    "rahf.network": "rahf.critic.network",
    "rahf.origin": "rahf.core.licenses",
    "rahf.overrides": "rahf.config.overrides",
    "rahf.pictures": "rahf.images.pictures",
    "rahf.pixels": "rahf.nn.pixels",
    "rahf.predict": "rahf.critic.predict",
    "rahf.pretrained.baselines": "rahf.critic.published.baselines",
    "rahf.pretrained.richhf_torch": "rahf.critic.published.richhf_torch",
    "rahf.provenance": ("rahf.critic.provenance", "rahf.core.labels"),
    "rahf.pure": "rahf.critic.apply",
    "rahf.run_critic": "rahf.critic.from_run",
    "rahf.scoring.block": "rahf.scoring.score_block",
    "rahf.scoring.score": "rahf.scoring.run",
    "rahf.steer.choose": "rahf.steer.best_of_n_files",
    "rahf.steer.denoisers": f"{_SAMPLE}.denoisers",
    "rahf.steer.displace": f"{_SAMPLE}.displace",
    "rahf.steer.energy": ("rahf.critic.energy", "rahf.nn.energy"),
    "rahf.steer.names": ("rahf.core.labels", "rahf.core.names"),
    "rahf.steer.options": f"{_SAMPLE}.options",
    "rahf.steer.repair": "rahf.steer.repaint",
    "rahf.steer.schedules": "rahf.diffusion.schedules",
    "rahf.steer.select": "rahf.steer.best_of_n",
    "rahf.steer.universal": f"{_SAMPLE}.universal_guidance",
    "rahf.tasks": "rahf.critic.label_prompts",
    "rahf.text_byte_pairs": "rahf.text.byte_pairs",
    "rahf.text_clip": "rahf.text.clip",
    "rahf.train": "rahf.training",
    "rahf.train.accumulate": "rahf.training.accumulate",
    "rahf.train.checkpoint": "rahf.training.checkpoint",
    "rahf.train.checksum": "rahf.training.checksum",
    "rahf.train.claim": "rahf.training.run_lock",
    "rahf.train.distributed": "rahf.training.distributed",
    "rahf.train.loop": "rahf.training.loop",
    "rahf.train.optimizer": "rahf.training.optimizer",
    "rahf.train.prefetch": "rahf.training.prefetch",
    "rahf.train.progress": "rahf.training.progress",
    "rahf.train.sharding": "rahf.training.sharding",
    "rahf.train.start": "rahf.critic.start",
    "rahf.train.state": "rahf.training.state",
    "rahf.train.step": "rahf.training.step",
    "rahf.train.stored": "rahf.training.run_folder",
    "rahf.train.trainable": "rahf.training.trainable",
    "rahf.tree": "rahf.core.tree",
    "rahf.viz": ("rahf.critic.drawing", "rahf.images.overlay", "rahf.core.names"),
}
#: Functions of today that have the name of a former module. Its import sets the package's attribute, so that the
#: stand-in must be callable like the function: module and name of the function.
_FUNCTIONS = {
    "rahf.diffusion.painter": ("rahf.steer.inpainting", "painter"),
    "rahf.scoring.score": ("rahf.scoring.run", "score"),
    "rahf.steer.repair": ("rahf.steer.repaint", "repair"),
    "rahf.steer.select": ("rahf.steer.best_of_n", "select"),
    "rahf.train": ("rahf.registry", "train"),
}


def install() -> None:
    """Installs the finder of former names before all other finders, if it is not there yet."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def attributes(package: str, current: Callable[[str], Any]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: `current` for names of today, modules for former ones."""

    def getattr_(name: str) -> Any:
        try:
            return current(name)
        except AttributeError:
            if f"{package}.{name}" not in MODULES:
                raise
        return importlib.import_module(f"{package}.{name}")

    return getattr_


class CallableModule(types.ModuleType):
    """A module in the place of its function of the same name, such as `rahf.cli.main`, and callable like it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function and warns."""
        name = self.__name__.rpartition(".")[2]
        _warn(f"{self.__name__}(…)", f"{self.__name__}.{name}(…)")
        return getattr(self, name)(*args, **kwargs)


class _StandIn(types.ModuleType):
    """A former module: the contents of the modules of today that it was divided into."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for module in _current(self.__name__):
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.__name__ not in _FUNCTIONS:
            raise TypeError(f"module {self.__name__!r} is not callable")
        module, name = _FUNCTIONS[self.__name__]
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads former modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=_is_package(fullname))

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        current = _current(name)
        _warn(name, " and ".join(one.__name__ for one in current))
        # Where one module took the place, it is that module itself. A package keeps a stand-in: under its name, other
        # finders would load the submodules of today a second time.
        if len(current) == 1 and not _is_package(name) and name not in _FUNCTIONS:
            sys.modules[name] = current[0]


def _is_package(name: str) -> bool:
    return any(other.startswith(f"{name}.") for other in MODULES)


def _current(name: str) -> list[types.ModuleType]:
    modules = MODULES[name]
    return [importlib.import_module(one) for one in ((modules,) if isinstance(modules, str) else modules)]


def _of_import_system(module: str) -> bool:
    return module == __name__ or module.split(".")[0] == "importlib"


def _warn(old: str, new: str) -> None:
    """Warns on the line that used the name, which lies below the frames of the import system."""
    frame = sys._getframe(1)
    while frame.f_back and _of_import_system(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    warnings.warn_explicit(
        f"{old} is now {new}; the old name will be gone in the next version",
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
