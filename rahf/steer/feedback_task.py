"""Fine-tuning of Stable Diffusion by critics' rewards as a `Task`: `rahf train configs/diffusion/draft.py`, `ddpo.py`.

A critic that was held out judges beside the guiding ones at every evaluation. The run ends when its reward falls while
theirs rises.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rahf.config import Config, FeedbackConfig, StableDiffusionConfig, read_saved
from rahf.core.batch import HEATMAPS
from rahf.core.errors import NotFinite, TrainError
from rahf.core.files import read_regular
from rahf.core.tree import Params
from rahf.critic import loading
from rahf.diffusion import pipeline_inputs
from rahf.diffusion import saved as saved_lib
from rahf.diffusion.feedback import ddpo, draft, held_out
from rahf.diffusion.feedback import rewards as rewards_lib
from rahf.diffusion.feedback.chain import Base, Chain
from rahf.diffusion.feedback.rewards import Reward
from rahf.diffusion.networks.stable_diffusion import (
    StableDiffusion,
    is_inpainting,
    latent_channels,
    vae_scale_factor,
)
from rahf.nn import functional
from rahf.steer import feedback_prompts
from rahf.steer.feedback_prompts import FeedbackBatch
from rahf.text import ClipTokenizer
from rahf.training import multihost, sharding
from rahf.training import start as start_lib
from rahf.training.run_lock import begun
from rahf.training.task import Loader, Loss, SavedFile, Start, Task

GUIDING, HELD_OUT = "reward/guiding", "reward/held_out"


class Rollout(NamedTuple):
    """Pictures that a policy has drawn, and what they are worth.

    Attributes:
      trajectory: their way, `rahf.diffusion.feedback.ddpo.Trajectory`.
      advantages: float32 [B] of pictures, or [B,h,w] of places.
      reward: float32 [B].
    """

    trajectory: ddpo.Trajectory
    advantages: Any
    reward: Any


class FeedbackTask(Task[FeedbackBatch]):
    """Trains adapters of a generator with the gradient of a reward (draft), or by policy gradient (ddpo)."""

    loss_parts = ("reward",)  # the mean reward of the drawn pictures, no part of the loss

    def __init__(self, config: Config, tokenizer: ClipTokenizer, critics: Mapping[str, Any]):
        """Args: the run's config; the generator's vocabulary; the critic of each name in `feedback`.

        Raises:
          TrainError, ConfigError: fields that contradict each other; names them.
        """
        super().__init__(config)
        self.feedback = _checked(config)
        self.tokenizer, self.critics = tokenizer, critics
        self._tokenizers = [tokenizer.with_special(number) for number in config.model.pad_token_ids]
        self._judges = _judges(self.feedback)
        self._guiding = len(self.feedback.critics)
        self._names = [f"{judge.model} {judge.score}" for judge in self._judges]
        if len(set(self._names)) < len(self._names):
            raise TrainError(f"feedback: rewards and the held-out one must differ, found {', '.join(self._names)}")
        self._functions = [critics[judge.model].reward(judge.score) for judge in self._judges]
        for judge, function, name in zip(self._judges, self._functions, self._names):
            Reward((), function, name, judge.weight)  # refuses a weight that is not above 0
        side = config.model.image_size
        cells = side // vae_scale_factor(config.model)
        self.size, self._shape = (side, side), (cells, cells, latent_channels(config.model))
        if self.uses_base:
            self.loss_parts = (*self.loss_parts, "pull")
        self.check_method()

    @property
    def uses_base(self) -> bool:
        return bool(self.feedback.pull_weight)

    @property
    def updates_per_batch(self) -> int:
        return self.feedback.ddpo.updates if self.feedback.method == "ddpo" else 1

    @classmethod
    def from_config(cls, config: Config) -> FeedbackTask:
        """The task of a run. A model that is not configured is that of `start.model`, or the run's own.

        Raises:
          TrainError, CheckpointError, ConfigError: no model, no critic, or fields that contradict each other.
        """
        start_lib.check(config)
        if not config.feedback.method:
            _checked(config)
        fresh = not begun(pathlib.Path(config.workdir))
        if fresh and not config.start.model:
            raise TrainError(
                f"model.family {config.model.family!r}: rahf train fine-tunes a model that exists; give start.model, a "
                "directory of `rahf import stable-diffusion`"
            )
        folder = saved_lib.find(config.start.model).run if fresh else pathlib.Path(config.workdir)
        if config.model == StableDiffusionConfig():
            config = dataclasses.replace(config, model=read_saved(folder / "config.json").model)
        if not isinstance(config.model, StableDiffusionConfig):
            raise TrainError(
                f"start.model {folder}: a model of the family {config.model.family!r}, no Stable Diffusion"
            )
        feedback = _checked(config)
        tokenizer = ClipTokenizer(read_regular(folder / "tokenizer.model"), str(folder / "tokenizer.model"))
        return cls(config, tokenizer, {name: loading.load(name) for name in {j.model for j in _judges(feedback)}})

    def build(self) -> Callable[[], nnx.Module]:
        return lambda: StableDiffusion(self.config.model)

    def start(self, shapes: Params) -> Start | None:
        return start_lib.from_model(self.config, shapes)

    def saved_files(self) -> Mapping[str, SavedFile]:
        return {"tokenizer.model": SavedFile(self.tokenizer.model, f"the vocabulary {self.tokenizer.source}")}

    def chain(self, graphdef: nnx.GraphDef) -> Chain:
        """The steps of the sampler."""
        feedback = self.feedback
        scheduler, count = self.config.model.scheduler, feedback.num_inference_steps
        return Chain(graphdef, scheduler, count, feedback.guidance_scale, feedback.eta)

    def check_method(self) -> None:
        """Raises ArgumentError for options that do not fit the sampler."""
        chain = self.chain(functional.abstract(self.build())[0])
        if self.feedback.method == "draft":
            draft.check(self.feedback.draft, chain)
            return
        ddpo.check(self.feedback.ddpo)
        ddpo.check_chain(chain)
        if self.feedback.ddpo.place_share and not self._first_critic.outputs.heatmaps:
            raise TrainError("feedback.ddpo.place_share: the first reward's critic predicts no heatmaps; set it to 0")

    @property
    def _first_critic(self) -> Any:
        """Whose heatmaps say which places are bad."""
        return self.critics[self._judges[0].model]

    def encode(self, prompts: Sequence[str]) -> tuple[Any, Any, Any]:
        """The fields `ids`, `negative_ids` and `tokens` of a batch of prompts."""
        model = self.config.model
        length = model.text_encoder.positions
        encode = lambda texts: pipeline_inputs.tokens(texts, self._tokenizers, length, model.pad_token_ids)  # noqa: E731
        negative = None if model.force_zeros_for_empty_prompt else encode([""] * len(prompts))
        tokens = tuple(tuple(self.critics[judge.model].tokens(list(prompts))) for judge in self._judges)
        return encode(prompts), negative, tokens

    def train_loader(self) -> Loader:
        prompts = feedback_prompts.read(self.feedback.prompts, "feedback.prompts")
        return feedback_prompts.PromptLoader(
            prompts,
            self.encode,
            self.config.data.batch_size,
            self.feedback.pictures_per_prompt,
            self.config.train.seed,
            (jax.process_index(), jax.process_count()),
        )

    def rewards(self, batch: FeedbackBatch) -> list[Reward]:
        """The guiding rewards for the prompts of a batch, and last the held-out one, if there is one."""
        return [
            Reward((*tokens, self.critics[judge.model].params), function, name, judge.weight)
            for judge, function, name, tokens in zip(self._judges, self._functions, self._names, batch.tokens)
        ]

    def _encoded(self, model: nnx.Module, batch: FeedbackBatch) -> tuple[Chain, Params, Any]:
        """The sampler, all parameters, and the conditions of a batch."""
        graphdef, params = functional.split(model)
        return self.chain(graphdef), params, model.conditions(batch.ids, batch.negative_ids, self.size)

    def rollout(self, model: nnx.Module, batch: FeedbackBatch) -> FeedbackBatch:
        return batch._replace(rollout=self._drawn(*self._encoded(model, batch), batch))

    def _drawn(self, chain: Chain, params: Params, conditions: Any, batch: FeedbackBatch) -> Rollout:
        """Pictures of the policy as it is, without a gradient."""
        options, keys = self.feedback.ddpo, jax.vmap(jax.random.key)(batch.seeds)
        trajectory = ddpo.sample(chain, params, conditions, keys, self._shape)
        images = jax.lax.stop_gradient(chain.decode(params, trajectory.latents[-1]))
        reward, _ = rewards_lib.total(self.rewards(batch)[: self._guiding], images)
        advantages = ddpo.advantages(reward, batch.prompt, options)
        if options.place_share:
            critic = self._first_critic
            predicted = np.asarray([HEATMAPS.index(name) for name in critic.outputs.heatmaps])
            heatmaps = critic.heatmaps(images, *batch.tokens[0], critic.params)[..., predicted].sum(-1)
            advantages = ddpo.place_advantages(advantages, heatmaps, self._shape[:2], options.place_share)
        return Rollout(trajectory, advantages, reward)

    def loss(
        self,
        model: nnx.Module,
        batch: FeedbackBatch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: jax.Array,
        base: nnx.Module | None = None,
    ) -> Loss:
        chain, params, conditions = self._encoded(model, batch)
        pull = {} if base is None else {"base": Base(*self._encoded(base, batch)[1:])}
        pull |= {"pull_weight": self.feedback.pull_weight}
        share = len(batch.seeds) / normalizers
        if self.feedback.method == "draft":
            rewards, keys = self.rewards(batch)[: self._guiding], jax.vmap(jax.random.key)(batch.seeds)
            options = self.feedback.draft
            value, judged = draft.loss(chain, params, conditions, keys, self._shape, rewards, options, key, **pull)
            parts = {"reward": judged.reward.mean(), "pull": judged.pull.mean()}
        else:
            rollout = batch.rollout
            if rollout is None:  # the only update: the policy is the one that draws
                rollout = self._drawn(chain, params, conditions, batch)
                rollout = rollout._replace(trajectory=rollout.trajectory._replace(log_probs=None))
            options = self.feedback.ddpo
            value, measured = ddpo.loss(
                chain, params, conditions, rollout.trajectory, rollout.advantages, options, **pull
            )
            parts = {"reward": rollout.reward.mean(), "pull": measured.pull}
        return Loss(share * value, {name: share * parts[name] for name in self.loss_parts})

    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> RewardEvaluator:
        return RewardEvaluator(self, graphdef, mesh)

    def judged(self, graphdef: nnx.GraphDef, params: Params, batch: FeedbackBatch) -> jax.Array:
        """The guiding reward of a picture of each row, then every reward by itself; float32 [B,1+n]."""
        model = functional.merge(graphdef, params)
        conditions = model.conditions(batch.ids, batch.negative_ids, self.size)
        keys = jax.vmap(jax.random.key)(batch.seeds)
        images = self.chain(graphdef).draw(params, conditions, keys, self._shape)
        rewards = self.rewards(batch)
        guiding, _ = rewards_lib.total(rewards[: self._guiding], images)
        return jnp.stack([guiding, *(reward(images) for reward in rewards)], -1)

    def eval_batches(self, mesh: jax.sharding.Mesh) -> list[FeedbackBatch]:
        """The prompts of evaluation, at most `train.eval_examples`, with seeds that never change."""
        prompts = feedback_prompts.read(self.feedback.eval_prompts, "feedback.eval_prompts")
        size = sharding.rounded_up(self.config.data.eval_batch_size, mesh)
        process = jax.process_index(), jax.process_count()
        return feedback_prompts.eval_batches(prompts[: self.config.train.eval_examples], self.encode, size, process)

    def metric_names(self) -> Sequence[str]:
        names = [GUIDING, *(f"reward/{name}" for name in self._names[: self._guiding])]
        return [*names, HELD_OUT] if self.feedback.held_out else names

    def stop_reason(self, evaluations: Sequence[Mapping[str, float]]) -> str | None:
        """Reward hacking, in one sentence."""
        if not self.feedback.held_out:
            return None
        nan = float("nan")
        curves = [(metrics.get(GUIDING, nan), metrics.get(HELD_OUT, nan)) for metrics in evaluations]
        finite = [pair for pair in curves if np.isfinite(pair).all()]
        options = self.feedback.patience, self.feedback.tolerance
        hacking = held_out.find_hacking([g for g, _ in finite], [h for _, h in finite], *options)
        return None if hacking is None else str(hacking)


class _Judge(NamedTuple):
    """A critic's score as a reward."""

    model: str
    score: str
    weight: float


def _judges(feedback: FeedbackConfig) -> list[_Judge]:
    """The guiding ones, and last the held-out one, if there is one."""
    count = len(feedback.critics)
    scores = feedback.scores * count if len(feedback.scores) == 1 else feedback.scores
    judges = [_Judge(*one) for one in zip(feedback.critics, scores, feedback.weights or (1.0,) * count)]
    return [*judges, _Judge(feedback.held_out, feedback.held_out_score, 1.0)] if feedback.held_out else judges


@dataclasses.dataclass(frozen=True)
class RewardEvaluation:
    """Mean rewards over the prompts of evaluation."""

    metrics: dict[str, float]
    count: int  # prompts, over all processes


class RewardEvaluator:
    """Draws a picture for every prompt of evaluation and judges it."""

    def __init__(self, task: FeedbackTask, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        self._mesh, self._names, self._batches = mesh, task.metric_names(), task.eval_batches(mesh)
        self._step = jax.jit(lambda params, batch: task.judged(graphdef, params, batch))

    def evaluate(self, params: Any, *, thorough: bool = False) -> RewardEvaluation:
        """The mean rewards. Raises NotFinite, naming the prompt and the reward."""
        sums, count = np.zeros(len(self._names)), 0
        for batch in self._batches:
            values = multihost.local_rows(self._step(params, sharding.to_devices(batch, self._mesh)), self._mesh)
            rows = np.flatnonzero(batch.example_mask)
            bad = np.argwhere(~np.isfinite(values[rows]))
            if len(bad):
                row, column = bad[0]
                name = self._names[column]
                raise NotFinite(f"{name} of prompt {int(batch.prompt[rows[row]])} of evaluation is not finite")
            sums, count = sums + values[rows].astype(np.float64).sum(0), count + len(rows)
        sums, count = jax.tree.map(np.asarray, multihost.total((sums, count)))
        return RewardEvaluation(dict(zip(self._names, (sums / max(int(count), 1)).tolist())), int(count))

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Guiding and held-out reward."""
        parts = [("reward", GUIDING), ("held out", HELD_OUT)]
        return ", ".join(f"{label} {metrics[name]:.4f}" for label, name in parts if name in metrics)


def _checked(config: Config) -> FeedbackConfig:
    """What the generator learns from. Raises TrainError for a config without, or with parts that do not fit."""
    feedback, lora = config.feedback, config.optimizer.lora
    if not feedback.method:
        raise TrainError(
            "feedback.method: rahf train fine-tunes Stable Diffusion by what critics say; set it, as "
            "configs/diffusion/draft.py, ddpo.py and chosen.py do"
        )
    count = len(feedback.critics)
    if not count or len(feedback.scores) not in (1, count) or len(feedback.weights) not in (0, count):
        raise TrainError(
            f"feedback: expected critics, a score for all or for each, and no weights or one for each; found {count} "
            f"critics, {len(feedback.scores)} scores, {len(feedback.weights)} weights"
        )
    if not lora.rank and not config.optimizer.trainable:
        raise TrainError(
            "optimizer.lora.rank, optimizer.trainable: give one; otherwise the autoencoder would change, too"
        )
    if is_inpainting(config.model):
        raise TrainError("model: a model of inpainting; give one that draws whole pictures")
    if not 0 <= feedback.pull_weight < float("inf"):
        raise TrainError(f"feedback.pull_weight: expected a number of at least 0, found {feedback.pull_weight}")
    if feedback.pull_weight and (feedback.method == "chosen" or config.optimizer.trainable):
        problem = (
            "is for draft and ddpo" if feedback.method == "chosen" else "compares with the network without adapters"
        )
        raise TrainError(
            f"feedback.pull_weight: {problem}; set it to 0, or give optimizer.lora and no optimizer.trainable"
            if feedback.method != "chosen"
            else f"feedback.pull_weight: {problem}; set it to 0, and optimizer.weight_decay instead"
        )
    if feedback.method == "ddpo" and config.train.accumulate > 1:
        raise TrainError("train.accumulate: ddpo compares the pictures of a whole batch; set it to 1")
    return feedback


__all__ = ["FeedbackTask", "RewardEvaluation", "RewardEvaluator", "Rollout"]
