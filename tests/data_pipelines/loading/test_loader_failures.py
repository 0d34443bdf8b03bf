"""What goes wrong while data is read: pictures that cannot be decoded, workers that die, memory that is short."""

import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from data_pipelines.loading import loader
from data_pipelines.loading.labels import Labels
from rahf.core.errors import DataError, WorkerFailure
from tests.helpers.loader_maker import Listed, alive, assert_equal, encode, evaluate, make, record, take


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_names_dataset_split_index_and_uid(source, tokenizer, workers):
    bad = list(source.records)
    bad[6] = record(6, image=bad[6].image[:200])
    words = r"dataset data/tiny, split 'train', record 6 \(uid 'u6'\): image: truncated or damaged"
    with make(Listed(bad), tokenizer, workers=workers) as batches, pytest.raises(DataError, match=words):
        take(batches, 3)


def damaged_in_the_middle(number: int):
    noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, "JPEG")
    return record(number, image=data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :])


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_in_the_middle_is_said_by_name_and_counted(source, tokenizer, workers):
    records = [*source.records[:8], damaged_in_the_middle(8), damaged_in_the_middle(9)]
    with make(Listed(records), tokenizer, workers=workers) as batches:
        reported = []
        batches.report = reported.append
        batches_of_two_epochs = take(batches, 6)
        assert batches.damaged == 2 and len(reported) == 2
    assert np.concatenate([b.index for b in batches_of_two_epochs]).tolist().count(8) >= 2
    for number, line in zip((8, 9), sorted(reported)):
        named = f"warning: record {number} (uid 'u{number}') of dataset data/tiny, split 'train': the JPEG is damaged"
        assert line.startswith(named), line


def test_damage_in_evaluation_is_said_once(source, tokenizer, capsys):
    split = evaluate(Listed([*source.records[:8], *(damaged_in_the_middle(n) for n in range(8, 15))]), tokenizer)
    assert sum(len(list(split)) for _ in range(2)) == 8 and split.damaged == 7
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and re.match(
        r"warning: record \d+ \(uid 'u\d+'\) of dataset data/tiny, split 'dev'", lines[0]
    )
    assert lines[-1] == "warning: further damaged pictures are not named, only counted"
    assert Labels(Listed([damaged_in_the_middle(8)]))[0].image().shape == (64, 64, 3)


def test_corrupt_map_in_evaluation(source, tokenizer):
    bad = [*source.records[:3], record(3, misalignment=b"\x89PNG")]
    with pytest.raises(DataError, match=r"split 'dev', record 3 \(uid 'u3'\): misalignment map: "):
        list(evaluate(Listed(bad), tokenizer))


class Deadly(Listed):
    """Kills the process that reads record 6, unless that is the one that made it."""

    def __init__(self, records):
        super().__init__(records)
        self.parent = os.getpid()

    def __getitem__(self, index):
        if index == 6 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_always_dies_at_a_record_stops_the_run(source, tokenizer):
    with make(Deadly(source.records), tokenizer, workers=1) as batches:
        reported = []
        batches.report = reported.append
        message = r"worker 1 of 1 died at record 6 \(uid 'u6'\) of .*killed by SIGKILL.*memory.* 3 times at the same"
        with pytest.raises(WorkerFailure, match=message):
            take(batches, 6)
    assert len(reported) >= 2 and all("at record 6 (uid" in line and "started again" in line for line in reported)


def test_a_worker_that_is_killed_once_is_started_again(source, tokenizer):
    with make(source, tokenizer, workers=0) as calm:
        expected = take(calm, 20)
    with make(source, tokenizer, workers=2) as batches:
        reported = []
        batches.report = reported.append
        received = take(batches, 3)
        victim = next(p for p in multiprocessing.active_children() if p.name.startswith("grain-process-prefetch"))
        os.kill(victim.pid, signal.SIGKILL)
        received += take(batches, 17)
    assert_equal(received, expected)
    (line,) = reported
    assert re.match(r"warning: data worker [12] of 2 died at record \d+ \(uid 'u\d'\) of dataset ", line), line
    assert "(killed by SIGKILL, usually the machine ran out of memory); started again at the same place" in line


def test_too_little_shared_memory_is_said_before(source, tokenizer, monkeypatch):
    monkeypatch.setattr(loader.worker.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**10}))
    with make(source, tokenizer, workers=2) as batches:
        with pytest.raises(ValueError, match="2 data workers need .* MiB of shared memory"):
            next(batches)


def test_script_without_guard_and_workers_end_with_their_parent(tokenizer, tmp_path):
    """The script runs once, not again in its worker; killed, it leaves no worker behind."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, signal, sys
        import jax  # as every training script does
        sys.path.insert(0, sys.argv[1])
        from tests.helpers import loader_maker
        from rahf.text import Tokenizer
        folder = pathlib.Path(sys.argv[2])
        (folder / f"main-{os.getpid()}").touch()
        (folder / "readers").mkdir()
        source = loader_maker.Watched([loader_maker.record(i) for i in range(8)], folder / "readers")
        tokenizer = Tokenizer((folder / "tokenizer.model").read_bytes())
        batches = loader_maker.make(source, tokenizer, workers=1)
        next(batches)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    )
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    here = pathlib.Path(__file__).resolve().parents[3]
    command = [sys.executable, str(script), str(here), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    with open(tmp_path / "errors", "w") as errors:  # no pipe: a worker that lived on would keep it open
        done = subprocess.run(command, env=environment, stderr=errors, timeout=120)
    assert done.returncode == -signal.SIGKILL, (tmp_path / "errors").read_text()
    assert len(list(tmp_path.glob("main-*"))) == 1
    main = next(tmp_path.glob("main-*")).name.removeprefix("main-")
    readers = {file.name: json.loads(file.read_text()) for file in (tmp_path / "readers").glob("[0-9]*")}
    assert "jax" in readers.pop(main)
    assert len(readers) == 1 and not any(readers.values())
    end = time.monotonic() + 10
    while any(alive(int(pid)) for pid in readers) and time.monotonic() < end:
        time.sleep(0.05)
    left = [int(pid) for pid in readers if alive(int(pid))]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
