"""`metrics.jsonl` and TensorBoard events: odd rows are left out, a full disk is an error with a name."""

import errno
import json

import pytest

from rahf.core.errors import DiskFull
from rahf.critic.evaluation.report import curves
from rahf.training.progress import Reporter, read_rows

ODD = [
    b"[" * 100_000, b"\xff\xfe", b"3", b"{}", b'{"step": "4"}', b'{"step": true}', b'{"step": -1}', b'{"step": 1e3}',
    b'{"step": 1' + b"0" * 400 + b"}", b'{"step": 1' + b"0" * 5000 + b"}", b'{"step": 4, "los',
]  # fmt: skip


def test_rows_that_an_editor_has_damaged(tmp_path):
    good = {"step": 4, "loss/total": 0.5, "a": None}
    values = {"loss/total": 10**400, "a": "x", "b": [1], "c": float("nan"), "d": 1e300, "e": True, "f": 0}
    odd_values = {"step": 8, **values}
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([json.dumps(good).encode(), *ODD, json.dumps(odd_values).encode()]))
    rows = read_rows(file)
    assert rows == [good, {"step": 8} | dict.fromkeys(values) | {"f": 0.0}]
    curves.charts(rows)
    assert read_rows(tmp_path / "none") == []


@pytest.mark.parametrize("values", [(0, 0), (0, 1e99), (-1e99, 1e99), (1e-320, 1e99), (1e-320, 1e-320), (-0.0, 5e-324)])
def test_curves_of_extreme_values(values):
    rows = [{"step": step, "loss/total": value} for step, value in enumerate(values)]
    assert curves.charts(rows)[0].lines[0].points


def test_a_resumed_run_drops_later_rows_and_nothing_else(tmp_path):
    first = b'{"step": 2, "loss/total": 0.25, "time": 3.0}'
    (tmp_path / "metrics.jsonl").write_bytes(first + b'\n{"step": 3}\n{"st')
    reporter = Reporter(tmp_path, 9, 2)
    reporter.write(3, {"loss/total": 0.125, "loss/nan": float("nan")})
    reporter.close()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert lines[0] == first and len(lines) == 2
    row = json.loads(lines[1])
    assert (row["step"], row["loss/total"], row["loss/nan"]) == (3, 0.125, None)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/total" in events.read_bytes() and b"loss/nan" not in events.read_bytes()


@pytest.mark.parametrize("what", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_ends_the_run_with_file_and_remedy(tmp_path, monkeypatch, what):
    reporter = Reporter(tmp_path, 9, 0)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*_):
        raise full

    with monkeypatch.context() as patch:
        if what == "tensorboard":
            patch.setattr(reporter._events._writer, "flush", fails)
        else:
            patch.setattr(reporter, "_rows", open("/dev/full", "w"))
        message = f"{what}: the disk is full .No space left on device.; free some space, or write to another place"
        with pytest.raises(DiskFull, match=message):
            reporter.write(1, {"loss/total": 0.5})
        reporter.close()  # says nothing more
    reporter.close()
