"""Kills at random moments of one training run change nothing of what it ends with: six, or twenty with -m slow."""

import random
import signal

import pytest

from tests.helpers import train_maker

#: Steps by the number of kills. Twenty come to 65 (standard deviation 11), at most 108 in 200,000 draws; six to 20.
STEPS = {6: 56, 20: 130}
#: Checkpoints come about as fast as they are written, evaluations fall between them.
FIELDS = ("--train.checkpoint-every", "3", "--train.eval-every", "25", "--train.log-every", "5")


def moments(seed: int, kills: int) -> list[str]:
    """When to kill, in the words of `ended_run`: soon after a batch, while saving, or before the first step."""
    chance = random.Random(seed)
    stops = ["SIGKILL:8:0.05"]  # by then a checkpoint is written, so that at least one of the others resumes
    for _ in range(kills - 1):
        kind = chance.choices(("batch", "saving", "start"), (7, 2, 1))[0]
        batch, delay = chance.randint(1, 8), round(chance.uniform(0, 0.05), 3)
        named = {"batch": f"SIGKILL:{batch}:{delay}", "saving": f"saving:{chance.randint(1, 2)}"}
        stops.append(named.get(kind) or f"start:{round(chance.uniform(0.1, 1.5), 3)}")
    return stops


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_change_nothing(small_config, tmp_path, kills):
    steps = STEPS[kills]
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)  # shown if the test fails
    calm, killed = tmp_path / "calm", tmp_path / "killed"

    def run(folder, log, stop=""):
        arguments = ["train", str(small_config), "--workdir", str(folder), "--train.steps", str(steps), *FIELDS]
        return {"arguments": arguments, "stop": stop, "log": tmp_path / log}

    with train_maker.Forked() as forked:
        assert forked.run(run(calm, "calm.log")) == [0], (tmp_path / "calm.log").read_text()
        codes = [forked.run(run(killed, "killed.log", stop))[0] for stop in moments(seed, kills)]
        log = (tmp_path / "killed.log").read_text()
        assert codes == [-signal.SIGKILL] * kills, log
        assert "warning" not in log  # no checkpoint was found damaged
        assert forked.run(run(killed, "last.log")) == [0], (tmp_path / "last.log").read_text()
    assert "resuming at step" in log + (tmp_path / "last.log").read_text()
    for kind in ("latest", "best"):
        step, found = train_maker.stored(killed, kind)
        expected_step, expected = train_maker.stored(calm, kind)
        assert step == expected_step and (kind == "best" or step == steps)
        train_maker.assert_same(found, expected)
    position = f"checkpoints/latest/{steps}/data/metadata"
    assert (killed / position).read_text() == (calm / position).read_text()
    assert train_maker.rows(killed) == train_maker.rows(calm)
