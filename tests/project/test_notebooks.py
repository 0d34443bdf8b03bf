"""The notebooks: clean files, public names only, and every cell runs in order, with little of everything."""

import ast
import importlib.util
import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [
    "1_quick_start",
    "2_training",
    "3_masks_repair_selection",
    "4_guidance_and_reward",
    "5_generate_steer_finetune",
    "6_saliency",
    "7_pictures_that_move",
]
#: They show shipped models and train none.
WITHOUT_TRAINING = ("7_pictures_that_move",)

#: What notebooks may import of ours, besides `rahf` itself. Everything else may change without notice.
PUBLIC = {
    "data_pipelines.gaze.density",
    "data_pipelines.loading.labels",
    "data_pipelines.planted.damage",
    "data_pipelines.store",
    "data_pipelines.synthetic.damage",
    "data_pipelines.synthetic.scene",
    "data_pipelines.synthetic.sheet",
    "data_pipelines.video.read",
    "rahf.cli.main",
    "rahf.core.batch",
    "rahf.critic.drawing",
    "rahf.critic.energy",
    "rahf.diffusion",
    "rahf.diffusion.latents.doodl",
    "rahf.interop.torch",
    "rahf.metrics.bootstrap",
    "rahf.metrics.steering",
    "rahf.motion",
    "rahf.saliency.augsal.pixel_edits",
    "rahf.saliency.energy",
    "rahf.saliency.targets",
    "rahf.steer",
}
#: Of others: what a default install brings, and PyTorch, which notebook 4 does without where it is missing.
OTHERS = {"jax", "numpy", "PIL", "scipy", "torch"}

#: Instead of the settings of the cell tagged "parameters", per notebook.
SMALL = {
    "1_quick_start": {},
    "2_training": dict(MY_PICTURES=40, MY_STEPS=2),
    "3_masks_repair_selection": dict(REPAIRED=4, GROUPS=3),
    "4_guidance_and_reward": dict(GENERATOR_STEPS=2, PROMPTS=2, SAMPLING_STEPS=3, SCALES=(0.1, 0.4), REWARD_STEPS=2),
    "5_generate_steer_finetune": dict(SAMPLING_STEPS=2, ITERATIONS=1, TUNING_STEPS=2, BATCH=2),
    "6_saliency": dict(
        SALIENCY_CONFIG="saliency.py",
        LOOKED_AT=12,
        VIEWERS=3,
        SALIENCY_STEPS=2,
        GENERATOR_STEPS=2,
        PROMPTS=2,
        SAMPLING_STEPS=2,
    ),
    "7_pictures_that_move": dict(SIZE="32x24", SCENE=0, SECONDS=1.0, FPS=10, CRITIC=""),
}
EVERYWHERE = dict(SCENES=48, HELD_OUT=12, STEPS=4)
#: Pictures that each shows at least.
PICTURES = dict(zip(NAMES, (6, 2, 4, 3, 3, 4, 3)))

CRITIC = """
import dataclasses
from tests.helpers.model_maker import SMALLEST
from rahf.config import *

def config():
    lengths = dict(max_prompt_tokens=24, max_target_tokens=28, max_words=20)
    return Config(
        workdir="",
        data=DataConfig(batch_size=8, eval_batch_size=8, augment=None, **lengths),
        model=dataclasses.replace(SMALLEST, t5=dataclasses.replace(SMALLEST.t5, vocab_size=1024)),
        train=TrainConfig(steps=4, eval_examples=8, best_metric="loss/total", best_mode="min"),
    )
"""
GENERATOR = """
import dataclasses
from configs.diffusion import demo as demo_diffusion
from tests.helpers.diffusion_maker import OF_PIXELS
from rahf.config import *

def config():
    whole = demo_diffusion.config()
    data = dataclasses.replace(whole.data, batch_size=8, eval_batch_size=8, max_prompt_tokens=40)
    train = dataclasses.replace(whole.train, eval_examples=8)
    return dataclasses.replace(whole, data=data, model=OF_PIXELS, train=train)
"""

SALIENCY = """
import dataclasses
from tests.helpers import gaze_maker
from rahf.config import *

def config():
    whole = gaze_maker.config("", "")
    train = dataclasses.replace(whole.train, checkpoint_every=100, best_metric="loss/total", best_mode="min")
    return dataclasses.replace(whole, train=train)
"""


def read(name: str) -> dict:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(name: str) -> list[dict]:
    return [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]


def python(source: str) -> ast.Module:
    """A cell as Python: a line magic becomes a call of `magic`."""
    return ast.parse(re.sub(r"^( *)%(.+)$", lambda m: f"{m[1]}magic({m[2]!r})", source, flags=re.MULTILINE))


def execute(source: str, namespace: dict, shown: list) -> None:
    """Runs a cell as a kernel does: what a last expression gives is shown."""
    tree = python(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
        if value is not None:
            shown.append(value)
            for way in ("_repr_png_", "_repr_html_", "__repr__"):
                getattr(value, way, lambda: None)()


def settings_cell(name: str) -> dict:
    (cell,) = (cell for cell in code_cells(name) if "parameters" in cell["metadata"].get("tags", ()))
    return cell


def test_these_are_the_notebooks():
    assert [file.stem for file in FILES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_clean(name):
    """Version 4.5 without outputs, counts, or editor metadata; each cell has an id."""
    notebook = read(name)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["metadata"] == {"kernelspec": kernel, "language_info": {"name": "python"}}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z0-9-]{1,64}", one) for one in ids)
    for cell in notebook["cells"]:
        assert isinstance(cell["source"], list) and "".join(cell["source"]).strip(), cell["id"]
        assert all(line.endswith("\n") for line in cell["source"][:-1]), cell["id"]
        if cell["cell_type"] == "markdown":
            assert set(cell) == {"cell_type", "id", "metadata", "source"}
            continue
        assert cell["cell_type"] == "code"
        assert cell["outputs"] == [] and cell["execution_count"] is None, f"{cell['id']}: clear the outputs"
        assert cell["metadata"] in ({}, {"tags": ["parameters"]}), cell["id"]
    lengths = [len(line.rstrip("\n")) for cell in code_cells(name) for line in cell["source"]]
    assert max(lengths) <= 110


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cells_say_what_runs_where_and_install(name):
    title = read(name)["cells"][0]
    assert title["cell_type"] == "markdown" and title["source"][0].startswith(f"# {name[0]} · ")
    assert "**Runtime.**" in "".join(title["source"])
    assert code_cells(name)[0]["id"] == "install"
    assert code_cells(name)[0]["source"] == code_cells(NAMES[0])[0]["source"]


def install(monkeypatch, there: bool, gpu: bool, works: bool = True, source: str = "") -> list[str]:
    """Runs the first cell on a machine with or without rahf and a GPU; the lines that it gives to pip."""
    asked: list[str] = []
    text = "".join(code_cells(NAMES[0])[0]["source"])
    text = text.replace('SOURCE = ".."', f'SOURCE = "{source}"') if source else text
    find_spec = lambda module: object() if there or (asked and works) else None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(shutil, "which", lambda program: "/usr/bin/nvidia-smi" if gpu else None)
    namespace = {}
    namespace["magic"] = lambda line: asked.append(line.format(**namespace))  # as IPython fills in {wanted}
    execute(text, namespace, [])
    return asked


def test_it_installs_only_where_rahf_is_missing(monkeypatch):
    address = "git+https://example.org/rahf"
    assert install(monkeypatch, there=True, gpu=True) == []
    assert install(monkeypatch, there=False, gpu=False) == ['pip install -q ".."']
    assert install(monkeypatch, there=False, gpu=True) == ['pip install -q "..[gpu]"']
    asked = install(monkeypatch, there=False, gpu=True, source=address)
    assert asked == [f'pip install -q "rahf[gpu] @ {address}"']
    with pytest.raises(RuntimeError, match="rahf is not at '..': write its folder or its address"):
        install(monkeypatch, there=False, gpu=False, works=False)


def imported(tree: ast.Module):
    """Pairs (module, name in it or None) of all imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name):
    for cell in code_cells(name):
        tree = python("".join(cell["source"]))
        for module, what in imported(tree):
            where = f"{cell['id']}: {module} {what or ''}"
            assert not any(part.startswith("_") for part in (*module.split("."), what or "")), where
            top = module.split(".")[0]
            if top in ("rahf", "data_pipelines"):
                assert {module, f"{module}.{what}"} & PUBLIC or (module, what) == ("rahf", None), where
            else:
                assert top in OTHERS | sys.stdlib_module_names, where
        private = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        }
        assert private <= {"_asdict"}, f"{cell['id']}: {private}"  # that of named tuples is public


def test_all_public_names_are_used():
    """A name that no notebook imports need not be kept."""
    trees = (python("".join(cell["source"])) for name in NAMES for cell in code_cells(name))
    used = {f"{module}.{what}" for tree in trees for module, what in imported(tree)}
    assert [name for name in PUBLIC if not any(f"{one}.".startswith(f"{name}.") for one in used)] == []


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A working folder for all notebooks: a later one uses what an earlier one has trained."""
    from data_pipelines.synthetic import prepare

    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "critic.py").write_text(CRITIC)
    (folder / "generator.py").write_text(GENERATOR)
    (folder / "saliency.py").write_text(SALIENCY)
    # As the command draws them, but without starting processes for so few.
    prepare.prepare(folder / "rahf-notebooks/data", train=48, dev=12, test=12, progress=False)
    prepare.prepare(folder / "rahf-notebooks/looked", train=12, dev=12, test=12, viewers=3, progress=False)
    return folder


@pytest.mark.filterwarnings("ignore::rahf.steer.masks.MaskWarning")  # an untrained critic marks everything
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name[0] == "5" else name for name in NAMES]
)
def test_every_cell_runs(name, place, monkeypatch):
    """Slow: the fifth, which compiles gradients of whole samplings."""
    monkeypatch.chdir(place)
    small = dict(CONFIG="critic.py", GENERATOR_CONFIG="generator.py", **EVERYWHERE, **SMALL[name])
    refuse = lambda line: pytest.fail(f"nothing is to be installed: {line}")  # noqa: E731
    namespace = {"__name__": "__main__", "magic": refuse}
    shown: list = []
    for cell in code_cells(name):
        try:
            execute("".join(cell["source"]), namespace, shown)
        except Exception as error:
            error.add_note(f"in cell {cell['id']!r} of {name}")
            raise
        if cell["id"] == settings_cell(name)["id"]:
            settings = {key for key in namespace if key.isupper()}
            trained = set() if name in WITHOUT_TRAINING else {*EVERYWHERE, "CONFIG"}
            assert trained | set(SMALL[name]) | {"WORK"} <= settings  # or large ones would run
            namespace |= {key: value for key, value in small.items() if key in settings}
    assert sum(isinstance(value, Image.Image) for value in shown) >= PICTURES[name]
    assert name in WITHOUT_TRAINING or (place / "rahf-notebooks/demo/checkpoints/best").is_dir()
    check = CHECKS.get(name)
    if check:
        check(namespace, place / "rahf-notebooks")


def check_quick_start(namespace, work):
    """The critic that comes along marks damage where there is damage."""
    photograph, damaged = (namespace[name].heatmap("implausibility") for name in ("of_photograph", "of_damaged"))
    inside = namespace["planted"] > 0.5
    assert damaged[inside].mean() > 2 * max(damaged[~inside].mean(), photograph[inside].mean())


def check_training(namespace, work):
    """Every line of feedback is stored, absent labels are missing, and each prompt is in one split only."""
    labels = namespace["store"].open_split(work / "mine/data", "train")
    counts = namespace["store"].splits(work / "mine/data")
    assert sum(counts.values()) == 40 and min(counts.values()) > 0
    overall_only = [record for record in labels if record.word_labels is None]
    assert overall_only and all(record.implausibility is None for record in overall_only)
    labelled = [(record.scores == record.scores).tolist() for record in overall_only]
    assert labelled == [[False, False, False, True]] * len(overall_only)
    opened = {split: namespace["store"].open_split(work / "mine/data", split) for split in counts}
    prompts = {split: {record.prompt for record in records} for split, records in opened.items()}
    assert not prompts["train"] & prompts["test"] and not prompts["dev"] & prompts["test"]
    started = json.loads((work / "mine/run/start.json").read_text())
    assert "demo" in json.dumps(started)
    assert (work / "mine/after/metrics.json").is_file()


def check_steering(namespace, work):
    """Selection keeps at most one of each group, and every candidate has a reason."""
    manifest = namespace["manifest"]
    assert len(manifest) == 3 * 8 and all(line["reason"] and "true_damage" in line for line in manifest)
    kept = [line["group"] for line in manifest if line["selected"]]
    assert len(set(kept)) == len(kept)
    assert all(result.scores[result.chosen, 0] >= result.scores[0, 0] for result in namespace["results"])


def check_reward(namespace, work):
    """The gradient has moved the knobs of the PyTorch module, where there is PyTorch."""
    assert (work / "demo.rahf").is_file()
    if importlib.util.find_spec("torch") is None:
        assert namespace["developed"] is None
    else:
        assert namespace["developed"].shape == namespace["poor"].shape
        assert float(namespace["develop"].knobs.detach().abs().min()) > 0


def check_fine_tuning(namespace, work):
    """Noise and adapters have moved, the judge has judged at both evaluations, and the folder is one of diffusers."""
    before, after = namespace["plain"].images, namespace["tuned"].images
    assert before.shape == after.shape == (4, 32, 32, 3) and np.abs(before - after).max() > 0
    assert namespace["steered"].energy.shape == (2, 1)
    rows = [json.loads(line) for line in (work / "tuned-untrained/metrics.jsonl").read_text().splitlines()]
    assert sum("eval/reward/held_out" in row for row in rows) == 2
    first, second = (row["loss/pull"] for row in rows if "loss/pull" in row)
    assert 0 <= first < second  # adapters begin at nothing, which rounding may blur
    assert (work / "exported-untrained/model_index.json").is_file()


def check_saliency(namespace, work):
    """The target and what is to be avoided do not meet; all pictures were judged; the page is there."""
    assert not (namespace["target"] * namespace["avoided"]).any() and namespace["avoided"].any()
    measured = namespace["measured"]
    assert len(measured["plain"]) == len(measured["steered"]) == 2
    assert np.isfinite(measured["steered"].to_arrays()["values"]).all()
    assert not np.array_equal(namespace["plain"].uint8, namespace["steered"].uint8)
    assert (work / "target.html").is_file() and (work / "saliency-report" / "metrics.json").is_file()


def check_motion(namespace, work):
    """The loop has no seam, the pull moved the pixel to the right and back towards rest, and the page is whole."""
    steps, path = namespace["steps"], namespace["path"]
    assert len(steps) == 50 and steps[-1] <= np.median(steps[:-1])
    assert path[29] > 3 and max(np.abs(path[-15:])) < max(np.abs(path))
    assert "</html>" in (work / "motion/touch.html").read_text()
    report = json.loads((work / "motion/report.json").read_text())
    assert len(report["saliency"]["change"]) == 10 and "scores" not in report


CHECKS = dict(
    zip(
        NAMES,
        (
            check_quick_start,
            check_training,
            check_steering,
            check_reward,
            check_fine_tuning,
            check_saliency,
            check_motion,
        ),
    )
)
