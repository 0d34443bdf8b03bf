"""Generate, criticise, guide, repair, select, measure: the study's program on tiny networks, and inpainting."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines import store
from rahf import diffusion
from rahf.config import Config, DataConfig
from rahf.core.batch import SCORES
from rahf.critic.networks import build
from rahf.diffusion import schedules
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.sample import GuidanceOptions, denoisers, universal_guidance
from rahf.nn import functional
from rahf.steer import painter
from rahf.text import load_tokenizer
from rahf.text.clip_vocabulary import train_clip_tokenizer
from rahf.training.model_folder import write_model
from tests.helpers import diffusion_maker
from tests.helpers.diffusion_maker import OF_PIXELS
from tests.helpers.model_maker import SMALLEST

ROOT = pathlib.Path(__file__).resolve().parents[2]


def untrained(folder: pathlib.Path, config: Config, tokenizer, seed: int) -> pathlib.Path:
    """The directory of a critic whose outputs vary: its heads are not almost constant."""
    flat = functional.flatten(functional.init(build.build(config.model), seed))
    for path, value in flat.items():
        if path.endswith("out/kernel") and path.startswith(("heatmap_", "score_")):
            flat[path] = value * 20
    params = jax.device_get(diffusion_maker.varied(functional.unflatten(flat), seed))
    write_model(folder, config, params, tokenizer, {"license": "none"})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_data):
    """Folders of an untrained generator and of two critics."""
    folder, tokenizer = tmp_path_factory.mktemp("circle"), load_tokenizer(tiny_data / "tokenizer.model")
    data = DataConfig(path=str(tiny_data), max_prompt_tokens=24, max_target_tokens=28, max_words=20)
    t5 = dataclasses.replace(SMALLEST.t5, vocab_size=tokenizer.vocab_size + 5)
    critic = dataclasses.replace(SMALLEST, t5=t5, heatmap_head=dataclasses.replace(SMALLEST.heatmap_head, prior=0.4))
    pieces = train_clip_tokenizer(store.prompts(tiny_data, "train"), OF_PIXELS.text_encoder.vocab_size)
    return {
        "generator": diffusion_maker.save(folder / "generator", OF_PIXELS, pieces, data),
        "critic": untrained(folder / "critic", Config(model=critic, data=data), tokenizer, 1),
        "held_out": untrained(folder / "held_out", Config(model=critic, data=data), tokenizer, 2),
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


def test_a_painter_for_repair(generator, monkeypatch):
    asked, call = [], Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda self, *a, **k: asked.append(k["seeds"]) or call(self, *a, **k))
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
