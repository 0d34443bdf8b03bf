"""The pipeline of Stable Diffusion: seeds, what compiles, pictures to start from, guidance, and bad input."""

import dataclasses
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rahf
from rahf.cli import main as cli
from rahf.core.errors import ArgumentError, CheckpointError, ImageError, NotFinite, TrainError
from rahf.diffusion import GuidanceOptions, pipeline_programs
from rahf.diffusion import pipeline as pipeline_lib
from rahf.diffusion import pipeline_inputs as inputs
from rahf.diffusion.pipeline import Pipeline
from rahf.nn import energy
from rahf.steer import generate_files
from rahf.text import PromptWarning
from tests.helpers import stable_diffusion_maker as maker

STEPS = dict(num_inference_steps=3)


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline()


@pytest.fixture(scope="module")
def inpainter():
    return maker.pipeline(inpaints=True)


def picture(value=0.5):
    return np.full((1, 8, 8, 3), value, np.float32)


def half_mask():
    return (np.arange(8) >= 4).astype(np.float32)[None, None].repeat(8, 1)


def test_a_seed_gives_the_same_picture_whatever_the_batch(pipe):
    one_by_one = [pipe("a red cat", seeds=seed, **STEPS).images for seed in (3, 4, 5)]
    together = pipe("a red cat", seeds=[3, 4, 5], batch_size=2, **STEPS).images
    assert together.shape == (3, 8, 8, 3) and together.dtype == np.float32
    assert together.min() >= 0 and together.max() <= 1
    np.testing.assert_allclose(together, np.concatenate(one_by_one), atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_scale_seed_prompt_and_steps_compile_nothing_new(pipe):
    pipe("cat", seeds=1, guidance_scale=2.0, **STEPS)
    step = pipe._programs("step", "epsilon", None, True, False)
    before = step._cache_size()
    images = [
        pipe("dog", seeds=2, guidance_scale=9.0, **STEPS).images,
        pipe("dog", seeds=2, guidance_scale=3.0, **STEPS).images,
        pipe("dog", negative_prompt="cat", seeds=2, guidance_scale=3.0, **STEPS).images,
        pipe("cat", seeds=2, guidance_scale=3.0, **STEPS).images,
        pipe("dog", seeds=2, guidance_scale=3.0, num_inference_steps=4).images,
    ]
    assert step._cache_size() == before
    for number, image in enumerate(images):
        assert all(np.abs(image - other).max() > 0 for other in images[:number])


def test_given_noise_is_the_seeds_noise(pipe):
    noise = np.asarray(pipeline_programs.noise(np.uint32([7]), (4, 4, 4)))
    ours = pipe("cat", latents=noise, **STEPS).images
    np.testing.assert_array_equal(ours, pipe("cat", seeds=7, **STEPS).images)


def test_progress_counts_all_steps(pipe):
    calls = []
    pipe("cat", seeds=[0, 1, 2], batch_size=2, progress=lambda done, total: calls.append((done, total)), **STEPS)
    assert calls == [(done, 6) for done in range(1, 7)]


def test_pndm_calls_the_network_once_more(pipe):
    plms = Pipeline(pipe.config, pipe.params, pipe.tokenizer)
    plms.scheduler, calls = dataclasses.replace(pipe.scheduler, kind="pndm"), []
    plms("cat", progress=lambda done, total: calls.append((done, total)), **STEPS)
    assert calls == [(n, 4) for n in range(1, 5)]


def test_from_a_picture(pipe):
    """Fewer steps stay nearer; one of many is the picture but for the autoencoder's loss."""
    decoded = np.asarray(pipe.decode(pipe.encode(picture(0.3))))
    distance = [
        np.abs(pipe("cat", image=picture(0.3), strength=s, num_inference_steps=20).images - decoded).mean()
        for s in (0.05, 0.5, 1.0)
    ]
    assert distance[0] < distance[1] < distance[2]


@pytest.mark.parametrize("kind", ["pipe", "inpainter"])
def test_repainting(kind, request):
    """What the mask keeps is the picture to the last bit; the rest depends on the seed."""
    pipe = request.getfixturevalue(kind)
    image, mask = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32), half_mask()
    images = pipe("cat", image=image, mask_image=mask, seeds=[0, 1], **STEPS).images
    np.testing.assert_array_equal(images[:, :, :4], np.repeat(image, 2, 0)[:, :, :4])
    assert np.abs(images[0, :, 4:] - images[1, :, 4:]).max() > 1e-3
    raw = pipe("cat", image=image, mask_image=mask, paste_back=False, **STEPS).images
    assert np.abs(raw[:, :, :4] - image[:, :, :4]).max() > 0


def test_a_cell_is_repainted_if_any_pixel_is():
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, 1, 3] = 1
    np.testing.assert_array_equal(inputs.latent_mask(mask, 2)[0, :, :, 0], [[0, 1], [0, 0]])


def test_guidance_raises_a_reward(pipe):
    """The mean of red; with scale 0, the pictures are those without guidance. What a mask keeps is kept."""
    red = lambda pixels: pixels[..., 0].mean((1, 2))
    plain = pipe("cat", seeds=[0, 1], **STEPS)
    free = pipe("cat", seeds=[0, 1], reward=red, options=GuidanceOptions(scale=0.0), **STEPS)
    np.testing.assert_allclose(free.images, plain.images, atol=1e-4)
    np.testing.assert_allclose(free.energy, 1 - red(free.images), atol=1e-5)
    assert free.trace.energy.shape == (3, 2) and plain.trace is None
    kept = dict(image=picture(), mask_image=half_mask(), seeds=[0, 1])
    options = GuidanceOptions(scale=0.5, window=(0.0, 1.0))
    guided = pipe("cat", **kept, reward=red, options=options, **STEPS).images
    np.testing.assert_array_equal(guided[:, :, :4], np.repeat(picture(), 2, 0)[:, :, :4])
    assert (red(guided) > red(pipe("cat", **kept, **STEPS).images)).all()


def test_latents_that_become_nan_name_step_picture_and_energy(pipe, monkeypatch):
    unet = pipe.params["unet"]
    conv_out = unet["conv_out"] | {"bias": jnp.full(4, jnp.nan)}
    monkeypatch.setattr(pipe, "params", pipe.params | {"unet": unet | {"conv_out": conv_out}})
    with pytest.raises(NotFinite, match="picture 0: .* after step 1"):
        pipe("cat", **STEPS)
    monkeypatch.undo()
    plan = pipeline_lib.Plan(3, 0.0, 2.0, 0, 3, energy.function(len, name="gloom"), GuidanceOptions(), True)
    with pytest.raises(NotFinite, match=r"picture 1: .* after 3 guided steps \(energies: gloom\)"):
        pipeline_lib._check_guided(np.array([0.0, np.nan])[:, None, None, None], plan)
    noise = np.zeros((2, 4, 4, 4), np.float32)
    noise[1, 0, 0, 0] = np.nan
    with pytest.raises(ArgumentError, match="latents: those of picture 1"):
        pipe("cat", latents=noise)


def test_prompts_that_are_empty_or_too_long(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(pipe("", guidance_scale=1.0, **STEPS).images).all()
    with pytest.warns(PromptWarning, match="reads 12 tokens; not read: .*zebra"):
        pipe.tokens(" ".join(["abc def ghi jkl zebra"] * 2000))


def test_an_exclamation_mark_that_pads_is_a_piece_of_its_own():
    plain = maker.tokenizer()
    special = plain.with_special(0)
    last = plain.token_id("!</w>")
    assert plain.encode("cat!")[-1] == last and special.encode("cat!")[-1] == 0
    assert special.with_special(0) is special and plain.with_special(plain.eos_id) is plain


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(height=9), ArgumentError, "height: expected a multiple of 2 pixels, .* found 9; the nearest is 8"),
        (dict(width=0), ArgumentError, "width: expected a multiple of 2"),
        (dict(seeds=[-1]), ArgumentError, "seeds: expected whole numbers"),
        (dict(seeds=[1, 2], negative_prompt=["a", "b", "c"]), ArgumentError, "3 negative prompts"),
        (dict(num_inference_steps=0), ArgumentError, "num_inference_steps: expected 1 to 1000"),
        (dict(guidance_scale=float("nan")), ArgumentError, "guidance_scale"),
        (dict(latents=np.zeros((1, 8, 8, 4))), ArgumentError, r"latents: expected noise float32 \[B,4,4,4\]"),
        (dict(mask_image=half_mask()), ArgumentError, "mask_image: expected image, too"),
        (dict(image=picture(), mask_image=np.zeros((1, 4, 4))), ArgumentError, r"\[B,8,8\], the size of image"),
        (dict(image=picture() * 255), ImageError, "Divide by 255"),
        (dict(image=picture(), height=16), ArgumentError, "height: expected 8, the image's"),
        (dict(image=picture(), strength=0.0), ArgumentError, "strength: expected a share"),
        (dict(strength=0.5), ArgumentError, "together with image"),
        (dict(eta=2.0), ArgumentError, "eta"),
        (dict(batch_size=0), ArgumentError, "batch_size"),
        (dict(negative_prompt=3), ArgumentError, "negative_prompt: expected a text"),
    ],
)
def test_bad_input(pipe, options, error, message):
    with pytest.raises(error, match=message):
        pipe("cat", **options)


def test_as_the_inpainting_of_repair(pipe):
    """A picture of odd sides goes through whole cells and comes back at its size."""
    image = np.full((9, 7, 3), 128, np.uint8)
    mask = np.zeros((9, 7), bool)
    mask[:, 4:] = True
    repainted = rahf.steer.painter(pipe, 2, ahead=2)(image, mask, "cat", 3)
    assert repainted.shape == (9, 7, 3) and repainted.dtype == np.uint8
    change = np.abs(repainted.astype(int) - 128)
    assert not change[:, :2].any() and change[:, 5:].max() > 2  # between them, resizing mixes both


def test_a_network_of_inpainting_needs_a_mask(inpainter):
    with pytest.raises(ArgumentError, match="give image and mask_image"):
        inpainter("cat")


def test_commands(pipe, tmp_path, capsys):
    """rahf.load and rahf generate take the model directory; PNGs hold their parameters."""
    folder = maker.save(tmp_path / "model")
    assert isinstance(rahf.load(folder), pipeline_lib.Pipeline)
    arguments = ["generate", str(folder), "--prompt", "cat", "--prompt", "", "--seeds", "0", "1", "--steps", "3"]
    arguments += ["--batch-size", "2", "--scheduler", "euler", "--negative-prompt", "dog"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"00{p}-seed{s}.png" for p in range(2) for s in range(2)), "contact_sheet.png"]
    with Image.open(tmp_path / "out" / "000-seed1.png") as image:
        metadata, pixels = json.loads(image.text["rahf"]), np.asarray(image).astype(int)
    assert metadata["prompt"] == "cat" and metadata["seed"] == 1 and metadata["scheduler"] == "euler"
    assert metadata["num_inference_steps"] == 3 and not {"critic_scale", "lora", "batch_size"} & metadata.keys()
    with_euler = pipeline_lib.Pipeline(maker.config(), pipe.params, maker.tokenizer())
    with_euler._programs, with_euler.scheduler = pipe._programs, dataclasses.replace(pipe.scheduler, kind="euler")
    expected = with_euler("cat", negative_prompt="dog", seeds=1, **STEPS).uint8[0]
    assert pixels.shape == (8, 8, 3) and np.abs(pixels - expected).max() <= 1
    assert "4 pictures" in capsys.readouterr().out
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "not empty" in capsys.readouterr().err
    with pytest.raises(TrainError, match="start.model: expected a model directory"):
        rahf.train(maker.config())


def test_a_contact_sheet_and_adapters_with_a_scale():
    pictures = [np.full((4, 8, 3), 40 * n, np.uint8) for n in range(4)]
    sheet = generate_files.contact_sheet(pictures, ["a", "ф"], 2)
    assert sheet.shape == (6 + 2 * (4 + 6 + 16), 6 + 2 * (8 + 6), 3)
    assert (sheet[22 + 1, 6 + 1] == 0).all() and (sheet[48 + 1, 20 + 1] == 120).all()
    assert generate_files.lora_and_scale("style.safetensors") == ("style.safetensors", 1.0)
    assert generate_files.lora_and_scale("style.safetensors:0.5") == ("style.safetensors", 0.5)
    with pytest.raises(ArgumentError, match="expected FILE or FILE:SCALE"):
        generate_files.lora_and_scale("style:strong")


def test_other_folders_are_refused(tmp_path, tiny_run, capsys):
    with pytest.raises(CheckpointError, match="of the family 'critic'"):
        pipeline_lib.load(tiny_run)
    for name, files, message in (
        ("no pipeline", {"config.json": "{}"}, "expected model_index.json"),
        (
            "another",
            {"model_index.json": '{"_class_name": "FluxPipeline"}'},
            "a FluxPipeline, expected Stable Diffusion",
        ),
        (
            "half",
            {"model_index.json": '{"_class_name": "StableDiffusionPipeline"}', "unet/config.json": "{}"},
            "half a pipeline: vae, text_encoder, tokenizer, scheduler missing, found unet",
        ),
    ):
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        assert cli.main(["import", "stable-diffusion", str(tmp_path / name), str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
