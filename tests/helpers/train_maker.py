"""A network and a dataset so small that whole training runs fit into tests, and how to start them."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import numpy as np

from rahf.cli import main as cli

HERE = pathlib.Path(__file__).resolve().parent
_PROGRAM = "import sys; from rahf.cli.main import main; sys.exit(main())"

#: A config file as a user would write it. Dropout, averaged parameters and augmentations are on, so that a
#: resumed run has to go on exactly with all of them; the schedule does not depend on the number of steps,
#: so that all runs share one compilation.
CONFIG = """
from rahf.config import *

def config():
    return Config(
        workdir="runs/tiny",
        data=DataConfig(
            path={data!r}, batch_size=8, eval_batch_size=8,
            max_prompt_tokens=24, max_target_tokens=28, max_words=20,
        ),
        model=CriticConfig(
            image_size=32,
            vit=ViTConfig(patch_size=8, width=32, depth=1, heads=2, mlp_width=64, dropout=0.1),
            t5=T5Config(
                vocab_size=1024, width=32, head_width=16, heads=2, mlp_width=64,
                encoder_layers=1, decoder_layers=1, dropout=0.1,
            ),
            heatmap_head=HeatmapHeadConfig(conv_widths=(16,), up_widths=(16,)),
            score_head=ScoreHeadConfig(conv_widths=(16,), pool=2, dense_widths=(16,)),
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4, schedule="rsqrt", ema_decay=0.9),
        train=TrainConfig(
            steps=12, log_every=2, eval_every=6, eval_examples=8, checkpoint_every=4,
            best_metric="loss/total", best_mode="min",
        ),
    )
"""


def train(config: str | os.PathLike, run: str | os.PathLike, *fields: str) -> int:
    """Runs `rahf train` in this process; its exit code."""
    return cli.main(["train", str(config), "--workdir", str(run), *fields])


def in_process(*arguments: str, stop: str = "", **environment: str | None) -> subprocess.CompletedProcess:
    """Runs `rahf` in a process of its own; `stop` says how it ends early, see `ended_run`. None unsets a variable."""
    program = [str(HERE / "ended_run.py"), stop] if stop else ["-c", _PROGRAM]
    given = os.environ | {"GLIBC_TUNABLES": ""} | environment  # tunables, so that `rahf` does not start itself again
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in given.items() if value is not None},
        timeout=900,
    )


def rows(run: pathlib.Path) -> list[dict]:
    """Rows of `metrics.jsonl` without what the clock decides."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "images_per_second")} for row in found]


def stored(run: pathlib.Path, kind: str = "latest") -> tuple[int, dict[str, np.ndarray]]:
    """Step and every array of the newest checkpoint, by path, read without any of our own code."""
    import jax
    import orbax.checkpoint as ocp

    step = max(int(p.name) for p in (run / "checkpoints" / kind).iterdir())
    folder = run / "checkpoints" / kind / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it finds the layout in the files
        there = checkpointer.metadata(folder)
        there = getattr(there, "item_metadata", there)
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(getattr(there, "tree", there)))
        tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=whole))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Every array equal to the last bit."""
    assert found.keys() == expected.keys() and len(found) >= 2
    different = [p for p in expected if found[p].tobytes() != expected[p].tobytes()]
    assert not different, f"{len(different)} of {len(expected)} arrays differ: {different[:5]}"


class Forked:
    """Runs `rahf` in processes forked from one that has imported everything; see `forked_runs`."""

    def __init__(self, **environment: str):
        given = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "GLIBC_TUNABLES": ""} | environment
        program = [sys.executable, str(HERE / "forked_runs.py")]
        self._server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given)

    def __enter__(self) -> "Forked":
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_) -> None:
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def run(self, *runs: dict) -> list[int]:
        """Runs all at once; their exit codes. A run has `arguments`, `log` and perhaps `stop`, `environment`."""
        self._server.stdin.write(json.dumps([{**run, "log": str(run["log"])} for run in runs]) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())
