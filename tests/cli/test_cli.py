"""The `rahf` command: starts fast, fails in one line, and every option reaches its place."""

import ast
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from rahf.cli import main as cli
from rahf.core.errors import RahfError
from tests.helpers import train_maker

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["--version"], ["predict"]]
)
def test_asking_for_help_imports_nothing_heavy(arguments):
    """Only the standard library and rahf itself: help comes at once."""
    code = (
        "import sys; from rahf.cli.main import main\n"
        "before = set(sys.modules)\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "roots = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print('LOADED', sorted(r for r in roots if not r.startswith(('_', 'rahf'))))\n"
    )
    # -S leaves out site-packages' start-up files, which may import what they like.
    process = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert process.stdout.splitlines()[-1] == "LOADED []", process.stderr


def test_help_shows_every_command_and_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for command in ("demo", "prepare", "train", "evaluate", "predict", "mask", "select", "score", "import"):
        assert f"\n    {command} " in out
    with pytest.raises(SystemExit) as ended:
        cli.main(["frobnicate"])
    assert ended.value.code == 2
    assert "invalid choice: 'frobnicate'" in capsys.readouterr().err


_PRINT = "print('x' * 100_000)"


@pytest.mark.parametrize(
    "out, statement, code, error",
    [
        ("pipe", _PRINT, 141, ""),  # 128 + SIGPIPE
        ("pipe", "print('x')", 141, ""),  # stays in Python's buffer until the end
        ("pipe", "__import__('rich.console').console.Console().print('x')", 141, ""),
        ("closed", _PRINT, 0, ""),
        ("full", _PRINT, 1, "rahf: the output cannot be written: [Errno 28] No space left on device\n"),
        ("latin-1", _PRINT, 0, ""),
    ],
)
def test_output_that_cannot_be_written_does_not_end_the_work(out, statement, code, error, tmp_path):
    """As in `rahf … | head`, `rahf … >&-`, `rahf … > log` on a full disk, and on a terminal of another encoding."""
    program = (
        "import os, sys; from rahf.cli import main as cli; from rahf.cli import train\n"
        f"train.run = lambda _: [{statement}, print('\u2717'), open('done', 'w').close()] and 0\n"
        f"{'os.close(1); sys.stdout = None' if out == 'closed' else ''}\n"
        "sys.exit(cli.main(['train', '_']))"
    )
    environment = os.environ | ({"PYTHONIOENCODING": out} if out == "latin-1" else {})
    read, write = os.pipe()
    os.close(read)  # nobody reads
    target = open("/dev/full" if out == "full" else tmp_path / "out", "wb")
    process = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write if out == "pipe" else target,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
    )
    os.close(write)
    target.close()
    assert (process.returncode, process.stderr.decode()) == (code, error)
    assert (tmp_path / "done").read_bytes() == b""
    if out == "latin-1":
        assert (tmp_path / "out").read_bytes().endswith(b"x\n?\n")


# Errors


def test_an_expected_error_is_one_line(tmp_path, capsys):
    assert cli.main(["train", str(tmp_path / "demmo.py")]) == 1
    assert (
        capsys.readouterr().err == f"rahf: no config file {tmp_path}/demmo.py. Did you mean 'configs/critic/demo.py'?\n"
    )


@pytest.mark.parametrize("bug", [ZeroDivisionError, ValueError])
def test_a_bug_keeps_its_traceback(bug, monkeypatch):
    def broken(args):
        raise bug("a bug")

    monkeypatch.setattr("rahf.cli.train.run", broken)
    with pytest.raises(bug):
        cli.main(["train", "demo.py"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            "mask MODEL a.png --prompt x --out m.png --threshold 2",
            "threshold: expected above 0 and at most 1, found 2.0",
        ),
        ("mask MODEL a.png --prompt x --out m.jpg", "--out m.jpg: masks are PNG files; give a name that ends in .png"),
        ("select MODEL c.jsonl --out m.jsonl --by beauty", "no score is called 'beauty'. Known: aesthetics, "),
        ("select MODEL c.jsonl --out m.jsonl --require overall", "constraint 'overall': expected a score, "),
        ("predict MODEL a.png b.png", "no prompt: give --prompt TEXT for all images, "),
        ("predict MODEL a.png --prompt x", "model: no such file or directory; expected a run directory"),
        (
            "generate nowhere --prompt x --out o",
            "nowhere: no such file or directory; expected a model directory of ",
        ),
        (
            "sgool nowhere --prompt x --out o --critic MODEL",
            "directory; expected a model directory of `rahf import ",
        ),
        ("generate DIFFUSERS --prompt x --out o", "make a model directory of it first: rahf import stable-diffusion "),
        (
            "import stable-diffusion nowhere o",
            "nowhere: expected the folder of a pipeline of diffusers, with ",
        ),
        ("score MODEL nowhere.jsonl --out o", "nowhere.jsonl"),
        ("prepare synthetic --out d --train -1", "train=-1, dev=256, test=256, workers="),
        ("prepare synthetic --out d --size 8", "size 8: expected a side of at least 32 pixels"),
        ("train demo.py --mesh.data 0 --data.path DATA", "mesh "),
        ("train demo.py --model.vit.heads 7 --data.path DATA", "vit.width "),
        ("train demo.py --data.augment.hue 7 --data.path DATA", "augment.hue: "),
    ],
)
def test_a_wrong_value_is_one_line(arguments, message, tmp_path, monkeypatch, capsys, tiny_data):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(tmp_path / "model"), "DATA": str(tiny_data), "DIFFUSERS": str(tmp_path)}
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.jsonl").write_text('{"image": "a.png", "prompt": "x"}\n')
    assert cli.main([places.get(word, word) for word in arguments.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rahf: ") and message in error and error.count("\n") == 1


def test_a_traceback_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("RAHF_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no config file"):
        cli.main(["train", str(tmp_path / "absent.py")])


def test_a_full_disk_says_what_to_do_whoever_met_it(monkeypatch, capsys):
    def full(args):
        with open("/dev/full", "w") as file:
            file.write("x")

    monkeypatch.setattr("rahf.cli.train.run", full)
    assert cli.main(["train", "demo.py"]) == 1
    assert capsys.readouterr().err.endswith(
        ": the disk is full (No space left on device); free some space, or write to another place\n"
    )


def test_text_of_files_reaches_the_terminal_printable(monkeypatch, capsys):
    def fails(args):
        raise RahfError("licence \x1b]0;OWNED\x07\x1b[2J\nsecond line")

    monkeypatch.setattr("rahf.cli.train.run", fails)
    assert cli.main(["train", "demo.py"]) == 1
    assert capsys.readouterr().err == "rahf: licence \ufffd]0;OWNED\ufffd\ufffd[2J\nsecond line\n"


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("rahf.cli.train.run", interrupted)
    assert cli.main(["train", "demo.py"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_all_our_errors_are_rahf_errors():
    """Every error class that the program defines ends in one line."""
    for root in ("rahf", "data_pipelines"):
        for file in (ROOT / root).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Failure")):
                    if node.name != "RahfError":
                        assert issubclass(getattr(importlib.import_module(module), node.name), RahfError), node.name


# Config files and fields


@pytest.mark.parametrize(
    "fields, error",
    [
        (["--train.stepps", "3"], "--train.stepps. Did you mean 'train.steps'?"),
        (["--optimizer.learning-rat=1"], "--optimizer.learning-rat. Did you mean 'optimizer.learning_rate'?"),
        (["--modl.vit.depth", "3"], "--modl.vit.depth. Did you mean 'model.vit.depth'?"),
    ],
)
def test_a_typo_on_the_command_line_suggests_the_field(fields, error, capsys):
    assert cli.main(["train", "demo.py", *fields]) == 1
    assert capsys.readouterr().err == f"rahf: unknown config field {error}\n"


def test_a_value_of_the_wrong_kind(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "demo.py", "--train.steps", "many"])
    assert ended.value.code == 2
    assert "--train.steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, error",
    [
        ("def config(): return Config(train=TrainConfig(stepps=3))", "Did you mean 'steps'?"),
        ("def config(): return Config(trian=TrainConfig())", "Did you mean 'train'?"),
        ("def konfig(): return Config()", "must define config() -> rahf.config.Config"),
        ("def config(): return 3", "config() returned int, expected rahf.config.Config"),
    ],
)
def test_a_mistake_in_a_config_file_is_named(text, error, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(f"from rahf.config import *\n{text}\n")
    assert cli.main(["train", str(file)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"rahf: {file}: ") and error in message


def test_every_field_is_an_option(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "demo.py", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for field in (
        "--train.steps",
        "--model.vit.width",
        "--data.path",
        "--optimizer.ema-decay",
        "--mesh.fsdp",
        "--workdir",
    ):
        assert field in out


def test_fields_reach_the_run(tiny_config, monkeypatch):
    from rahf import registry
    from rahf.training import loop

    configs = []

    def train(config):
        configs.append(config)
        return loop.Finished(config.train.steps, {}, 15 if config.train.steps == 7 else None)

    monkeypatch.setattr(registry, "train", train)
    fields = ["--train.steps", "5", "--model.vit.stem", "8", "16", "--data.augment.grey-probability", "0.5"]
    assert cli.main(["train", str(tiny_config), *fields, "--workdir", "elsewhere"]) == 0
    config = configs[0]
    assert (config.train.steps, config.model.vit.stem, config.workdir) == (5, (8, 16), "elsewhere")
    assert config.data.augment.grey_probability == 0.5 and config.data.batch_size == 8  # the rest as in the file
    assert cli.main(["train", str(tiny_config), "--train.steps", "7"]) == 128 + 15


# What the other commands pass on


def test_synthetic_data(tmp_path, capsys):
    out = tmp_path / "data"
    arguments = ["prepare", "synthetic", "--out", str(out), "--train", "6", "--dev", "0", "--test", "2", "--size", "48"]
    assert cli.main([*arguments, "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: train 6, test 2"
    (out / "prepare.json").write_text("{}")
    assert cli.main(arguments) == 1
    assert "was not made by `rahf prepare synthetic`; it is left alone" in capsys.readouterr().err


def test_richhf18k_prints_its_table_once(tmp_path, monkeypatch, capsys):
    from data_pipelines.richhf18k import prepare, summary

    assert cli.main(["prepare", "richhf18k", "--labels", str(tmp_path), "--images", "a", "b", "--out", "c"]) == 1
    assert "none of train.tfrecord, dev.tfrecord, test.tfrecord" in capsys.readouterr().err

    calls = []
    counts = summary.RichHFSummary(splits={"train": {"records": 4, "joined": 4}})
    monkeypatch.setattr(prepare, "prepare", lambda *args, **kw: calls.append((args, kw)) or counts)
    arguments = ["prepare", "richhf18k", "--labels", "l", "--images", "a", "b", "--out", "c", "--captions", "d"]
    assert cli.main(arguments) == 0
    assert calls == [(("l", ["a", "b"], "c"), {"captions": "d", "tokenizer": None})]
    assert capsys.readouterr().out == ""  # prepare itself prints its table


def test_prompts_from_a_file(monkeypatch, capsys, tmp_path):
    from rahf.critic import predict

    calls = []
    monkeypatch.setattr(predict, "predict", lambda *args, **kw: calls.append((args, kw)) or 0)
    assert cli.main(["predict", "run", "a.png", "b.png", "--prompts", "p.txt", "--out", "o", "--generate"]) == 0
    keywords = {"out": "o", "json_file": None, "coco_file": None, "generate": True, "prompts_file": "p.txt"}
    assert calls == [(("run", ["a.png", "b.png"], None), keywords)]
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        cli.main(["predict", "run", "a.png", "--prompts", "p.txt", "--prompt", "a cat"])
    assert "not allowed with argument" in capsys.readouterr().err
    (tmp_path / "p.txt").write_text("a cat\n")
    assert cli.main(["predict", "run", "a.png", "b.png", "--prompts", str(tmp_path / "p.txt")]) == 1
    assert capsys.readouterr().err.startswith("rahf: ")


def test_importing_a_published_model(tmp_path, monkeypatch, capsys):
    from rahf.critic.published import richhf_torch

    assert cli.main(["import", "richhf-torch", str(tmp_path / "absent.pt"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"rahf: {tmp_path}/absent.pt: no such file; expected the published checkpoint\n"

    calls = []

    def import_checkpoint(*args, **kw):
        calls.append((args, kw))
        return tmp_path / "out"

    monkeypatch.setattr(richhf_torch, "import_checkpoint", import_checkpoint)
    arguments = ["import", "richhf-torch", "a.pt", "out", "--license", "MIT", "--tokenizer", "spiece.model"]
    assert cli.main(arguments) == 0
    assert calls == [(("a.pt", "out"), {"license": "MIT", "tokenizer": "spiece.model", "vit_heads": None})]
    assert f"model directory {tmp_path}/out" in capsys.readouterr().out


def test_the_command_is_what_python_runs(tmp_path):
    """The installed script, in another folder, with its own exit code."""
    script = pathlib.Path(sys.executable).with_name("rahf")
    if not script.exists():
        pytest.skip("rahf is not installed in this environment, so there is no command")
    process = subprocess.run([script, "train", "absent.py"], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("rahf: no config file absent.py.")
    assert train_maker.in_process("--version").stdout == "rahf 0.1.0\n"
