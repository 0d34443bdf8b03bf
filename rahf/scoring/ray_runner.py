"""Blocks on a Ray cluster: Ray Data hands them to actors that hold the critic; each writes its own parts.

What travels is a line that says where a block is; pictures and scores never pass through the driver. When a
worker dies, Ray gives its block to another one; a part is renamed when it is whole, so twice does no harm.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from rahf.core.errors import ScoreError
from rahf.scoring.blocks import Block
from rahf.scoring.job import Job

#: How often a block is given to another worker, so that one that kills its worker cannot keep the job for ever.
RETRIES = 5


def run(
    job: Job,
    blocks: Sequence[Block],
    model: str,
    load: Callable[[str], Any] | None,
    expected: str | None,
    done: Callable[[int, int], None],
    workers: int = 2,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
) -> None:
    """Scores blocks on the actors of a cluster.

    Args:
      job, blocks: what to do.
      model: directory that every node can read, or a file, which is sent to them.
      load: makes the critic from its path; None: `rahf.load`.
      expected: id of the model that the job was begun with; None: not known yet.
      done: told the rows of each finished block and those refused.
      workers: number of actors.
      cpus, gpus: of each actor.
      address: of a running cluster ("auto": the one of this machine); None: as RAY_ADDRESS says, else a cluster on
        this machine for the time of the job. A Ray that is already initialised is used as it is.

    Raises:
      ScoreError: Ray is not installed, or what `Job.score` says.
    """
    if workers < 1:
        raise ScoreError(f"workers: expected at least 1, found {workers}")
    if not blocks:
        return
    ray, data = _import()
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    try:
        sent = _file(ray, model)
        rows = data.from_items([{"block": one.to_json()} for one in blocks], override_num_blocks=len(blocks))
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
        if ours:
            ray.shutdown()


def _import() -> tuple[Any, Any]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ScoreError(f"--runner ray needs Ray ({error}): pip install rahf[ray]") from error
    return ray, ray.data


def _file(ray: Any, model: str) -> list[Any]:
    """A model that is one file, as a reference that every node can fetch; a list keeps Ray from fetching it here."""
    if not os.path.isfile(model):
        return []
    with open(model, "rb") as file:
        return [ray.put(file.read())]


class _Scorer:
    """An actor. It loads the critic when its first block comes, so that a failure is an answer."""

    def __init__(self, job: Job, model: str, sent: list[Any], load: Callable[[str], Any] | None, expected: str | None):
        self.job, self.model, self.sent, self.load, self.expected = job, model, sent, load, expected

    @functools.cached_property
    def critic(self) -> Any:
        """The critic, loaded once per actor. Raises ScoreError, which names the model."""
        try:
            return self._loaded()
        except Exception as error:  # on a worker, whatever it is, it is the model that is missing or damaged there
            raise ScoreError(f"{self.model}: a worker cannot load it ({type(error).__name__}: {error})") from error

    def _loaded(self) -> Any:
        from rahf.scoring.run import load_critic

        load = self.load or load_critic
        if not self.sent:
            return load(self.model)
        import ray

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, os.path.basename(self.model))
            with open(path, "wb") as file:
                file.write(ray.get(self.sent[0]))
            return load(path)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Scores one block. What a user can remedy is an answer; all else ends the job with its traceback."""
        error, rows, refused = "", 0, 0
        try:
            block = Block.from_json(str(batch["block"][0]))
            self.expected, rows, refused = self.job.score(self.critic, block, self.expected)
        except ValueError as found:
            error = str(found) or type(found).__name__
        return {"rows": [rows], "refused": [refused], "error": [error]}
