"""The exit codes of commands that go on where an input cannot be used: one rule for all of them."""

import json
import types

import pytest

from rahf.cli import main as cli
from rahf.core import exit_codes


@pytest.mark.parametrize(("done", "refused", "code"), [(5, 0, 0), (5, 1, 3), (1, 9, 3), (0, 2, 1), (0, 0, 1)])
def test_some_all_or_none(done, refused, code):
    assert exit_codes.of_counts(done, refused) == code


def scored(done: int, refused: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        scored=done, refused=refused, rows=done + refused, prompts_cut=0, blocks=1, model="demo-1"
    )


def selected(done: int, refused: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        scoring=scored(done, refused),
        candidates=done,
        selected=done,
        groups=1,
        threshold=None,
        manifest="m",
        prefix="",
        refused="r",
    )


def prepared(done: int, refused: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(total={"joined": done}.get, left_out=refused)


@pytest.mark.parametrize(("done", "refused", "code"), [(4, 0, 0), (3, 1, 3), (0, 4, 1)])
@pytest.mark.parametrize(
    ("function", "result", "arguments"),
    [
        ("rahf.scoring.score", scored, "score run pictures --out scores"),
        ("rahf.steer.best_of_n_files.select_files", selected, "select run c.jsonl --out m.jsonl"),
        ("data_pipelines.feedback.prepare.prepare", prepared, "prepare feedback --annotations f --images i --out o"),
        ("data_pipelines.richhf18k.prepare.prepare", prepared, "prepare richhf18k --labels l --images i --out o"),
    ],
)
def test_commands(function, result, arguments, done, refused, code, monkeypatch):
    monkeypatch.setattr(function, lambda *_, **__: result(done, refused))
    assert cli.main(arguments.split()) == code


def test_a_preparation_counts_what_it_refuses(tmp_path, capsys):
    from tests.helpers.image_maker import encode, smooth

    (tmp_path / "a.png").write_bytes(encode(smooth(40, 40)))
    lines = [
        {"image": name, "prompt": "a cat", "split": "train", "scores": {"overall": 1}} for name in ("a.png", "b.png")
    ]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--annotations", str(tmp_path / "f.jsonl"), "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second one finds the finished dataset
        assert cli.main(["prepare", "feedback", *arguments]) == 3
        assert "used 1 of 2 records" in capsys.readouterr().out
