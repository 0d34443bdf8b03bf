"""The critic families as a `Task`: the paper's network, in both variants, and the baselines of its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from data_pipelines import store
from data_pipelines.loading.examples import Joined
from data_pipelines.loading.labels import Labels
from data_pipelines.loading.loader import train_loader
from rahf.config import ClipBaselineConfig, Config, CriticConfig, FamilyConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.core.tree import Params
from rahf.critic import families, label_prompts, losses, pairs, tower_cache
from rahf.critic import start as start_lib
from rahf.critic.evaluation import several_sets
from rahf.critic.evaluation.evaluator import CriticEvaluation, CriticEvaluator, metric_names, summary_line
from rahf.critic.networks import build
from rahf.critic.networks.augmented_prompt import AugmentedRahf
from rahf.text import Tokenizer
from rahf.training.record_task import RecordTask
from rahf.training.task import Loader, Loss, Start


class CriticTask(RecordTask):
    """Trains a critic on feedback: heatmaps, scores and words, any of which may be missing in any example."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None):
        """A task with a given vocabulary; `from_config` reads the one that the config names.

        Args:
          tokenizer: None: losses can be computed, but no token of a target weighs more than another, and nothing
            can be evaluated or saved. For measurements of the step.

        Raises:
          ConfigError: losses and heads that contradict each other.
        """
        super().__init__(config if tokenizer is None else label_prompts.resolve(config, tokenizer), tokenizer)
        losses.check(self.config)
        pairs.check(self.config)
        self.cache: tower_cache.TowerCache | None = None
        if config.train.cache_tower:
            tower_cache.check(config)
        self.suffix_id = None if tokenizer is None else tokenizer.suffix_ids[0]
        self.outputs = families.outputs(config.model)
        self.tags = config.model.t5.vocab_size if getattr(config.model, "tag_head", False) else None
        #: Whether the words of a data set have shares of people, which the loss then learns.
        self.soft = tokenizer is not None and has_soft_words(config)
        self.loss_parts = losses.OF_LABELS if self.tags is None else losses.Parts._fields
        self.label_parts = self.loss_parts
        if self.config.loss.pair_weight:
            self.loss_parts = (*self.loss_parts, "pair")
        self.unweighted_parts = tuple(n for n in losses.OF_LABELS if not getattr(self.config.loss, f"{n}_weight"))

    @classmethod
    def from_config(cls, config: Config) -> CriticTask:
        """The task of a run, with the vocabulary that `config.data.tokenizer` names.

        Raises:
          TrainError, PretrainedError, DatasetError: no such vocabulary, or one that does not fit.
        """
        return cls(config, start_lib.tokenizer(config))

    def build(self) -> Callable[[], nnx.Module]:
        return build.build(self.config.model)

    def start(self, shapes: Params) -> Start:
        return start_lib.load(self.config, shapes)

    def train_loader(self) -> Loader:
        if not self.config.train.cache_tower:
            return super().train_loader()
        data, model = self.config.data, self.config.model
        # As one set, so that `Batch.index` tells which example of all of them it is.
        source = Joined([store.open_split(path, data.train_split) for path in data.paths])
        loader = train_loader(
            data, model.image_size, self.tokenizer, self.config.train.seed, source=source, pixels=False
        )
        self.cache = tower_cache.TowerCache(self.config, source, loader.get_state()["fingerprint"])
        return tower_cache.CachedLoader(loader, self.cache)

    def before_steps(self, graphdef: nnx.GraphDef, params: Params, say: Callable[[str], None]) -> None:
        if self.cache is not None:
            self.cache.fill(graphdef, params, say)

    def prepare_batch(self, batch: Batch) -> Batch:
        return self.outputs.narrow(batch)

    def normalizers(self, batch: Batch) -> losses.Counts:
        return losses.counts(self.config.loss, batch, self.suffix_id, self.tags, self.soft)

    def label_counts(self, normalizers: losses.Counts) -> dict[str, jax.Array]:
        if normalizers is None:
            return {}
        counts = {f"heatmap/{name}": normalizers.heatmaps[i] for i, name in enumerate(HEATMAPS)}
        counts |= {f"score/{name}": normalizers.scores[i] for i, name in enumerate(SCORES)}
        return counts | {"keyword": normalizers.tokens}

    def labels_at_start(self, start: Start) -> Mapping[str, int | None]:
        model, counts = start.record.get("model", {}), {}
        for name in self.outputs.label_names:
            head = part_of(self.config.model, name)
            if head in model.get("parts", ()):  # None: of a version that did not count
                counts[name] = model["labels"].get(name)
            else:  # a cosine of published CLIP means something without any label of ours
                counts[name] = None if head == "vit" and start.params else 0
        return counts

    def loss(
        self,
        model: nnx.Module,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: losses.Counts,
    ) -> Loss:
        if isinstance(model, AugmentedRahf):
            sampled = model.sample(batch, key, dropout_key)
            total, parts = losses.sampled(
                self.config.loss, sampled, batch, step, self.suffix_id, normalizers, self.soft
            )
        else:
            logits = model(batch, dropout_key)
            with jax.named_scope("loss"):
                total, parts = losses.total(
                    self.config.loss, logits, batch, step, self.suffix_id, normalizers, self.soft
                )
        values = {name: getattr(parts, name) for name in self.label_parts}
        if self.config.loss.pair_weight:
            with jax.named_scope("pairs"):
                count = normalizers.heatmaps[HEATMAPS.index("implausibility")]
                margin = self.config.loss.pair_margin
                values["pair"] = pairs.loss(model, batch, logits, key, dropout_key, margin, count)
            total = total + self.config.loss.pair_weight * values["pair"]
        return Loss(total, values)

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> RunEvaluator:
        return RunEvaluator(self, graphdef, mesh)

    def metric_names(self) -> Sequence[str]:
        names = [name for name in metric_names() if self.outputs.covers(name)]
        return [*names, *several_sets.names(self.sets_to_evaluate(), names)]

    def sets_to_evaluate(self) -> dict[str, str]:
        """Folders of the data sets that have the evaluation split, by name."""
        return several_sets.evaluated(self.config.data.paths, self.config.data.eval_split)

    def needs_thorough(self, metric: str) -> bool:
        return several_sets.plain(metric).startswith("keywords/")  # of generated targets

    def step_factor(self, path: str) -> float:
        """T5 folds the attention scale d^-1/2 into its query kernels; Adam's steps do not shrink with the parameter.

        Unfolded, the steps would be these; without the factor the logits of a deep stack saturate early. A pretrained
        tower may learn slower than the rest (`model.tower_rate`).
        """
        model = self.config.model
        if not isinstance(model, CriticConfig):
            return super().step_factor(path)
        if tower_cache.of_tower(path):
            return model.tower_rate
        return model.t5.head_width**-0.5 if is_t5_query(path) else 1.0

    @property
    def uses_dropout(self) -> bool:
        parts = (getattr(self.config.model, name, None) for name in ("vit", "t5", "heatmap_head", "score_head"))
        return any(part is not None and part.dropout > 0 for part in parts)


def part_of(config: FamilyConfig, label_name: str) -> str:
    """The part of the parameters that gives the output of a label (`rahf.critic.families.Outputs.label_names`)."""
    kind, _, name = label_name.partition("/")
    if kind == "keyword":
        return "decoder"
    if isinstance(config, ClipBaselineConfig):  # one head gives all scores, or the towers do; its heatmap is a gradient
        return "score_out" if kind == "score" and config.clip.scores == "trained" else "vit"
    shared = getattr(config, "variant", "") == "augmented-prompt"
    return f"{kind}_head" if shared else f"{kind}_{name}"


def has_soft_words(config: Config) -> bool:
    """Whether a set of a run stores shares of people for its words, and the run is to learn them."""
    return config.data.soft_words and any(store.has_field(path, "word_shares") for path in config.data.paths)


def is_t5_query(path: str) -> bool:
    """Whether a parameter is a query kernel of a T5 stack."""
    return path.split("/")[0] in ("encoder", "decoder") and path.endswith("query/kernel")


class RunEvaluator:
    """The evaluation split of a run, and the evaluator that measures parameters on it."""

    def __init__(self, task: CriticTask, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        config = task.config
        self._evaluator = CriticEvaluator(graphdef, config, task.tokenizer, mesh)
        self._sets = {
            name: (task.eval_loader(mesh, path), Labels(store.open_split(path, config.data.eval_split)))
            for name, path in task.sets_to_evaluate().items()
        }

    def evaluate(self, params: Any, *, thorough: bool) -> CriticEvaluation:
        """Metrics without intervals; generated keywords only where `thorough`. Raises NotFinite."""
        evaluations = {
            name: self._evaluator.run(params, *split, generate=thorough, intervals=False)
            for name, split in self._sets.items()
        }
        return several_sets.joined(evaluations)

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The main numbers in one line."""
        return summary_line(dict(metrics))
