"""What a family of models gives the training loop. The loop, the step and the checkpoints know nothing else of it.

A family subclasses `Task`, and `rahf.registry` says which subclass trains which config. `Task.loss` adds sums that are
already divided by counts of the whole batch (`Task.normalizers`), so losses and gradients add over the parts of an
accumulated batch and over processes.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from rahf.config import Config
from rahf.core import licenses
from rahf.core.tree import Params

Batch = TypeVar("Batch")


class Loss(NamedTuple):
    """Loss of a batch or of a part of it: float32 scalars that add over parts."""

    total: jax.Array  # what is differentiated
    parts: dict[str, jax.Array]  # for the log, by the names of `Task.loss_parts`


class Loader(Protocol):
    """An endless iterator of training batches whose position can be saved (`data_pipelines.loading.loader`).

    It may have `damaged`, the number of records met so far whose picture is damaged and used all the same; the loop
    writes it into the run's metrics.
    """

    report: Callable[[str], None]  # called with what the user should know, one line at a time

    def __enter__(self) -> Loader: ...
    def __exit__(self, *exception: Any) -> None: ...
    def __next__(self) -> Any: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Evaluation(Protocol):
    """Result of an evaluation; families add what their reports need."""

    metrics: dict[str, float]
    count: int  # examples, over all processes


class Evaluator(Protocol):
    """Evaluates parameters on the evaluation split during a run; compiled once."""

    def evaluate(self, params: Params, *, thorough: bool) -> Evaluation:
        """Metrics by name.

        Args:
          params: all parameters of the network.
          thorough: measure also what takes long: at the last step, or where `train.best_metric` needs it.

        Raises:
          NotFinite: the network computes NaN or infinity for an example; names it.
        """
        ...

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The main numbers in one line for the log."""
        ...


class Start(NamedTuple):
    """Parameters that a fresh run begins with (any part of the tree), and the record of where they came from."""

    params: Params
    record: dict[str, Any]

    def note(self, workdir: pathlib.Path, say: Callable[[str], None] | None) -> None:
        """Writes the record to `start.json` and says it; `say` is None in all processes but the first."""
        if say is not None:
            licenses.write_start_record(workdir, self.record)
            for line in licenses.start_table(self.record):
                say(line)


@dataclasses.dataclass(frozen=True)
class SavedFile:
    """A file that a run keeps beside `config.json` because its parameters mean nothing without it."""

    content: bytes
    source: str  # what it is and where it came from, for messages


class Task(abc.ABC, Generic[Batch]):
    """One run of a family: its config, network, data, loss and evaluation.

    Attributes:
      config: of the run, complete; saved as `config.json`.
      loss_parts: names of `Loss.parts`, in the order of the log.
      unweighted_parts: those whose weight is 0: nothing is learned from their labels.
      convolutional: whether the time of a step goes into dense convolutions; a CPU's compiler is told so.
    """

    config: Config
    loss_parts: tuple[str, ...] = ()
    unweighted_parts: tuple[str, ...] = ()
    convolutional: bool = False

    def __init__(self, config: Config):
        """Subclasses read what the network depends on (a vocabulary) and complete `config` here; nothing is written.

        Raises:
          ConfigError, TrainError: the config contradicts itself, or names what is not there.
        """
        self.config = config

    @abc.abstractmethod
    def build(self) -> Callable[[], nnx.Module]:
        """A function that builds the network; called under `jax.eval_shape` and by `functional.init`."""

    @abc.abstractmethod
    def train_loader(self) -> Loader:
        """The training batches of this process."""

    @abc.abstractmethod
    def loss(
        self,
        model: nnx.Module,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
        step: jax.Array,
        normalizers: Any,
    ) -> Loss:
        """The loss of a batch or of a part of it; pure.

        Args:
          model: the network with the parameters to differentiate.
          batch: as the loader gives it, on the devices.
          key: for draws that every run makes (noise, tasks); fold_in(seed, step) and the number of the part.
          dropout_key: likewise, for dropout; None if `uses_dropout` is False.
          step: int32, steps done.
          normalizers: of the whole batch, from `normalizers`.

        Where `uses_base` is True, it is also given `base`, the network with the frozen parameters and no adapters.
        """

    @abc.abstractmethod
    def evaluator(self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh) -> Evaluator:
        """The evaluator of the evaluation split."""

    @abc.abstractmethod
    def metric_names(self) -> Sequence[str]:
        """Every metric that the evaluator can give for this config, for `train.best_metric`."""

    def normalizers(self, batch: Batch) -> Any:
        """What the losses of all parts of the batch are divided by; a pytree, None if there is nothing.

        By default the number of examples of a batch that has an `example_mask`, float32, at least 1.
        """
        mask = getattr(batch, "example_mask", None)
        return None if mask is None else jnp.maximum(mask.sum(), 1).astype(jnp.float32)

    def label_counts(self, normalizers: Any) -> dict[str, jax.Array]:
        """How many labels of each kind the whole batch has, by name; int32 or float32 scalars.

        Names are ``part`` or ``part/label``, with the part of the loss that compares them. A part without any label in
        a batch is left out of the log, and an output without any in a run counts as not learnt. Empty: nothing counts.
        """
        return {}

    def labels_at_start(self, start: Start) -> Mapping[str, int | None]:
        """What the parameters of a start have learned from already, by the names of `label_counts`.

        None: an unknown number. Names that are missing begin at 0.
        """
        return {}

    def prepare_batch(self, batch: Batch) -> Batch:
        """The batch as normalizers and loss see it; called once per step, traced."""
        return batch

    def rollout(self, model: nnx.Module, batch: Batch) -> Batch:
        """The batch with what the network makes of it before the first update, if `updates_per_batch` is above 1."""
        return batch

    def start(self, shapes: Params) -> Start | None:
        """What a fresh run begins with; None: random parameters.

        Args:
          shapes: jax.ShapeDtypeStruct of every parameter, with shardings.
        """
        return None

    def before_steps(self, graphdef: nnx.GraphDef, params: Params, say: Callable[[str], None]) -> None:
        """Called when a run begins or goes on, with its parameters, before the first batch is loaded."""
        return None

    def saved_files(self) -> Mapping[str, SavedFile]:
        """Files for the run directory, by name. A run goes on only with the same contents."""
        return {}

    def needs_thorough(self, metric: str) -> bool:
        """Whether this metric takes a thorough evaluation."""
        return False

    def stop_reason(self, evaluations: Sequence[Mapping[str, float]]) -> str | None:
        """Why the run should end before its last step; None: it should not.

        Args:
          evaluations: metrics of all evaluations so far, in order; NaN where one could not be measured.
        """
        return None

    def step_factor(self, path: str) -> float:
        """A factor on Adam's step for the parameter with this path."""
        return 1.0

    @property
    def updates_per_batch(self) -> int:
        """How many updates of the parameters one step takes from its batch, one after the other."""
        return 1

    @property
    def uses_base(self) -> bool:
        """Whether the loss compares the network with the one without adapters."""
        return False

    @property
    def uses_dropout(self) -> bool:
        """Whether the loss draws dropout masks."""
        return False
