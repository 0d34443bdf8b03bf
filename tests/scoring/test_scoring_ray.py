"""Scoring with two Ray workers on this machine: the same files as in one process, also if workers are killed."""

import gc
import os
import pathlib
import pickle
import signal
import sys
import warnings

import pytest

from rahf.core.errors import ScoreError
from rahf.scoring.fields import ReadOptions
from rahf.scoring.job import Job
from rahf.scoring.plan import plan
from rahf.scoring.run import score
from tests.helpers import critic_maker
from tests.helpers.critic_maker import ColourCritic
from tests.helpers.score_maker import jsonl, pictures, shards, table


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ScoreError, match=r"--runner ray needs Ray .*pip install rahf\[ray\]"):
        score("model", [str(jsonl(tmp_path))], tmp_path / "out", runner="ray")


def test_a_job_can_be_pickled(tmp_path):
    job = Job(str(tmp_path), ReadOptions("a"), 4)
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.fixture(scope="module")
def ray():
    """A Ray with two workers. Its warnings at start and end are not of rahf."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray = pytest.importorskip("ray", reason="Ray is not installed: pip install rahf[ray]")
        pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install rahf[ray]")
        ray.cloudpickle.register_pickle_by_value(critic_maker)  # workers do not have the folder of the tests
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield ray
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.shutdown()
        gc.collect()


pytestmark = pytest.mark.filterwarnings("ignore")


def run(inputs, out, runner="ray", load=None, **options):
    load = load or (lambda path: ColourCritic())
    return score(
        "model", [str(one) for one in inputs], str(out), runner=runner, batch_size=2, block_size=1, load=load, **options
    )


def written(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def test_equals_one_process(tmp_path, ray):
    sources = [jsonl(tmp_path), pictures(tmp_path), shards(tmp_path)]
    local, cluster = tmp_path / "local", tmp_path / "cluster"
    expected = run(sources, local, "local")
    summary = run(sources, cluster)
    assert (summary.blocks, summary.rows) == (expected.blocks, expected.rows) == (12, 15)
    assert written(cluster) == written(local)


def test_a_killed_workers_block_is_retried(tmp_path, ray):
    """Each worker is killed, as if its machine had gone, once, in the middle of its second block."""
    source = jsonl(tmp_path)
    (tmp_path / "killed").mkdir()
    folder = str(tmp_path / "killed")

    def load(path):
        class Mortal(ColourCritic):
            def __call__(self, *arguments, **options):
                if len(self.calls) == 1 and len(os.listdir(folder)) < 2:
                    open(os.path.join(folder, str(os.getpid())), "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(*arguments, **options)

        return Mortal()

    run([source], tmp_path / "local", "local")
    run([source], tmp_path / "cluster", load=load)
    assert len(os.listdir(folder)) == 2  # both workers were killed
    assert written(tmp_path / "cluster") == written(tmp_path / "local")


def test_a_restarted_job_skips_finished_blocks(tmp_path, ray):
    source = jsonl(tmp_path)
    run([source], tmp_path / "local", "local")
    # Begun in one process and interrupted; the rest on the cluster.
    job = Job(str(tmp_path / "out"), ReadOptions(), 2)
    for block in job.begin(plan([str(source)], 1))[:3]:
        job.score(ColourCritic(), block)
    (tmp_path / "asked").mkdir()
    folder = str(tmp_path / "asked")

    def load(path):
        class Counting(ColourCritic):
            def __call__(self, images, prompts, **options):
                for prompt in prompts:
                    open(os.path.join(folder, prompt), "x").close()
                return super().__call__(images, prompts, **options)

        return Counting()

    run([source], tmp_path / "out", load=load)
    assert sorted(os.listdir(folder)) == ["number 3", "number 4"]
    assert written(tmp_path / "out") == written(tmp_path / "local")
    run([source], tmp_path / "out", load=None)  # nothing to do: no worker starts


def test_errors_reach_the_user_in_one_line(tmp_path, ray):
    source = jsonl(tmp_path)

    def broken(path):
        raise RuntimeError("weights are missing")

    with pytest.raises(ScoreError, match="model: a worker cannot load it .RuntimeError: weights are missing"):
        run([source], tmp_path / "out", load=broken)

    def other(path):
        class Other(ColourCritic):
            model_id = "colours-2"

        return Other()

    run([source], tmp_path / "mixed")
    (tmp_path / "mixed" / "part-00003.parquet").unlink()
    with pytest.raises(ScoreError, match="begun with the model colours-1, but this is colours-2"):
        run([source], tmp_path / "mixed", load=other)
    with pytest.raises(ScoreError, match="workers: expected at least 1, found 0"):
        run([source], tmp_path / "none", cluster={"workers": 0})


def test_a_model_that_is_one_file_is_sent(tmp_path, ray):
    source = jsonl(tmp_path)
    (tmp_path / "model.rahf").write_bytes(b"the weights")
    here = str(tmp_path / "model.rahf")

    def load(path):
        assert path != here and open(path, "rb").read() == b"the weights"
        return ColourCritic()

    summary = score(here, [str(source)], str(tmp_path / "out"), runner="ray", load=load, cluster={"workers": 1})
    assert summary.scored == 5


def test_with_a_real_network(tmp_path, ray, tiny_run):
    """The tiny network, loaded by two actors, gives what it gives here."""
    source = jsonl(tmp_path)
    for runner in ("local", "ray"):
        score(tiny_run, [str(source)], tmp_path / runner, runner=runner, batch_size=2, block_size=3)
    ours, theirs = table(tmp_path / "local"), table(tmp_path / "ray")
    for a, b in zip(ours, theirs, strict=True):
        assert a["key"] == b["key"] and a["plausibility"] == pytest.approx(b["plausibility"], abs=1e-5)
