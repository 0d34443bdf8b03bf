"""A model on a split → every metric with its interval, the baseline beside it, and examples to look at."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from rahf.config import Config
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.core.errors import NotFinite
from rahf.critic import families
from rahf.critic.evaluation.constant import Constants
from rahf.critic.evaluation.eval_step import Evaluated, make_eval_step
from rahf.critic.evaluation.kept import KeptExamples
from rahf.critic.evaluation.report.page import ReportExample
from rahf.critic.losses import OF_LABELS
from rahf.metrics import RegionMetrics, bootstrap_intervals
from rahf.metrics.evaluation import EvaluationMetrics, MeanBaseline, TrainingMean
from rahf.nn import functional
from rahf.text import Tokenizer
from rahf.training import multihost, sharding

_LOSSES = tuple(f"loss/{name}" for name in (*OF_LABELS, "total"))


def metric_names() -> list[str]:
    """Names of every metric that an evaluation may give."""
    return [*EvaluationMetrics.names(), *RegionMetrics().compute(), *_LOSSES]


AnyMetrics = TypeVar("AnyMetrics", EvaluationMetrics, RegionMetrics)


class StoredLabels(Protocol):
    """Labels as stored, by position in the split (`data_pipelines.loading.labels.Labels`)."""

    def __getitem__(self, index: int) -> Any: ...


@dataclasses.dataclass
class CriticEvaluation:
    """Result of an evaluation of a split. Metric names as in `rahf.metrics`, and ``loss/<part>``."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    baselines: dict[str, float]
    examples: list[ReportExample]  # those that a gallery may show
    count: int  # examples evaluated
    seconds: float
    #: float32 [N,4], predicted for the examples of this process; NaN: not predicted
    scores: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, len(SCORES)), np.float32))
    constant: tuple[str, ...] = ()  # outputs that are the same for all examples, in words


class CriticEvaluator:
    """Evaluates parameters on batches; compiled once, then usable during a whole training run."""

    def __init__(
        self,
        graphdef: Any,
        config: Config,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        outputs: families.Outputs | None = None,
    ):
        """`outputs`: what the network predicts; the rest is not measured. None: all that its family predicts."""
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh
        self.outputs = families.outputs(config.model) if outputs is None else outputs
        self._steps = {
            generate: make_eval_step(graphdef, config, tokenizer.suffix_ids[0], generate) for generate in (True, False)
        }

    def run(
        self,
        params: functional.Params,
        batches: Iterable[Batch],
        labels: StoredLabels,
        *,
        generate: bool = True,
        intervals: bool = True,
        mean: TrainingMean | None = None,
        gallery: int = 0,
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda x: x,
    ) -> CriticEvaluation:
        """Runs over all batches.

        Args:
          params: as trained.
          batches: of one split, in order, equally large.
          labels: the same split's labels at native resolution. Heatmaps are compared there: a prediction is
            resized to the label, never the label to the prediction.
          generate: decode the target sequence too (``keywords/…``); constrained scoring always runs.
          intervals: compute bootstrap 95% intervals.
          mean: of the training split; gives the always-predict-the-mean baseline.
          gallery: keep examples for a report that shows this many; pictures of a whole split would fill the memory.
          progress: wraps the batches, to show how far it is.

        Raises:
          NotFinite: an output of the network is not finite; metrics would pass over it.
        """
        started = time.perf_counter()
        metrics, regions = EvaluationMetrics(), RegionMetrics()
        baseline = None if mean is None else MeanBaseline(mean.heatmaps(), mean.scores())
        losses: list[tuple[np.ndarray, np.ndarray]] = []
        kept, scores, constants = KeptExamples(gallery), [], Constants(self.outputs)
        for batch in progress(batches):
            batch = self.outputs.narrow(batch)
            evaluated = multihost.local_rows(
                self._steps[generate](params, sharding.to_devices(batch, self.mesh)), self.mesh
            )
            rows = np.flatnonzero(batch.example_mask)
            _check_finite(self.outputs, batch, evaluated, rows)
            evaluated = evaluated._replace(prediction=self.outputs.hide(evaluated.prediction))
            scores.append(np.asarray(evaluated.prediction.scores, np.float32)[rows])
            constants.update(evaluated.prediction, rows)
            truths = [labels[i] for i in batch.index[rows]]
            words = _words(self.tokenizer, self.outputs, batch, evaluated, rows, truths)
            _update(metrics, regions, baseline, batch, evaluated, rows, truths, words)
            losses.append(_loss_rows(self.config, batch, evaluated, rows))
            for row, truth, decoded, loss in zip(rows, truths, words, losses[-1][0][:, -1]):
                kept.offer(loss, functools.partial(_example, evaluated, row, truth, decoded, loss))
        metrics, regions = gather(metrics), gather(regions)
        values = metrics.compute() | regions.compute() | _mean_losses(losses)
        bounds = metrics.intervals() | bootstrap_intervals(regions) if intervals else {}
        return CriticEvaluation(
            self._measured(values),
            self._measured(bounds),
            self._measured(gather(baseline.metrics).compute()) if baseline else {},
            kept.examples,
            int(multihost.total(sum(len(v) for v, _ in losses))),
            time.perf_counter() - started,
            np.concatenate(scores),
            constants.found() if jax.process_count() == 1 else (),
        )

    def _measured(self, values: dict[str, Any]) -> dict[str, Any]:
        """Without the metrics of what the network does not predict."""
        return {name: value for name, value in values.items() if self.outputs.covers(name)}


class _Words(NamedTuple):
    """Word labels of one example by both decoders, for the words that fit into a batch; None without a decoder."""

    generated: np.ndarray | None  # int [K]
    constrained: np.ndarray | None  # int [K]
    probability: np.ndarray | None  # float [K]


def _check_finite(outputs: families.Outputs, batch: Batch, evaluated: Evaluated, rows: np.ndarray) -> None:
    for name, values in {**outputs.predicted(evaluated.prediction), **evaluated.parts._asdict()}.items():
        finite = np.isfinite(values[rows]).all(axis=tuple(range(1, values.ndim)))  # of the last batch: perhaps no rows
        if not finite.all():
            index = int(batch.index[rows[~finite][0]])
            what = f"the {name} loss" if name in evaluated.parts._fields else f"one of the {name.replace('_', ' ')}"
            raise NotFinite(f"{what} of example {index} of the evaluated split is not finite")


def _words(
    tokenizer: Tokenizer,
    outputs: families.Outputs,
    batch: Batch,
    evaluated: Evaluated,
    rows: np.ndarray,
    truths: Sequence[Any],
) -> list[_Words]:
    if not outputs.keywords:
        return [_Words(None, None, None)] * len(rows)
    slots = batch.word_labels.shape[1]
    result = []
    for row, truth in zip(rows, truths):
        probability = evaluated.prediction.word_probabilities[row]
        generated = None
        if evaluated.generated is not None:
            aligned = tokenizer.target_labels(truth.record.words, evaluated.generated[row])[:slots]
            generated = np.ones(slots, np.int32)
            generated[: len(aligned)] = aligned
        result.append(_Words(generated, (probability <= 0.5).astype(np.int32), probability))
    return result


def _update(metrics, regions, baseline, batch, evaluated, rows, truths, words) -> None:
    """Adds a batch, one native map size at a time (almost always there is only one)."""
    sizes = [t.heatmaps.shape[:2] for t in truths]
    for size in sorted(set(sizes)):
        chosen = [i for i, s in enumerate(sizes) if s == size]
        at = rows[chosen]
        part = Batch(*(None if field is None else np.asarray(field)[at] for field in batch))
        true_maps = np.stack([truths[i].heatmaps for i in chosen])
        metrics.update(
            part,
            evaluated.prediction.heatmaps[at],
            evaluated.prediction.scores[at],
            *(None if kind[0] is None else np.stack(kind) for kind in zip(*(words[i] for i in chosen))),
            true_maps,
        )
        annotators = [getattr(truths[i], "annotators", (None, None)) for i in chosen]
        regions.update(evaluated.prediction.heatmaps[at], true_maps, part.heatmap_mask, part.index, annotators)
        if baseline is not None:
            baseline.update(part, true_maps)


def _loss_rows(config: Config, batch: Batch, evaluated: Evaluated, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per example: loss parts and weighted total, and which of the parts have a label."""
    parts = np.stack([np.asarray(getattr(evaluated.parts, name))[rows] for name in OF_LABELS], 1)
    weights = np.array([config.loss.heatmap_weight, config.loss.score_weight, config.loss.keyword_weight])
    labelled = np.stack([batch.heatmap_mask.any(1), batch.score_mask.any(1), batch.target_mask.any(1)], 1)[rows]
    total = (parts * weights).sum(1, keepdims=True)
    return np.concatenate([parts, total], 1), np.concatenate([labelled, labelled.any(1, keepdims=True)], 1)


def _mean_losses(losses: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Mean per example of each part, over the examples of all processes that have its labels; NaN without any."""
    values, labelled = (np.concatenate(part) for part in zip(*losses))
    sums, counts = np.where(labelled, values, 0.0).sum(0), labelled.sum(0).astype(np.float64)
    sums, counts = multihost.total((sums, counts))
    return {name: float(s / c) if c else float("nan") for name, s, c in zip(_LOSSES, sums, counts)}


def gather(metrics: AnyMetrics) -> AnyMetrics:
    """Joins the examples of all processes; with one process, the same object."""
    if jax.process_count() == 1:
        return metrics
    rows = multihost.largest(max(len(array) for array in metrics.to_arrays().values()))
    joined = type(metrics)()
    for arrays in multihost.all_processes(metrics.to_arrays(rows=rows)):
        joined.add_arrays(arrays)
    return joined


def _example(evaluated: Evaluated, row: int, truth: Any, words: _Words, loss: float) -> ReportExample:
    record = truth.record
    count = len(record.words)
    labels = words.constrained if words.generated is None else words.generated
    judged = labels is not None
    return ReportExample(
        uid=record.uid,
        image=truth.image(),
        prompt=record.prompt,
        words=record.words,
        loss=float(loss),
        heatmaps=evaluated.prediction.heatmaps[row].astype(np.float16),
        scores=evaluated.prediction.scores[row],
        labels=_padded(labels, count, 1) if judged else None,
        probability=_padded(words.probability, count, 0.0) if judged else None,
        true_heatmaps=truth.heatmaps,
        true_heatmap_mask=tuple(bool(m) for m in truth.heatmap_mask),
        true_scores=np.asarray(record.scores, np.float32),
        true_labels=record.word_labels,
    )


def _padded(values: np.ndarray, count: int, filling: float) -> list:
    """A list as long as the prompt has words; words beyond a batch's places were not decoded."""
    return [values[i].item() if i < len(values) else filling for i in range(count)]


def summary_line(metrics: dict[str, float]) -> str:
    """The main numbers in one line for the log of a training run."""
    names = {
        "plcc": "scores/mean/plcc",
        **{f"{name[:9]} cc": f"heatmaps/{name}/cc" for name in HEATMAPS},
        "auc": "heatmaps/implausibility/auc_judd",
        "words f1": "keywords/f1" if "keywords/f1" in metrics else "keywords_constrained/f1",
        "loss": "loss/total",
    }
    return "  ".join(f"{label} {metrics[n]:.3f}" for label, n in names.items() if n in metrics)
