"""The critic inside stock diffusers pipelines of random networks: latents move, energy falls, types stay."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.image_maker import smooth

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install rahf[torch]")
pytest.importorskip("diffusers", reason="needs diffusers: pip install rahf[torch]")

from diffusers import EulerDiscreteScheduler  # noqa: E402
from PIL import Image  # noqa: E402

from rahf.core.errors import ArgumentError  # noqa: E402
from rahf.interop.diffusers import Guidance, decode, inpaint_best_of, inpainter  # noqa: E402
from rahf.steer.masks import MaskOptions  # noqa: E402
from tests.helpers import diffusers_maker as maker  # noqa: E402

PROMPTS = ["a red cat", "two dogs"]


def run(pipe, guidance=None, steps=6, prompts=PROMPTS, output="latent"):
    """Latents (or pictures) of fixed noise."""
    extra = {}
    if guidance is not None:
        extra = dict(callback_on_step_end=guidance, callback_on_step_end_tensor_inputs=guidance.tensor_inputs)
    return pipe(
        prompts, height=16, width=16, num_inference_steps=steps, output_type=output,
        generator=torch.Generator().manual_seed(0), **extra,
    ).images  # fmt: skip


def energy(critic, pipe, latents, prompts=PROMPTS, score="overall"):
    """1 - score of what latents are decoded to, by JAX alone."""
    with torch.no_grad():
        pictures = decode(pipe, latents).movedim(1, -1).numpy()
    ids, mask = critic.tokens(prompts)
    return 1 - np.asarray(critic.reward(score)(pictures, ids, mask))


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline()


@pytest.fixture(scope="module")
def plain(pipe):
    return run(pipe)


def test_guidance_lowers_the_energy(tiny_critic, pipe, plain):
    guidance = Guidance(tiny_critic, PROMPTS, scale=0.5, window=(0.0, 1.0), repeats=2)
    guided = run(pipe, guidance)
    assert guided.shape == plain.shape and guided.dtype == plain.dtype and guided.device == plain.device
    assert torch.isfinite(guided).all() and (guided - plain).abs().amax((1, 2, 3)).min() > 1e-3
    before, after = energy(tiny_critic, pipe, plain), energy(tiny_critic, pipe, guided)
    assert (after < before - 1e-3).all()  # of each sample
    assert len(guidance.energies) == 2 * 5 + 1 and guidance.energies[0].shape == (2,)
    np.testing.assert_allclose(guidance.energies[-1], after, atol=1e-5)
    worse = run(pipe, Guidance(tiny_critic, PROMPTS, {"overall": -1.0}, scale=0.5, window=(0.0, 1.0), repeats=2))
    assert (energy(tiny_critic, pipe, worse) > before).all()


def test_no_strength_changes_nothing(tiny_critic, pipe, plain):
    guidance = Guidance(tiny_critic, PROMPTS, scale=0.0, window=(0.0, 1.0))
    np.testing.assert_array_equal(run(pipe, guidance), plain)
    outside = Guidance(tiny_critic, PROMPTS, scale=1.0, window=(0.0, 1e-9))  # no step has so little signal
    np.testing.assert_array_equal(run(pipe, outside), plain)
    assert outside.energies == []


def test_each_sample_is_guided_for_itself(tiny_critic, pipe):
    """A sample whose gradient is unusable stays, the other moves as if alone."""
    guidance = Guidance(tiny_critic, PROMPTS, scale=0.5, window=(0.0, 1.0))
    both = run(pipe, guidance, steps=2)
    reward = guidance.reward

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return torch.where(torch.arange(len(g))[:, None, None, None] == 0, torch.nan, g)

    guidance.reward = lambda images, prompts: reward(Half.apply(images), prompts)
    half, plain = run(pipe, guidance, steps=2), run(pipe, steps=2)
    np.testing.assert_array_equal(half[0], plain[0])
    np.testing.assert_allclose(half[1], both[1], atol=1e-6)
    assert (both[0] - plain[0]).abs().max() > 1e-4


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_whatever_the_denoiser_says(tiny_critic, prediction):
    """The predicted picture follows from the prediction type: an exact denoiser gives the picture itself."""
    pipe = maker.pipeline(prediction=prediction)
    guidance = Guidance(tiny_critic, PROMPTS, scale=0.5, window=(0.0, 1.0), through_denoiser=True)
    guided, plain = run(pipe, guidance, steps=3), run(pipe, steps=3)
    assert guided.dtype == plain.dtype and torch.isfinite(guided).all()
    assert (energy(tiny_critic, pipe, guided) < energy(tiny_critic, pipe, plain)).all()


def test_predicted_picture_is_exact_for_an_exact_denoiser(tiny_critic, pipe):
    from rahf.interop.diffusers import _noise

    stream = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 4, 8, 8, generator=stream), torch.randn(2, 4, 8, 8, generator=stream)
    abar = 0.3
    noisy = abar**0.5 * clean + 0.7**0.5 * noise
    outputs = {"epsilon": noise, "v_prediction": abar**0.5 * noise - 0.7**0.5 * clean, "sample": clean}
    for kind, value in outputs.items():
        scheduler = maker.pipeline(prediction=kind).scheduler
        np.testing.assert_allclose(_noise(scheduler, value, noisy, abar), noise, atol=1e-5)


def test_half_precision_stays_half(tiny_critic):
    pipe = maker.pipeline(dtype=torch.bfloat16)
    try:
        guidance = Guidance(tiny_critic, PROMPTS[0], scale=0.3, window=(0.0, 1.0))
        guided = run(pipe, guidance, steps=2, prompts=PROMPTS[0])
        assert guided.dtype == torch.bfloat16 and torch.isfinite(guided).all()
        assert guidance.energies[0].dtype == np.float32
    finally:
        pipe.to(dtype=torch.float32)  # the networks are shared


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers itself
def test_pipelines_that_cannot_be_guided_are_named(tiny_critic, pipe):
    guidance = Guidance(tiny_critic, PROMPTS)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler does not keep the variance of latents.*use DDIM"):
        run(maker.pipeline(kind=EulerDiscreteScheduler), guidance, steps=2)
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs=guidance.tensor_inputs"):
        pipe(PROMPTS, height=16, width=16, num_inference_steps=2, callback_on_step_end=Guidance(
            tiny_critic, PROMPTS, window=(0.0, 1.0)))  # fmt: skip
    with pytest.raises(ValueError, match="Did you mean 'overall'"):
        Guidance(tiny_critic, PROMPTS, "overal")
    with pytest.raises(ValueError, match="expected scale >= 0, repeats >= 1"):
        Guidance(tiny_critic, PROMPTS, repeats=0)


def test_inpainting_keeps_the_best(tiny_critic):
    pipe = maker.pipeline(inpaint=True)
    picture = smooth(18, 26, 3)  # no multiple of the latent cells
    options = dict(num_inference_steps=2, guidance_scale=1.0)
    generate = inpainter(pipe, **options)
    mask = np.zeros((18, 26), bool)
    mask[4:12, 6:20] = True
    first, again, other = (generate(picture, mask, "a red cat", seed) for seed in (0, 0, 1))
    assert first.shape == picture.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).max() > 0
    result = inpaint_best_of(
        pipe, tiny_critic, picture, "a red cat", 3, pipe_options=options,
        options=MaskOptions(threshold=0.2, warn_above=1.0),
    )  # fmt: skip
    assert len(result.candidates) == 4 and result.seeds == [0, 1, 2]
    assert result.scores[result.chosen, 0] == result.scores[:, 0].max()
    scored = tiny_critic([result.image, picture], "a red cat").scores[:, 0]
    assert scored[0] >= scored[1]
    np.testing.assert_array_equal(result.candidates[0], picture)


def test_steps_of_a_pipeline_that_starts_from_a_picture():
    """With strength 0.5 the pipeline runs the last 10 of 20 timesteps, and counts its steps from 0."""
    from rahf.interop.diffusers import _after

    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    timesteps = list(range(951, 0, -50))
    scheduler = SimpleNamespace(alphas_cumprod=alphas_cumprod, init_noise_sigma=1.0, timesteps=timesteps)
    for step, timestep in enumerate(timesteps[10:-1]):
        assert _after(scheduler, step, timestep) == (timesteps[11 + step], alphas_cumprod[timesteps[11 + step]])
    assert _after(scheduler, 9, timesteps[-1]) == (None, 1.0)
    scheduler.timesteps = [951, 901, 901, 851]  # PNDM visits one twice
    assert [_after(scheduler, step, t)[0] for step, t in enumerate(scheduler.timesteps)] == [901, 901, 851, None]
    scheduler.timesteps = [951, 951, 901, 901, 851]  # one that begins at the second of two equal timesteps
    assert [_after(scheduler, step, t, 4)[0] for step, t in enumerate([951, 901, 901, 851])] == [901, 901, 851, None]
    with pytest.raises(ArgumentError, match="step 0 at timestep 17 is none of the timesteps of SimpleNamespace"):
        _after(scheduler, 0, 17)


def test_each_prompt_is_scored_as_often_as_it_is_painted(tiny_critic, pipe):
    guidance = Guidance(tiny_critic, PROMPTS, scale=0.0, window=(0.0, 1.0))
    extra = dict(callback_on_step_end=guidance, callback_on_step_end_tensor_inputs=guidance.tensor_inputs)
    latents = pipe(
        PROMPTS, height=16, width=16, num_inference_steps=2, num_images_per_prompt=2, output_type="latent",
        generator=torch.Generator().manual_seed(0), **extra,
    ).images  # fmt: skip
    repeated = [prompt for prompt in PROMPTS for _ in range(2)]
    np.testing.assert_allclose(guidance.energies[-1], energy(tiny_critic, pipe, latents, repeated), atol=1e-5)
    with pytest.raises(ArgumentError, match="guidance: 2 pictures but 3 prompts"):
        run(pipe, Guidance(tiny_critic, [*PROMPTS, "a bird"]), steps=2)


def test_a_picture_as_start_is_guided_at_its_own_steps(tiny_critic, pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    from_picture = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    from_picture.set_progress_bar_config(disable=True)
    guidance = Guidance(tiny_critic, PROMPTS[0], scale=0.0, window=(0.0, 1.0))
    latents = from_picture(
        PROMPTS[0], image=Image.fromarray(smooth(16, 16, 3)), strength=0.5, num_inference_steps=6, output_type="latent",
        generator=torch.Generator().manual_seed(0), callback_on_step_end=guidance,
        callback_on_step_end_tensor_inputs=guidance.tensor_inputs,
    ).images  # fmt: skip
    assert len(guidance.energies) == 3  # of three steps, the last one recognised as such
    np.testing.assert_allclose(guidance.energies[-1], energy(tiny_critic, pipe, latents, PROMPTS[:1]), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controlnet": object()}, "given a ControlNet besides latents and prompt"),
        ({"adapter": object()}, "given a T2I adapter"),
        ({"encoder_hid_dim_type": "ip_image_proj"}, "given an IP adapter"),
        ({"addition_embed_type": "text_time"}, "given SDXL's sizes and pooled prompt"),
        ({"num_class_embeds": 1000}, "given a class or noise level"),
        ({"time_cond_proj_dim": 256}, "given an embedded guidance scale"),
        ({"in_channels": 9}, "given 9 channels, of which 4 are latents"),
        ({"unet": None}, "has no `unet`, the denoiser of Stable Diffusion"),
        ({"vae": None}, "has no `vae`, the decoder of Stable Diffusion"),
    ],
)
def test_denoisers_that_are_given_more_than_a_prompt_are_refused_by_name(tiny_critic, changes, message):
    config = SimpleNamespace(**{"in_channels": 4} | {name: v for name, v in changes.items() if name not in _PARTS})
    stock = dict(unet=SimpleNamespace(config=config), vae=object(), scheduler=None)
    pipe = SimpleNamespace(**stock | {name: v for name, v in changes.items() if name in _PARTS})
    guidance = Guidance(tiny_critic, PROMPTS)
    with pytest.raises(ArgumentError, match=f"SimpleNamespace (is )?{message}"):
        guidance(pipe, 0, 999, {"latents": torch.zeros(2, 4, 2, 2), "prompt_embeds": torch.zeros(4, 3, 8)})


_PARTS = ("unet", "vae", "controlnet", "adapter")


def test_the_stock_inpainting_pipeline_of_nine_channels_is_refused(tiny_critic):
    guidance = Guidance(tiny_critic, PROMPTS[0])
    picture = Image.fromarray(smooth(16, 16, 3))
    with pytest.raises(ArgumentError, match="StableDiffusionInpaintPipeline is given 9 channels"):
        maker.pipeline(inpaint=True)(
            PROMPTS[0], image=picture, mask_image=Image.new("L", (16, 16), 255), height=16, width=16,
            num_inference_steps=2, callback_on_step_end=guidance,
            callback_on_step_end_tensor_inputs=guidance.tensor_inputs,
        )  # fmt: skip


def test_pipelines_that_do_not_inpaint_are_named(pipe):
    with pytest.raises(ArgumentError, match="StableDiffusionPipeline takes no `image` and `mask_image`"):
        inpainter(pipe)
