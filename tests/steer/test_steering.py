"""`rahf steering`: systems from the same noise, judges that took part are marked, pictures are drawn once."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.config import FeedbackConfig
from rahf.core.errors import ArgumentError, NotPredicted
from rahf.critic.families import Outputs
from rahf.diffusion.generated import GeneratedImages
from rahf.diffusion.latents.doodl import DoodlOptions, DoodlResult
from rahf.diffusion.latents.sgool import SaliencyOptions, heatmap_column
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.steer import judges, steering_files, steering_report, systems
from rahf.steer.judges import Judge
from rahf.steer.steering_files import SteeringOptions
from rahf.steer.steering_report import Column, Results
from rahf.steer.systems import System, SystemOptions
from tests.helpers import stable_diffusion_maker as maker

PROMPTS = "Prompts,Category\na red cat,Colors\ntwo dogs,Counting\n,Counting\nthree dogs,Counting\n"


class Colour:
    """A critic that likes one colour: all scores are its mean, both heatmaps are it."""

    params = {}

    def __init__(self, channel, model_id):
        self.channel, self.model_id = channel, model_id

    def tokens(self, prompts):
        count = 1 if isinstance(prompts, str) else len(prompts)
        return np.ones((count, 3), np.int32), np.ones((count, 3), np.bool_)

    def scores(self, pixels, text_ids, text_mask, params=None):
        pixels = pixels / 255.0 if pixels.dtype == np.uint8 else pixels
        return jnp.repeat(pixels[..., self.channel].mean((1, 2))[:, None], 4, 1)

    def heatmaps(self, pixels, text_ids, text_mask, params=None):
        return jnp.repeat(pixels[..., self.channel : self.channel + 1], 2, -1)


RED, GREEN = Colour(0, "red"), Colour(1, "green")


def even(name, level, took_part=(), calls=None):
    """A system that draws evenly: `level`, and the seed in the last place."""

    def draw(prompts, seeds, progress):
        progress(1.0)
        if calls is not None:
            calls.append((name, list(prompts), list(seeds)))
        return np.stack([np.full((8, 8, 3), level + seed, np.uint8) for seed in seeds])

    return System(name, {"method": name, "level": level}, draw, 2.0, dict(took_part))


@pytest.fixture
def drawn_by(monkeypatch):
    """Sets the systems that are compared."""
    return lambda *made: monkeypatch.setattr(systems, "systems", lambda *arguments: list(made))


def test_files(tmp_path, drawn_by):
    """Every picture once; a table in which the judge that guided is last and marked; nothing is drawn twice."""
    calls = []
    drawn_by(even("plain", 51, calls=calls), even("doodl", 102, {"red": "guided"}, calls))
    (tmp_path / "drawbench.csv").write_text(PROMPTS)
    files, out = [tmp_path / "drawbench.csv"], tmp_path / "out"
    options = SteeringOptions(("plain", "doodl"), guide=RED, judges=(GREEN,), seeds=(3, 4), batch_size=4)
    work, results = steering_files.steering_files("model", files, out, options)
    assert [len(prompts) for _, prompts, _ in calls] == [4, 4, 4, 4] and calls[1][1] == ["three dogs"] * 4
    assert work.refused == 1 and work.samplings == 24
    tree = json.loads((out / "evaluation.json").read_text())
    assert [column["took_part"] for column in tree["meta"]["columns"]] == [{}] * 4 + [{"doodl": "guided"}] * 4
    assert tree["meta"]["lists"]["drawbench"]["categories"] == {"Colors": 1, "Counting": 2}
    green = "Colour overall"
    counting = tree["summary"]["Counting"][green]
    assert counting["plain"]["mean"] == pytest.approx(54.5 / 255) and counting["plain"]["prompts"] == 2
    assert counting["doodl"]["difference"] == pytest.approx(51 / 255) and counting["doodl"]["wins"] == 1
    row = next(r for r in tree["pictures"] if r["system"] == "doodl" and r["prompt"] == "two dogs" and r["seed"] == 4)
    assert row["picture"] == "doodl/drawbench/0001-two-dogs-seed4.png" and row["category"] == "Counting"
    assert row["scores"][green] == pytest.approx(106 / 255, abs=1e-6)
    with Image.open(out / row["picture"]) as image:
        assert np.asarray(image).min() == 106
        assert json.loads(image.text["rahf"]) | {"method": "doodl", "seed": 4} == json.loads(image.text["rahf"])
    table = (out / "table.md").read_text()
    assert (
        "line 4: its prompt is empty" in table
        and "| doodl † |" in table
        and "Colour (2) overall — doodl: guided" in table
    )
    assert table.index("Colour overall (held out)") < table.index("Colour (2) overall (took part)")
    assert len(list((out / "boxes").iterdir())) == 8
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size == (6 + 2 * 14, 22 + 3 * 30)
    # Again: one picture is missing, one is of another level, one is cut off.
    place = out / "plain" / "drawbench"
    (place / "0000-a-red-cat-seed3.png").unlink()
    (place / "0001-two-dogs-seed3.png").write_bytes((out / row["picture"]).read_bytes())
    data = (place / "0002-three-dogs-seed4.png").read_bytes()
    (place / "0002-three-dogs-seed4.png").write_bytes(data[: len(data) - 30])
    calls.clear()
    again, results_again = steering_files.steering_files("elsewhere", files, out, options)
    assert calls == [("plain", ["a red cat", "two dogs", "three dogs"], [3, 3, 4])]
    np.testing.assert_array_equal(results_again.scores["plain"], results.scores["plain"])
    assert steering_files.describe(again)[1].startswith("plain: 3 of 6 pictures to draw, each about 2 samplings")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").touch()
    with pytest.raises(ArgumentError, match="holds no options.json"):
        steering_files.plan("model", files, tmp_path / "other", options)


GUIDE = Judge("red", "red", RED, "red", ("overall",))
DOODL = DoodlOptions(iterations=1, num_inference_steps=2, clip=1.0, grad_scale=1e4, perturbation=0.0)
STEERED = SystemOptions(4, guidance=GuidanceOptions(scale=1.0), doodl=DOODL, salient=SaliencyOptions(0.5))


class Still(Pipeline):
    """Draws grey, and notes what it is called with."""

    def __call__(self, prompts, **fields):
        self.calls.append((prompts, fields))
        return GeneratedImages(jnp.full((len(prompts), 8, 8, 3), 0.5))


def test_systems(monkeypatch):
    """All draw the same prompts from the noise of the same seeds; the guide's energy is of each picture's prompt."""
    tiny = maker.pipeline(model=maker.FLAT)
    pipe = Still(tiny.config, tiny.params, tiny.tokenizer)
    pipe.calls = calls = []

    def optimised(pipe, prompts, energy, saliency=None, *, seeds, options, progress, salient=None, **fields):
        calls.append((prompts, dict(seeds=seeds, energy=energy, options=options, saliency=saliency, salient=salient)))
        progress(1, 2, None)
        return DoodlResult(np.full((len(prompts), 8, 8, 3), 0.25, np.float32), None, None, {})

    monkeypatch.setattr(systems, "doodl", optimised)
    monkeypatch.setattr(systems, "sgool", optimised)
    made = systems.systems(pipe, systems.METHODS, [("again", pipe)], GUIDE, STEERED)
    assert [one.name for one in made] == ["plain", "guidance", "doodl", "sgool", "again"]
    assert [dict(one.took_part) for one in made] == [{}] + [{"red": "guided"}] * 3 + [{}]
    assert [one.samplings for one in made] == [1, 3, 5, 6, 1]
    shares = []
    drawn = [one.draw(["cat", "dog"], [5, 6], shares.append) for one in made]
    assert [images.max() for images in drawn] == [128, 128, 64, 64, 128] and drawn[2].dtype == np.uint8
    assert shares == [1.0, 0.5, 0.5]
    assert all(prompts == ["cat", "dog"] and fields["seeds"] == [5, 6] for prompts, fields in calls)
    fields = [fields for _, fields in calls]
    assert "energy" not in fields[0] and fields[1]["options"].scale == 1.0 and fields[2]["options"] is DOODL
    pictures = np.stack([np.full((8, 8, 3), 0.25, np.float32), np.ones((8, 8, 3), np.float32)])
    for one in fields[1:4]:
        np.testing.assert_allclose(one["energy"](pictures), [0.75, 0], atol=1e-6)
    np.testing.assert_allclose(fields[3]["saliency"](pictures), pictures[..., 0])
    assert fields[3]["salient"].weight == 0.5 and fields[2]["saliency"] is None
    assert json.dumps(steering_files.plain_json([one.parameters for one in made]), allow_nan=False)


def test_a_guide_without_heatmaps_says_not_where_people_look():
    """The first one that is predicted counts, of a CLIP the second of all; none is refused before anything is drawn."""
    clip = Colour(0, "clip")
    assert heatmap_column(clip) == 0 and heatmap_column(clip, "misalignment") == 1
    clip.outputs = Outputs(("alignment",), ("misalignment",), False)
    assert heatmap_column(clip) == 1
    with pytest.raises(NotPredicted, match="implausibility"):
        heatmap_column(clip, "implausibility")
    clip.outputs = Outputs(("alignment",), (), False)
    guide = GUIDE._replace(model=clip)
    with pytest.raises(NotPredicted, match="predicts no heatmap.*name another"):
        systems.systems(maker.pipeline(model=maker.FLAT), ("plain", "sgool"), (), guide, STEERED)


@pytest.mark.slow  # compiles four samplings with their gradients
def test_steered_systems_draw_what_the_guide_likes():
    made = systems.systems(maker.pipeline(model=maker.FLAT), systems.METHODS, (), GUIDE, STEERED)
    red = [one.draw(["cat", "dog"], [5, 6], lambda share: None)[..., 0].mean() for one in made]
    assert min(red[1:]) > red[0]


def test_who_took_part(tmp_path, drawn_by):
    """A critic that a model learned from, by its id; a chooser that the user names."""
    drawn_by(even("plain", 1), even("draft", 2, {"red": "trained it"}), even("filtered", 3))
    (tmp_path / "list.txt").write_text("a cat\n")
    options = SteeringOptions(judges=(RED, GREEN), took_part=(("filtered", "Colour (2)"),))
    arguments = "model", [tmp_path / "list.txt"], tmp_path / "out"
    columns = steering_files.plan(*arguments, options).columns
    assert {column.judge: column.took_part for column in columns} == {
        "red": {"draft": "trained it"},
        "green": {"filtered": "declared"},
    }
    assert "held-out judges: none; add one with --judges" in steering_files.describe(
        steering_files.plan(*arguments, options)
    )
    for took_part, message in ((("x", "red"), "no system 'x'"), (("draft", "blue"), "blue is none of the judges")):
        with pytest.raises(ArgumentError, match=message):
            steering_files.plan(*arguments, dataclasses.replace(options, took_part=(took_part,)))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"judges": ()}, "judges: expected at least one"),
        ({"seeds": (1, 1)}, "seeds: expected different"),
        ({"limit": 0}, "limit: expected at least 1"),
        ({"methods": ("doodl",)}, "doodl needs a guide"),
        ({"methods": ("best",)}, "expected some of plain"),
        ({"models": (("plain", "m"),)}, "'plain' occurs twice"),
        ({"models": (("../up", "m"),)}, "'../up' is no name"),
    ],
)
def test_what_is_refused(changed, message, tmp_path):
    (tmp_path / "list.txt").write_text("a cat\n")
    options = SteeringOptions(judges=(RED,))
    with pytest.raises(ArgumentError, match=message):
        steering_files.plan("model", [tmp_path / "list.txt"], tmp_path / "out", dataclasses.replace(options, **changed))


def test_names_of_models_and_scores(tmp_path, tiny_critic, monkeypatch):
    assert judges.model_and_scores("runs/a:alignment,overall") == ("runs/a", ("alignment", "overall"))
    assert judges.model_and_scores("C:runs") == ("C:runs", ())
    (tmp_path / "a:overall").touch()
    assert judges.model_and_scores(str(tmp_path / "a:overall")) == (str(tmp_path / "a:overall"), ())
    monkeypatch.setattr(judges.loading, "load", {"runs/tiny": tiny_critic}.get)
    both = judges.judges(["runs/tiny:alignment", "runs/tiny:overall", GREEN])
    assert [one.columns for one in both] == [["tiny alignment", "tiny overall"], [f"Colour {s}" for s in judges.SCORES]]
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    prompts = ["a cat", "a dog"]
    expected = [tiny_critic.score(list(pictures), prompts, score) for score in ("alignment", "overall")]
    np.testing.assert_allclose(both[0].measure(pictures, prompts).T, expected, atol=1e-6)
    with pytest.raises(ArgumentError, match="has no score cosine; its scores: plausibility"):
        judges.judge("runs/tiny:cosine")
    steers, judge = judges.guide(RED)
    assert steers.scores == ("overall",) and judge.scores == judges.SCORES


def test_report_without_a_held_out_judge():
    """By hand: six prompts, two systems; a category with a bar in its name, too small for an interval."""
    columns = (Column("red overall", "red", "overall", {"b": "guided"}),)
    scores = {"a": np.array([[0.1], [0.2]] + [[0.3]] * 4), "b": np.array([[0.2], [0.3]] + [[0.4]] * 3 + [[0.2]])}
    groups = steering_report.groups_of([("l", "x|y")] * 2 + [("l", "")] * 4)
    assert {name: rows.tolist() for name, rows in groups.items()} == {"all prompts": list(range(6)), "x|y": [0, 1]}
    results = Results(("a", "b"), columns, scores, groups, 1)
    numbers = steering_report.summary(results, 200)
    overall = numbers["all prompts"]["red overall"]["b"]
    assert overall["difference"] == pytest.approx(0.4 / 6) and overall["wins"] == pytest.approx(5 / 6)
    low, high = overall["difference_interval"]
    assert -0.1 <= low < 0.4 / 6 < high <= 0.1 + 1e-9
    table = steering_report.markdown(results, numbers)
    assert "No held-out judge" in table and "| x\\|y | 2 | 0.1500 | 0.2500; +0.1000 |" in table
    assert list(steering_report.groups_of([("l", "x"), ("m", "x")])) == ["all prompts", "l", "l: x", "m", "m: x"]


def test_command(monkeypatch, tmp_path, capsys, drawn_by):
    """Every option reaches its place; a refused line is told by the exit code; a dry run writes nothing."""
    seen = []
    plan = steering_files.plan
    monkeypatch.setattr(judges.loading, "load", {"red": RED, "green": GREEN}.get)
    monkeypatch.setattr(steering_files, "plan", lambda *a: [seen.append(a), plan(*a)][1])
    drawn_by(even("plain", 1), even("sgool", 2, {"red": "guided"}))
    file, out = tmp_path / "list.csv", tmp_path / "out"
    file.write_text(PROMPTS)
    command = f"steering model --prompts {file} --out {out} --guide red --judges green:overall --seeds 1 2 --limit 2"
    numbers = (
        "--systems plain sgool --models x=m --steps 7 --guidance-scale 3 --strength 0.2 --recurrences 2 --iterations 5 "
        "--sampling-steps 4 --clip 0.1 --saliency gaze --weight 0.25 --batch-size 3 "
        "--took-part plain=green --vary-seeds"
    )
    assert cli.main([*command.split(), *numbers.split(), "--dry-run"]) == 3
    assert not out.exists() and "plain: 4 of 4 pictures to draw" in capsys.readouterr().out
    options = seen[0][3]
    seeds = [[one.seed for one in row] for row in plan(*seen[0]).drawings]
    assert options.vary_seeds and seeds == [[1, 2], [1001, 1002]]
    assert options.models == (("x", "m"),) and options.seeds == (1, 2) and options.batch_size == 3
    assert options.methods == ("plain", "sgool") and options.took_part == (("plain", "green"),)
    doodl = DoodlOptions(5, 4, 3.0, clip=0.1)
    guidance = GuidanceOptions(0.2, recurrences=2)
    expected = SystemOptions(7, 3.0, None, None, None, guidance, doodl, SaliencyOptions(0.25), "gaze")
    assert options.system == expected
    assert cli.main(command.split()) == 3
    printed = capsys.readouterr()
    assert "held out" in printed.out and "table.md" in printed.out and "2 prompts, 2 seeds" in printed.out
    assert seen[-1][3].methods == systems.METHODS
    assert cli.main([*command.split(), "--models", "x"]) == 1
    assert "expected NAME=MODEL, found 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["", "draft", "chosen"])
def test_who_took_part_in_training(method):
    """The critics of the rewards, unless pictures were chosen before; and the held-out one: it chose a checkpoint."""
    pipe = maker.pipeline()
    feedback = FeedbackConfig(method=method, critics=("no/guide",), held_out="no/judge", chosen="best.jsonl")
    pipe.config = dataclasses.replace(pipe.config, feedback=feedback)
    took_part, notes = systems._training(pipe)
    chose = {"no/judge": "chose its checkpoint"}
    assert took_part == {"": {}, "draft": {"no/guide": "trained it", **chose}, "chosen": chose}[method]
    assert any("best.jsonl: name who chose" in note for note in notes) == (method == "chosen")
