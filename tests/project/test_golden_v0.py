"""What version 0 wrote is still read: a run, its exported file and an interrupted run give the same numbers."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import rahf
from rahf.cli import main as cli
from rahf.core.tree import flatten
from rahf.critic import loading
from rahf.training import checkpoint

# One of the prompts is longer than the network reads; and the numbers are those of programs as users run them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::rahf.text.prompts.PromptWarning"),
    pytest.mark.usefixtures("optimised"),
]

#: float32 on the kind of CPU that wrote the numbers. On others, 1e-4 is what rounding allows.
TOLERANCE = 1e-6


@pytest.fixture
def quickly_compiled(optimised):
    """For tests whose programs compile much longer than they run, and whose numbers do not need the last bit."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def golden(shared) -> pathlib.Path:
    """The read-only folder of what version 0 wrote."""
    folder = shared / "golden" / "v0"
    if not folder.is_dir():
        pytest.skip("what version 0 wrote (../shared/golden/v0) is not beside this clone")
    return folder


@pytest.fixture(scope="module")
def expected(golden) -> dict[str, np.ndarray]:
    with np.load(golden / "predictions.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def pictures(golden) -> tuple[list[str], list[str]]:
    """Paths and prompts."""
    prompts = json.loads((golden / "pictures" / "prompts.json").read_text())
    return [str(golden / "pictures" / f"{i}.png") for i in range(len(prompts))], prompts


@pytest.fixture(scope="module")
def critics(golden) -> dict[str, rahf.Critic]:
    return {"run": rahf.load(golden / "demo"), "export": rahf.load(golden / "demo.rahf")}


def writable(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A copy whose files and folders may be changed: those of the source are read-only."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    return target


@pytest.mark.parametrize("kind", ["run", "export"])
def test_predictions(critics, expected, pictures, golden, kind):
    prediction = critics[kind](*pictures)
    for name, array in zip(("heatmaps", "scores", "words"), prediction):
        np.testing.assert_allclose(array, expected[f"{kind}/{name}"], rtol=0, atol=TOLERANCE, err_msg=name)
    misaligned = [feedback.misaligned_words for feedback in critics[kind].feedback(*pictures)]
    assert misaligned == json.loads(str(expected[f"{kind}/misaligned"]))
    # The stored quantiles belong to the model only as long as its id is computed as before.
    assert prediction.model_id == json.loads((golden / "demo" / "quantiles.json").read_text())["model"]
    assert prediction.percentiles is not None


@pytest.mark.usefixtures("quickly_compiled")
def test_generated_words(critics, expected, pictures):
    misaligned = [feedback.misaligned_words for feedback in critics["run"].feedback(*pictures, generate=True)]
    assert misaligned == json.loads(str(expected["run/generated"]))


@pytest.mark.usefixtures("quickly_compiled")
def test_an_interrupted_run_goes_on(golden, tmp_path, monkeypatch, capsys):
    for name in ("data", "tiny"):
        writable(golden / name, tmp_path / name)
    shutil.copyfile(golden / "config.py", tmp_path / "config.py")
    monkeypatch.chdir(tmp_path)
    options = (golden / "tiny_options.txt").read_text().split()
    with pytest.warns(DeprecationWarning, match="use rahf.config.CriticConfig"):
        assert cli.main(["train", "config.py", "--workdir", "tiny", *options]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert set(steps) == {6}  # steps 1 to 3 were not repeated
    run, state = checkpoint.find(tmp_path / "tiny")
    assert state.parent.name == "6"
    params = flatten(rahf.load(run).params)
    with np.load(golden / "tiny_step6.npz") as arrays:
        assert params.keys() == set(arrays)
        for name, array in arrays.items():
            # Bit-identical with optimised programs on the kind of CPU that wrote them. Others add in another order,
            # which moves the last bit. The gradient of a key's bias is 0 but for rounding, and Adam scales that
            # rounding to a full step.
            tolerance = 1e-4 if name.endswith("key/bias") else 1e-6
            np.testing.assert_allclose(params[name], array, rtol=1e-6, atol=tolerance, err_msg=name)


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("kind", ["run", "export"])
def test_commands(kind, golden, expected, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", functools.cache(loading.load))  # commands share what is compiled
    model = writable(golden / "demo", tmp_path / "demo") if kind == "run" else golden / "demo.rahf"
    paths, prompts = pictures
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    with_prompts = [*paths, "--prompts", str(tmp_path / "prompts.txt")]
    lines = [json.dumps({"image": path, "prompt": prompt}) + "\n" for path, prompt in zip(paths, prompts)]
    (tmp_path / "candidates.jsonl").write_text("".join(lines))

    def run(command: str, *arguments: str) -> None:
        assert cli.main([command, str(model), *arguments]) == 0, capsys.readouterr().err

    run("predict", *with_prompts, "--out", str(tmp_path / "predictions"))
    predictions = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    scores = [list(image["scores"].values()) for image in predictions["images"]]
    np.testing.assert_allclose(scores, expected[f"{kind}/scores"], rtol=0, atol=2e-6)  # rounded to six digits
    run("mask", *with_prompts, "--out", str(tmp_path / "masks"))
    assert len(list((tmp_path / "masks").glob("*_mask.png"))) == len(paths)
    elsewhere = ["--images-from", str(golden / "pictures"), "--batch-size", "8"]
    run("select", str(tmp_path / "candidates.jsonl"), "--out", str(tmp_path / "manifest.jsonl"), *elsewhere)
    manifest = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == len(paths) and all(line["selected"] for line in manifest)  # every prompt is a group
    run("score", str(tmp_path / "candidates.jsonl"), "--out", str(tmp_path / "scores"), *elsewhere)
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["scored"] == len(paths)
    places = ["--json", str(tmp_path / "metrics.json"), "--report", str(tmp_path / "report"), "--examples", "2"]
    run("evaluate", "--data", str(golden / "data"), "--split", "test", "--batch-size", "8", "--no-generate", *places)
    assert "scores/mean/plcc" in json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert "8 scored by demo-2500-" in capsys.readouterr().out


@pytest.mark.usefixtures("quickly_compiled")
def test_the_run_is_exported(golden, critics, pictures, tmp_path):
    file = tmp_path / "demo.rahf"
    assert cli.main(["export", str(golden / "demo"), str(file), "--scores-only"]) == 0
    scores = rahf.load(file)(*pictures).scores
    np.testing.assert_allclose(scores, critics["run"](*pictures).scores, rtol=0, atol=1e-5)
