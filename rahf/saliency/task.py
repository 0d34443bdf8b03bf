"""The saliency family as a `Task`: pictures with fixations or densities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.gaze import loader as loader_lib
from data_pipelines.gaze.examples import GazeBatch
from rahf.config import Config
from rahf.core.errors import ConfigError, PretrainedError
from rahf.core.tree import Params
from rahf.critic.tower_cache import CachedLoader
from rahf.critic.towers import load_vision_part
from rahf.nn import functional
from rahf.saliency import cache as cache_lib
from rahf.saliency import evaluate, gaze_batches, losses, network
from rahf.saliency.augsal import pixel_edits
from rahf.training import start as start_lib
from rahf.training.mean_evaluator import MeanEvaluator
from rahf.training.task import Loader, Loss, Start, Task


class SaliencyTask(Task[GazeBatch]):
    """Trains a saliency network."""

    def __init__(self, config: Config):
        """Raises ConfigError, TrainError: sizes that do not fit, or a start that contradicts itself."""
        super().__init__(config)
        network.map_widths(config.model)
        start_lib.check(config)
        if config.start.text:
            raise ConfigError("start.text: a saliency model reads no text; leave it out")
        if config.data.mix:
            raise ConfigError("data.mix: saliency sets are joined by the number of their pictures; set it to ()")
        self.cache: cache_lib.SaliencyCache | None = None
        if config.train.cache_tower:
            cache_lib.check(config)
        self.loss_parts = losses.PARTS
        self.edits = config.model.edit_probability > 0 and config.model.loss.edit_weight > 0
        if self.edits and config.train.cache_tower:
            raise ConfigError(
                "model.edit_probability: edited pictures are other ones every time; set it to 0, or "
                "train.cache_tower to False"
            )
        if self.edits:
            self.loss_parts = (*losses.PARTS, "edit")
        self.unweighted_parts = tuple(name for name, weight in losses.weights(config.model.loss).items() if not weight)

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: network.SaliencyNetwork(self.config.model)

    def start(self, shapes: Params) -> Start | None:
        start = self.config.start
        if start.model:
            return start_lib.from_model(self.config, shapes)
        if not start.vision:
            return None
        params, record = load_vision_part(self.config.model, start.vision, start.vision_revision or None)
        lines = functional.parameter_differences(params, {name: shapes[name] for name in params})
        if lines:
            raise PretrainedError("start.vision does not fit the network:\n  " + "\n  ".join(lines))
        return Start(params, {"vision": record} | start_lib.shares(shapes, params))

    def train_loader(self) -> Loader:
        gaze_batches.check_densities(self.config.data.paths)
        source = loader_lib.training_source(self.config)
        cached = self.config.train.cache_tower
        loader = loader_lib.train_loader(
            self.config, source, jax.process_index(), jax.process_count(), pixels=not cached
        )
        if not cached:
            return loader
        self.cache = cache_lib.SaliencyCache(self.config, source, loader.get_state()["fingerprint"])
        return CachedLoader(loader, self.cache)

    def before_steps(self, graphdef: nnx.GraphDef, params: Params, say: Callable[[str], None]) -> None:
        if self.cache is not None:
            self.cache.fill(graphdef, params, say)

    def loss(
        self,
        model: nnx.Module,
        batch: GazeBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
    ) -> Loss:
        log_density = model(batch.image, batch.frame)
        with jax.named_scope("loss"):
            total, parts = losses.total(self.config.model.loss, log_density, batch, normalizers)
        if self.edits:
            parts = parts | {"edit": self._edit(model, batch, log_density, key, normalizers)}
            total = total + self.config.model.loss.edit_weight * parts["edit"]
        return Loss(total, parts)

    def _edit(
        self, model: nnx.Module, batch: GazeBatch, log_density: jax.Array, key: jax.Array, normalizers: jax.Array
    ) -> jax.Array:
        """The loss of edits of known direction, over all examples: those without an edit count as met."""
        config = self.config.model
        edited = pixel_edits.edited(key, batch.image, batch.density, config.edit_probability, config.edit_strength)
        after = model(edited.image, batch.frame)
        values = pixel_edits.rise(log_density, after, edited.mask, config.loss.edit_margin)
        return jnp.where(edited.counts & batch.example_mask, values, 0.0).sum() / normalizers

    def eval_loader(self, mesh: jax.sharding.Mesh, split: str | None = None) -> loader_lib.GazeEvalLoader:
        """As `gaze_batches.eval_loader`."""
        return gaze_batches.eval_loader(self.config, mesh, split)

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> MeanEvaluator:
        return evaluate.evaluator(self.config, self.eval_loader(mesh), graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        return evaluate.metric_names()

    def labels_at_start(self, start: Start) -> Mapping[str, int | None]:
        return {}

    def step_factor(self, path: str) -> float:
        """The tower learns slower than the decoder, which starts at random."""
        return self.config.model.tower_rate if path.split("/")[0] in ("tower", "vit") else 1.0
