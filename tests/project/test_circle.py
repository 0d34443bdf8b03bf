"""Generate, criticise, guide, repair, select, measure: the study's program on tiny networks, and inpainting."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from rahf import diffusion
from rahf.config import Config, DataConfig, PixelDiffusionConfig, to_json
from rahf.core.batch import SCORES
from rahf.critic.networks import build
from rahf.diffusion import pixel_generator as generator_lib
from rahf.diffusion import schedules
from rahf.diffusion.networks.pixel_unet import TextToImage
from rahf.diffusion.sample import GuidanceOptions, denoisers, universal_guidance
from rahf.nn import functional
from rahf.steer import painter
from rahf.text import load_tokenizer
from rahf.training.checkpoint import Checkpointer
from tests.helpers.diffusion_maker import TINY
from tests.helpers.model_maker import SMALLEST

#: Cheap to compile.
STRONG = GuidanceOptions(scale=2.0, window=(0, 1), through_denoiser=False, remat=False)
ROOT = pathlib.Path(__file__).resolve().parents[2]


def untrained(folder: pathlib.Path, config: Config, tokenizer: pathlib.Path, seed: int) -> pathlib.Path:
    """A run directory of a network whose outputs vary: no kernel is 0, and heads are not almost constant."""
    folder.mkdir(parents=True)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    (folder / "config.json").write_text(to_json(config))
    rng = np.random.default_rng(seed)
    is_generator = isinstance(config.model, PixelDiffusionConfig)
    network = (lambda: TextToImage(config.model)) if is_generator else build.build(config.model)
    flat = functional.flatten(functional.init(network, seed))
    for path, value in flat.items():
        if path.endswith("kernel") and not np.asarray(value).any():
            flat[path] = np.asarray(rng.normal(size=value.shape) * 0.3, np.float32)
        elif path.endswith("out/kernel") and path.startswith(("heatmap_", "score_")):
            flat[path] = value * 20
    checkpointer = Checkpointer(folder, keep=1)
    checkpointer.save_best(3, functional.unflatten(flat), {"loss/total": 0.0})
    checkpointer.close()
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_data):
    """Folders of an untrained generator and of two critics."""
    folder, tokenizer = tmp_path_factory.mktemp("circle"), tiny_data / "tokenizer.model"
    data = DataConfig(path=str(tiny_data), max_prompt_tokens=24, max_target_tokens=28, max_words=20)
    t5 = dataclasses.replace(TINY.t5, vocab_size=load_tokenizer(tokenizer).vocab_size + 5)
    heatmap_head = dataclasses.replace(SMALLEST.heatmap_head, prior=0.4)
    configs = {
        "generator": (dataclasses.replace(TINY, t5=t5), 0),
        "critic": (dataclasses.replace(SMALLEST, t5=t5, heatmap_head=heatmap_head), 1),
        "held_out": (dataclasses.replace(SMALLEST, t5=t5, heatmap_head=heatmap_head), 2),
    }
    return {
        name: untrained(folder / name, Config(model=model, data=data), tokenizer, seed)
        for name, (model, seed) in configs.items()
    }


@pytest.fixture(scope="module")
def generator(models):
    return diffusion.load(models["generator"])


@pytest.fixture
def circle(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import circle

    return circle


@pytest.fixture
def options(circle, models, tiny_data, tmp_path):
    paths = {name: str(folder) for name, folder in models.items()} | {
        "data": str(tiny_data),
        "out": str(tmp_path / "out"),
    }
    return circle.Options(**paths, prompts=2, num_inference_steps=2, batch=3, through_denoiser=False)


@pytest.mark.filterwarnings("ignore:the mask covers")  # untrained critics mark most of a picture
def test_the_whole_study_twice(circle, options, capsys, tmp_path):
    result = circle.run(options)
    parts = {one["name"]: one for one in result["results"]}
    assert list(parts) == ["guidance", "repair, best of 4", "repair, any of 4", "selection, best of 8"]
    for one in parts.values():
        for critic in ("critic", "held out"):
            assert set(one[critic]) == set(SCORES)
            for score in one[critic].values():
                assert score["difference"] == pytest.approx(score["after"] - score["before"], abs=2e-4)
                assert score["interval"][0] <= score["difference"] <= score["interval"][1]
    # The critic chose, so it cannot like the result less; of different pictures, the best of 8 is above their mean.
    assert parts["repair, best of 4"]["critic"]["plausibility"]["difference"] >= 0
    assert parts["repair, best of 4"]["without a mask"] < 2 and parts["repair, any of 4"]["prompts"] == 2
    assert parts["selection, best of 8"]["critic"]["overall"]["difference"] > 0
    assert parts["guidance"]["critic"]["overall"]["after"] != parts["guidance"]["critic"]["overall"]["before"]
    out = tmp_path / "out"
    assert json.loads((out / "circle.json").read_text()) == json.loads(json.dumps(result))
    rows = (out / "table.md").read_text().splitlines()
    assert len(rows) == 2 + 4 * 4 and rows[2].startswith("| guidance | plausibility |") and "**overall**" in rows[5]
    assert sorted(path.name for path in out.iterdir()) == [
        "circle.json", "circle.png", "guidance.png", "repair.png", "selection.png", "table.md"
    ]  # fmt: skip
    again = circle.run(dataclasses.replace(options, out=str(tmp_path / "again"), only=("guidance",)))
    assert again["results"] == result["results"][:1]
    assert (tmp_path / "again" / "guidance.png").read_bytes() == (out / "guidance.png").read_bytes()
    np.testing.assert_array_equal(Image.open(out / "circle.png").convert("L").size[0], 6 * 142 + 10)


def test_what_cannot_be_studied(circle, options, tiny_data, tmp_path):
    with pytest.raises(ValueError, match="the critic that guides; give one trained with another seed"):
        circle.Study(dataclasses.replace(options, held_out=options.critic))
    study = circle.Study(dataclasses.replace(options, prompts=50))
    with pytest.raises(ValueError, match="--prompts 50: .* distinct prompts in its split 'test'; ask for fewer"):
        study.prompts()
    with pytest.raises(ValueError, match="--prompts 50: .* prompts with damage; ask for fewer"):
        list(circle.damaged(study))
    study.options = dataclasses.replace(options, data=str(tmp_path))
    with pytest.raises(ValueError, match="truth-test.jsonl is missing: repair needs scenes whose damage is known"):
        list(circle.damaged(study))


def test_paired_differences_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import circle_report

    before = np.zeros((3, 4))
    after = before + 0.25
    after[:, 1] = [0.1, -0.1, 0.3]
    by_score = circle_report.paired(before, after)
    same = {"before": 0, "after": 0.25, "difference": 0.25, "gained": 1, "interval": [0.25, 0.25]}
    assert by_score["plausibility"] == same  # equal differences leave nothing to chance
    # Of the 27 resamples of three prompts one has three times -0.1 (3.7%), one three times 0.3.
    alignment = {"before": 0, "after": 0.1, "difference": 0.1, "gained": 0.6667, "interval": [-0.1, 0.3]}
    assert by_score["alignment"] == alignment
    comparison = circle_report.Comparison("something", "alignment", np.stack([before] * 2), np.stack([after] * 2))
    row = "|  | **alignment** | .000 → .100 | +0.100 (-0.100 … +0.300) | .000 → .100 | +0.100 (-0.100 … +0.300) | 67% |"
    assert circle_report.table([comparison]).splitlines()[3] == row


def test_inpainting_keeps_what_is_known(generator):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 4:10, 4:10] = masks[1, :, 8:] = True
    painted = generator.inpaint(pictures, masks, ["a red circle", "a blue cross"], [3, 4], num_inference_steps=4)
    assert painted.energy is None and painted.images.shape == pictures.shape
    np.testing.assert_array_equal(painted.uint8[~masks], pictures[~masks])
    assert (painted.uint8[masks] != pictures[masks]).mean() > 0.9
    floats = generator.inpaint(
        pictures / np.float32(255), masks, ["a red circle", "a blue cross"], [3, 4], num_inference_steps=4
    )
    np.testing.assert_array_equal(floats.uint8, painted.uint8)
    one = generator.inpaint(
        pictures[0], masks[0], "a red circle", [3, 8], num_inference_steps=4
    )  # one picture, two seeds
    np.testing.assert_allclose(one.images[0], painted.images[0], atol=1e-4)
    assert np.abs(one.images[1] - one.images[0])[masks[0]].max() > 1e-3
    other = pictures.copy()
    other[~masks] = 255 - other[~masks]  # what is painted follows what is known, and what was there does not matter
    around = generator.inpaint(other, masks, ["a red circle", "a blue cross"], [3, 4], num_inference_steps=4)
    assert np.abs(around.images - painted.images)[masks].max() > 1e-3
    hidden = np.where(masks[..., None], 0, pictures)
    np.testing.assert_array_equal(generator.inpaint(hidden, masks, ["a red circle", "a blue cross"], [3, 4], 4).uint8,
                                  painted.uint8)  # fmt: skip


def test_resampling_and_guidance_while_inpainting(generator):
    picture, mask = np.full((16, 16, 3), 128, np.uint8), np.zeros((16, 16), bool)
    mask[:, 8:] = True
    options = dict(prompts="a red circle", seeds=[1, 2], num_inference_steps=4)
    plain = generator.inpaint(picture, mask, **options)
    twice = generator.inpaint(picture, mask, options=GuidanceOptions(recurrences=2, window=(0.0, 1.0)), **options)
    assert twice.energy is None and len(plain.trace.step) == 4 and len(twice.trace.step) == 8
    np.testing.assert_array_equal(twice.uint8[:, ~mask], plain.uint8[:, ~mask])
    assert np.abs(twice.images - plain.images)[:, mask].max() > 1e-3
    dark = lambda pixels: pixels.mean((1, 2, 3))  # noqa: E731
    guided = generator.inpaint(picture, mask, energy=dark, options=STRONG, **options)
    assert (dark(guided.images) < dark(plain.images)).all()
    np.testing.assert_array_equal(guided.uint8[:, ~mask], plain.uint8[:, ~mask])


def test_the_known_latents_are_the_picture_with_the_noise_of_the_step():
    """RePaint's equation 8, step by step, against a loop that overwrites the known latents itself."""
    alphas_cumprod = schedules.squaredcos_cap_v2(20)
    known, unknown = np.full((1, 2, 2, 1), 0.6, np.float32), np.array([[True, False], [True, True]])[None, :, :, None]
    seen = []

    def network(z, t, cond):
        seen.append(np.asarray(z))
        return 0.3 * z

    schedule, start = schedules.ddim(alphas_cumprod, 5), universal_guidance.noise(jax.random.key(0), 1, (2, 2, 1))
    denoiser = denoisers.inpainting(network, alphas_cumprod, known, unknown)
    with jax.disable_jit():
        sampled = universal_guidance.sample(denoiser, schedule, start, options=GuidanceOptions(remat=False))
    z = np.asarray(start)
    first = (z - np.sqrt(schedule.alphas_cumprod[0]) * known) / np.sqrt(
        1 - schedule.alphas_cumprod[0]
    )  # the noise in the known part
    for abar, abar_prev in zip(schedule.alphas_cumprod, schedule.alphas_cumprod_prev):
        z = np.where(unknown, z, np.sqrt(abar) * known + np.sqrt(1 - abar) * first)
        np.testing.assert_allclose(seen.pop(0), z, rtol=1e-4, atol=1e-4)
        eps = 0.3 * z
        z = np.sqrt(abar_prev) * (z - np.sqrt(1 - abar) * eps) / np.sqrt(abar) + np.sqrt(1 - abar_prev) * eps
    np.testing.assert_allclose(sampled.sample, np.where(unknown, z, known), atol=1e-4)


def test_bad_pictures_to_inpaint(generator):
    picture, mask = np.zeros((16, 16, 3), np.uint8), np.ones((16, 16), bool)
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8, 3\) .*expected \[B,16,16,3\] and bool"):
        generator.inpaint(picture[:8, :8], mask, "a red circle")
    with pytest.raises(ValueError, match=r"masks of shape \(1, 16, 16\) \(uint8\)"):
        generator.inpaint(picture, mask.astype(np.uint8), "a red circle")
    with pytest.raises(ValueError, match="2 images but 3 masks"):
        generator.inpaint(np.stack([picture] * 2), np.stack([mask] * 3), "a red circle")
    with pytest.raises(ValueError, match="images: floats from 0 to 200, expected 0..1"):
        generator.inpaint(np.float32(picture + 200), mask, "a red circle")
    with pytest.raises(ValueError, match="1 prompts but 3 seeds but 2 images"):
        generator.inpaint(np.stack([picture] * 2), mask, "a red circle", [1, 2, 3])


def test_a_painter_for_repair(generator, monkeypatch):
    asked = []
    inpaint = generator_lib.Generator.inpaint
    monkeypatch.setattr(
        generator_lib.Generator, "inpaint", lambda self, *a, **k: asked.append(a[3]) or inpaint(self, *a, **k)
    )
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[3:9, 3:9] = True
    paint = painter(generator, 4, ahead=2)
    painted = [paint(picture, mask, "a red circle", seed) for seed in (5, 6, 7)]
    assert asked == [[5, 6], [7, 8]]
    for one in painted:
        np.testing.assert_array_equal(one[~mask], picture[~mask])
    assert (painted[0] != painted[1]).any() and (painted[1] != painted[2]).any()
    other = painter(generator, 4, ahead=2)(picture, mask, "a red circle", 6)  # with seed 7, not with 5
    np.testing.assert_allclose(other.astype(int), painted[1], atol=1)
    large = np.repeat(np.repeat(picture, 2, 0), 3, 1)  # another size and aspect
    resized = paint(large, np.ones(large.shape[:2], bool), "a red circle", 5)
    assert resized.shape == large.shape and resized.dtype == np.uint8
