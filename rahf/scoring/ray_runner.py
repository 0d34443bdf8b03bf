"""Blocks on a Ray cluster: Ray Data distributes them to actors that hold the critic; each actor writes its own parts.

Only descriptions of blocks travel; pictures and scores never pass through the driver. If a worker dies, Ray gives its
block to another worker. A part is renamed when it is complete, so scoring a block twice does no harm.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from rahf.core.errors import RahfError, ScoreError
from rahf.scoring.blocks import Block
from rahf.scoring.job import Job

#: How often Ray gives a block to another worker. The limit ends a job in which one block kills every worker.
RETRIES = 5


def run(
    job: Job,
    blocks: Sequence[Block],
    model: str,
    load: Callable[[str], Any],
    expected: str | None,
    done: Callable[[int, int], None],
    workers: int = 2,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
) -> None:
    """Scores blocks on the actors of a cluster.

    Args:
      job, blocks: what to score.
      model: directory that every node can read, or a file, which is sent to the nodes.
      load: loads the critic from its path.
      expected: id of the model that scored the finished blocks; None: there are none.
      done: called with the number of rows and of refused rows of each finished block.
      workers: number of actors.
      cpus, gpus: of each actor.
      address: of a running cluster ("auto": the one of this machine); None: as RAY_ADDRESS says, else a cluster on
        this machine for the time of the job. If this process has initialised Ray already, that cluster is used.

    Raises:
      ScoreError: Ray is not installed, or `Job.score` raised it on a worker.
    """
    if workers < 1:
        raise ScoreError(f"workers: expected at least 1, found {workers}")
    if not blocks:
        return
    ray, data = _import()
    initialize = not ray.is_initialized()
    if initialize:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    try:
        sent = _file(ray, model)
        rows = data.from_items([{"block": block.to_json()} for block in blocks], override_num_blocks=len(blocks))
        rows.context.enable_progress_bars = False
        rows.context.actor_task_retry_on_errors = [OSError]
        answers = rows.map_batches(
            _Scorer,
            fn_constructor_args=(job, model, sent, load, expected),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(workers, len(blocks)), max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        for answer in answers.iter_rows():
            if answer["error"]:
                raise ScoreError(answer["error"])
            done(int(answer["rows"]), int(answer["refused"]))
    finally:
        if initialize:
            ray.shutdown()


def _import() -> tuple[Any, Any]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ScoreError(f"--runner ray needs Ray ({error}): pip install rahf[ray]") from error
    return ray, ray.data


def _file(ray: Any, model: str) -> list[Any]:
    """A reference to the file of a model for all nodes; in a list, because Ray resolves bare references."""
    if not os.path.isfile(model):
        return []
    with open(model, "rb") as file:
        return [ray.put(file.read())]


class _Scorer:
    """An actor. It loads the critic with its first block, so that it can return the error of loading as a result."""

    def __init__(self, job: Job, model: str, sent: list[Any], load: Callable[[str], Any], expected: str | None):
        self.job, self.model, self.sent, self.load, self.expected = job, model, sent, load, expected

    @functools.cached_property
    def critic(self) -> Any:
        """The critic, loaded once per actor. Raises ScoreError, which names the model."""
        try:
            return self._loaded()
        except Exception as error:  # any error here means: the model is missing or damaged on this worker
            raise ScoreError(f"{self.model}: a worker cannot load it ({type(error).__name__}: {error})") from error

    def _loaded(self) -> Any:
        if not self.sent:
            return self.load(self.model)
        import ray

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, os.path.basename(self.model))
            with open(path, "wb") as file:
                file.write(ray.get(self.sent[0]))
            return self.load(path)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Scores one block. Returns errors that a user can remedy; any other error ends the job with its traceback."""
        error, rows, refused = "", 0, 0
        try:
            block = Block.from_json(str(batch["block"][0]))
            self.expected, rows, refused = self.job.score(self.critic, block, self.expected)
        except RahfError as caught:
            error = str(caught)
        return {"rows": [rows], "refused": [refused], "error": [error]}
