"""Pictures with and without a target, judged: what is compared with what, the table, and the files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.config import GazeFusionConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion import controlnet
from rahf.diffusion.generated import GeneratedImages
from rahf.saliency.gazefusion.evaluation import GUIDED, UNCONDITIONED, Target, Ways, evaluate
from rahf.saliency.maps import SaliencyMap
from rahf.steer import gazefusion_files
from rahf.training.model_folder import write_model
from tests.helpers import stable_diffusion_maker as maker

SIZE = (8, 8)


def target(name="left", avoid=None):
    wanted = np.zeros(SIZE, np.float32)
    wanted[2:6, 1:3] = 0.5
    return Target(name, wanted, avoid)


class Painter:
    """Draws noise of the seed; with a target, that map at the given scale over it."""

    controlnet = "there"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, seeds, height, width, control_image=None, energy=None, **fields):
        self.calls.append((len(prompts), list(seeds), fields))
        images = np.stack([np.random.default_rng(seed).uniform(0, 0.2, (height, width, 3)) for seed in seeds])
        if control_image is not None:
            strength = fields["controlnet_conditioning_scale"]
            images = np.maximum(images, strength * control_image[..., None])
        return GeneratedImages(jnp.asarray(images, jnp.float32))


class Bright:
    """People look where it is bright."""

    model_id, params = "bright", ()

    def __call__(self, pictures):
        bright = [picture.mean(-1) + 1.0 for picture in pictures]
        return [SaliencyMap("", one.shape, np.log(one / one.sum()).astype(np.float32)) for one in bright]


class Even:
    """A critic that likes brightness."""

    def score(self, pictures, prompts, name):
        assert name == "alignment" and len(pictures) == len(prompts)
        return np.array([picture.mean() / 255 for picture in pictures], np.float32)


def test_scales_against_unconditioned():
    """Three drawings, two targets, batches of two: all ways share seeds, and the stronger one is closer."""
    avoid = np.zeros(SIZE, bool)
    avoid[:, 6:] = True
    right = Target("right", np.eye(8, dtype=np.float32) * ~avoid, avoid)
    kept, pipe = {}, Painter()
    keep = lambda way, one, pictures: kept.update({(way, one and one.name): pictures})  # noqa: E731
    ways = Ways(sampling=dict(batch_size=2, num_inference_steps=3))
    result = evaluate(pipe, ["a", "b", "c"], [target(), right], Bright(), (4,), ways, Even(), keep)
    assert (result.drawings, result.targets) == (3, 2)
    assert list(result.metrics) == [UNCONDITIONED, "scale 1", "scale 0.7"]
    assert [len(pictures) for pictures in kept.values()] == [3] * 5
    assert {count for count, _, _ in pipe.calls} == {2} and all(c[2]["num_inference_steps"] == 3 for c in pipe.calls)
    for name, sign in (("cc", 1), ("nss", 1), ("sim", 1), ("kld", -1), ("avoided", -1)):
        one, weaker, free = (sign * result.metrics[way][name] for way in ("scale 1", "scale 0.7", UNCONDITIONED))
        assert one > weaker > free, name
        difference = result.differences["scale 1"][name]
        assert difference.value == pytest.approx(sign * (one - free)) and difference.low <= difference.value
    assert result.metrics["scale 1"]["alignment"] > result.metrics[UNCONDITIONED]["alignment"]
    # The mean over the targets of one drawing: regions to be avoided are of the second target alone.
    (bright,) = Bright()([kept["scale 1", "right"][0]])
    assert 0 < np.exp(bright.log_density)[avoid].sum() < 0.25


def test_a_map_for_each_prompt():
    """Every picture is drawn for, and judged by, the map of its prompt, whatever the batches; seeds are neighbours."""
    own = np.stack([np.roll(target().map, shift, 1) for shift in (0, 3, 5)])
    ways = Ways(scales=(1.0,), sampling=dict(batch_size=4))
    kept = {}
    keep = lambda way, one, pictures: kept.update({way: (one, pictures)})  # noqa: E731
    result = evaluate(Painter(), ["a", "b", "c"], [Target("own", own)], Bright(), (0, 1), ways, keep=keep)
    one, pictures = kept["scale 1"]
    np.testing.assert_array_equal(one.map, (own / own.max()).repeat(2, 0))
    assert all((picture[wanted > 0] > 250).all() for picture, wanted in zip(pictures, one.map))
    turned = evaluate(Painter(), ["a", "b", "c"], [Target("own", own[::-1])], Bright(), (0, 1), ways)
    assert result.metrics["scale 1"] == pytest.approx(turned.metrics["scale 1"], abs=0.05, nan_ok=True)
    assert result.metrics["scale 1"]["cc"] > result.metrics[UNCONDITIONED]["cc"] + 0.5
    with pytest.raises(ArgumentError, match="target own: expected one map .* each of 2 prompts, found shape .3, 8, 8"):
        evaluate(Painter(), ["a", "b"], [Target("own", own)], Bright(), ways=ways)
    with pytest.raises(ArgumentError, match="own, prompt 1: .*0 everywhere|own, prompt 1.*"):
        evaluate(Painter(), ["a", "b", "c"], [Target("own", own * np.array([1, 0, 1])[:, None, None])], Bright())


def test_guidance_is_a_way_of_its_own_and_has_another_judge():
    ways = Ways(scales=(), guide=Bright())
    with pytest.raises(ArgumentError, match="bright also guides, so it would judge its own work"):
        evaluate(Painter(), ["a"], [target()], Bright(), ways=ways)
    judge = Bright()
    judge.model_id = "another"
    pipe = Painter()
    pipe.controlnet = None
    result = evaluate(pipe, ["a"], [target()], judge, ways=ways)
    assert list(result.metrics) == [UNCONDITIONED, GUIDED] and "options" in pipe.calls[1][2]
    assert np.isnan(result.metrics[GUIDED]["alignment"]) and np.isnan(result.metrics[GUIDED]["avoided"])


def test_what_makes_no_sense():
    everywhere = np.ones(SIZE, bool)
    cases = {
        "at least one prompt": dict(prompts=[]),
        "nothing to compare": dict(ways=Ways(scales=())),
        "batch_size: expected at least 1, found 0": dict(ways=Ways(sampling=dict(batch_size=0))),
        "different ones": dict(ways=Ways(scales=(1.0, 1.0))),
        "different names": dict(wanted=[target(), target()]),
        "maps of one size": dict(wanted=[target(), Target("b", np.ones((4, 4)))]),
        "inside regions that are to be avoided": dict(wanted=[target(avoid=everywhere)]),
        "0 everywhere": dict(wanted=[Target("empty", np.zeros(SIZE))]),
    }
    for match, changed in cases.items():
        arguments = dict(prompts=["a"], wanted=[target()], ways=Ways()) | changed
        with pytest.raises(ArgumentError, match=match):
            evaluate(Painter(), arguments["prompts"], arguments["wanted"], Bright(), ways=arguments["ways"])
    alone = Painter()
    alone.controlnet = None
    with pytest.raises(ArgumentError, match="the pipeline has no ControlNet"):
        evaluate(alone, ["a"], [target()], Bright())


@pytest.fixture
def maps(tmp_path):
    """Two target maps, the second with regions to be avoided beside it."""
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 200
    for name in ("top", "sky.line"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.fromarray(255 - np.minimum(pixels, 1) * 255).save(tmp_path / "sky.line.avoid.png")
    return tmp_path


def test_a_folder_is_a_map_for_each_prompt(maps, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    with pytest.raises(ArgumentError, match="own: holds no target map"):
        gazefusion_files.read_target(folder, SIZE)
    for name in ("001.png", "000.png"):
        (folder / name).write_bytes((maps / "top.png").read_bytes())
    read = gazefusion_files.read_target(folder, SIZE)
    assert (read.name, read.map.shape, read.avoid) == ("own", (2, 8, 8), None)
    (folder / "000.avoid.png").write_bytes((maps / "top.png").read_bytes())
    with pytest.raises(ArgumentError, match="000.avoid.png. belong to a map for all prompts"):
        gazefusion_files.read_target(folder, SIZE)


def test_regions_beside_a_map(maps):
    assert gazefusion_files.read_target(maps / "top.png", SIZE).avoid is None
    read = gazefusion_files.read_target(maps / "sky.line.png", SIZE)
    assert read.name == "sky.line" and read.map.max() == 1 and read.map[4:].max() == 0
    assert read.avoid[4:].all() and not read.avoid[:4].any()
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(maps / "top.avoid.png")
    with pytest.raises(ArgumentError, match="inside regions that are to be avoided"):
        gazefusion_files.read_target(maps / "top.png", SIZE)
    Image.fromarray(np.full((8, 16), 255, np.uint8)).save(maps / "top.avoid.png")
    with pytest.raises(ArgumentError, match="regions of another size: 16 x 8, the map top.png has 16 x 16"):
        gazefusion_files.read_target(maps / "top.png", SIZE)


def test_the_command(maps, saliency_run, capsys):
    """A tiny run whose ControlNet does nothing yet: its row is that of the unconditioned pictures."""
    pipe, run, out = maker.pipeline(model=maker.FLAT), maps / "run", maps / "out"
    network = controlnet.initial(pipe.config.model, pipe.params["unet"])
    model = GazeFusionConfig(image_size=8, pipeline=pipe.config.model, controlnet=network.config)
    params = jax.device_get({"base": pipe.params, "controlnet": network.params})
    write_model(run, dataclasses.replace(pipe.config, model=model), params, pipe.tokenizer, {"license": "none"})
    command = ["gazefusion", "evaluate", str(run), "--prompt", "cat", "--seeds", "0", "1", "--out", str(out),
               "--maps", str(maps / "sky.line.png"), "--scales", "1", "--judge", str(saliency_run),
               "--steps", "1", "--guidance-scale", "1", "--batch-size", "2"]  # fmt: skip
    assert cli.main(command) == 0
    results = json.loads((out / "evaluation.json").read_text())
    ways = results["ways"]
    assert list(ways) == ["unconditioned", "scale 1"] and (results["drawings"], results["targets"]) == (2, 1)
    for name, values in ways["scale 1"].items():
        assert values["value"] == ways["unconditioned"][name]["value"]
        assert (values["minus_unconditioned"] == [0, 0, 0]) == (name != "alignment")
    assert ways["scale 1"]["alignment"]["value"] is None and 0 < ways["scale 1"]["avoided"]["value"] < 1
    assert results["meta"]["prompts"] == ["cat"] and results["meta"]["controlnet"] == str(run)
    printed = capsys.readouterr().out
    assert "unconditioned" in printed and "scale 1" in printed and "alignment" not in printed
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert files == [
        "contact_sheet.png",
        *(f"scale-1/sky.line/000-seed{seed}.png" for seed in (0, 1)),
        *(f"unconditioned/000-seed{seed}.png" for seed in (0, 1)),
    ]
    assert cli.main(command) == 1  # the folder is not empty


def test_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="expected a Stable Diffusion pipeline, found dict"):
        gazefusion_files.evaluate_files({}, ["a"], [], tmp_path / "out")


def test_the_page_command(tmp_path, capsys):
    page = tmp_path / "target.html"
    assert cli.main(["gazefusion", "page", "--out", str(page), "--size", "64x32"]) == 0
    assert '"width": 64, "height": 32, "name": "target"' in page.read_text()
    assert cli.main(["gazefusion", "page", "--out", str(page), "--size", "64"]) == 1
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err
