"""Runs `rahf` many times in processes of their own, without the seconds that importing takes: python forked_runs.py

Everything is imported once, JAX's devices are not touched, and each run is a fork of that. Reads groups of runs as
JSON from stdin, one group per line: ``[{"arguments": […], "stop": "", "environment": {}, "log": FILE}, …]``. The runs
of a group go on at the same time, groups one after the other. Answers each with the exit codes of its runs, −n for
signal n.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback


def import_everything() -> None:
    """What a training run imports, at the latest when it saves its first checkpoint."""
    import orbax.checkpoint  # noqa: F401
    import tensorboardX  # noqa: F401
    import tyro  # noqa: F401
    from jax.experimental import multihost_utils  # noqa: F401

    import rahf.config.overrides  # noqa: F401
    import rahf.critic.evaluation.evaluator  # noqa: F401
    import rahf.training.loop  # noqa: F401


def fork(run: dict) -> int:
    """Starts a run; the process id."""
    child = os.fork()
    if child:
        return child
    os.environ.update(run.get("environment", {}))
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 70
    try:
        from rahf.cli import main as cli
        from tests.helpers import ended_run

        if run.get("stop"):
            ended_run.arrange(run["stop"])
        code = cli.main(run["arguments"])
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int], seconds: float) -> list[int]:
    """Exit codes; what has not ended by then is killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, 9)
        time.sleep(0.005)
    return [codes[child] for child in children]


if __name__ == "__main__":
    import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(wait([fork(run) for run in json.loads(line)], 900)), flush=True)
