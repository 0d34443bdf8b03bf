"""The schedulers: hand-computed rows, refusals, and `diffusers` step by step."""

import dataclasses

import numpy as np
import pytest

from rahf.config import SchedulerConfig, StableDiffusionConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion import schedulers, schedules
from rahf.diffusion.published import configs, export_folder

BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def sample(config, steps, start, noises, network):
    """Clean latents from `start`, which has unit variance."""
    plan = schedulers.steps(config, steps, eta=0.7 if config.kind == "ddim" else 0.0)
    latents = np.float32(plan.init_noise_sigma) * start
    history = np.asarray(schedulers.no_history(plan, start))
    for number in range(len(plan.timestep)):
        row = plan.row(number)
        output = network(row.input_scale * latents, row.timestep)
        clip = schedulers.clip_range(config)
        x0, eps = schedulers.convert(row, config.prediction_type, clip, latents, output)
        latents, history = map(np.asarray, schedulers.advance(row, latents, x0, eps, history, noises[number]))
    return latents


def toy(latents, t):
    """A linear network."""
    return 0.4 * latents + float(t) / 1000 - 0.3


CASES = {
    "ddim as Stable Diffusion 1": (
        "DDIMScheduler", dict(BETAS, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    ),
    "ddim to a clean picture": ("DDIMScheduler", dict(BETAS, set_alpha_to_one=True, clip_sample=False)),
    "ddim clipped": ("DDIMScheduler", dict(clip_sample=True)),
    "ddim v trailing zero snr": (
        "DDIMScheduler",
        dict(BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
             clip_sample=False, set_alpha_to_one=False),
    ),
    "ddim linspace": ("DDIMScheduler", dict(BETAS, timestep_spacing="linspace", clip_sample=False)),
    "ddpm": ("DDPMScheduler", dict(BETAS, clip_sample=False, steps_offset=1)),
    "ddpm large v trailing": (
        "DDPMScheduler",
        dict(clip_sample=True, clip_sample_range=2.0, variance_type="fixed_large", prediction_type="v_prediction",
             timestep_spacing="trailing", rescale_betas_zero_snr=True),
    ),
    "ddpm sample": ("DDPMScheduler", dict(BETAS, clip_sample=False, prediction_type="sample")),
    "euler as XL": ("EulerDiscreteScheduler", dict(BETAS, timestep_spacing="leading", steps_offset=1)),
    "euler linspace": ("EulerDiscreteScheduler", dict(BETAS)),
    "euler v trailing zero snr": (
        "EulerDiscreteScheduler",
        dict(BETAS, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ),
    "euler to sigma_min": ("EulerDiscreteScheduler", dict(BETAS, final_sigmas_type="sigma_min")),
    "solver": ("DPMSolverMultistepScheduler", dict(BETAS)),
    "solver leading": ("DPMSolverMultistepScheduler", dict(BETAS, timestep_spacing="leading", steps_offset=1)),
    "solver v trailing heun": (
        "DPMSolverMultistepScheduler",
        dict(BETAS, timestep_spacing="trailing", prediction_type="v_prediction", solver_type="heun",
             rescale_betas_zero_snr=True),
    ),
    "solver to sigma_min": (
        "DPMSolverMultistepScheduler", dict(BETAS, final_sigmas_type="sigma_min", lower_order_final=False)
    ),
    # With BETAS one of 18 timesteps is 575.5, which float32 and float64 round apart.
    "solver as Karras": ("DPMSolverMultistepScheduler", dict(BETAS, beta_end=0.0122, use_karras_sigmas=True)),
    "euler as Karras": ("EulerDiscreteScheduler", dict(BETAS, use_karras_sigmas=True)),
    "euler as Karras, leading v": (
        "EulerDiscreteScheduler",
        dict(BETAS, timestep_spacing="leading", steps_offset=1, use_karras_sigmas=True,
             prediction_type="v_prediction"),
    ),
    "pndm as Stable Diffusion 1": ("PNDMScheduler", dict(BETAS, steps_offset=1, skip_prk_steps=True)),
    "pndm v trailing to a clean picture": (
        "PNDMScheduler",
        dict(BETAS, skip_prk_steps=True, prediction_type="v_prediction", timestep_spacing="trailing",
             set_alpha_to_one=True),
    ),
    "pndm linspace": ("PNDMScheduler", dict(BETAS, skip_prk_steps=True, timestep_spacing="linspace")),
    "solver of first order": ("DPMSolverMultistepScheduler", dict(BETAS, solver_order=1, euler_at_final=True)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("steps", [5, 18])
@pytest.mark.parametrize("name", CASES)
def test_as_in_diffusers(name, steps, monkeypatch):
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")
    diffusers = pytest.importorskip("diffusers")
    kind, fields = CASES[name]
    theirs = getattr(diffusers, kind)(**fields)
    config = configs.scheduler({**theirs.config, "_class_name": kind}, "scheduler_config.json").config
    rng = np.random.default_rng(0)
    start, noises = (
        rng.standard_normal((2, 3)).astype(np.float32),
        rng.standard_normal((steps + 1, 2, 3)).astype("float32"),
    )
    theirs.set_timesteps(steps)
    latents = torch.from_numpy(start) * theirs.init_noise_sigma
    drawn = {}
    for module in ("scheduling_ddim", "scheduling_ddpm"):
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *a, **k: drawn["now"])
    for number, t in enumerate(theirs.timesteps):
        drawn["now"] = torch.from_numpy(noises[number])
        output = toy(theirs.scale_model_input(latents, t), t)
        options = {"eta": 0.7} if kind == "DDIMScheduler" else {}
        latents = theirs.step(output, t, latents, **options).prev_sample
    ours = sample(config, steps, start, noises, toy)
    # With zero terminal SNR, Euler's float32 latents start 4096 times as large.
    size = max(1.0, float(theirs.init_noise_sigma) / 1000, np.abs(latents.numpy()).max())
    np.testing.assert_allclose(ours, latents.numpy(), rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("kind", ["pndm", "euler", "dpmsolver++"])
def test_what_is_exported_is_read_back(kind):
    """And Runge-Kutta steps of PNDM are not taken for what they are not."""
    config = SchedulerConfig(kind=kind, use_karras_sigmas=kind != "pndm", timestep_spacing="trailing")
    tree = export_folder.part_configs(StableDiffusionConfig(scheduler=config))["scheduler"]
    published = configs.scheduler(tree, "scheduler_config.json")
    assert published == configs.PublishedScheduler(dataclasses.replace(config, set_alpha_to_one=kind != "pndm"), "")
    if kind == "pndm":
        published = configs.scheduler(tree | {"skip_prk_steps": False}, "scheduler_config.json")
        assert published.config.kind == "ddim" and published.replaced == "PNDMScheduler"


def test_two_steps_of_ddim_by_hand():
    """abar 0.25 and 0.81; from 4 timesteps with betas that give them."""
    config = SchedulerConfig(num_train_timesteps=2, beta_schedule="linear", beta_start=0.19, beta_end=1 - 0.25 / 0.81)
    config = dataclasses.replace(config, steps_offset=0, set_alpha_to_one=True)
    np.testing.assert_allclose(schedulers.alphas_cumprod(config), [0.81, 0.25])
    plan = schedulers.steps(config, 2)
    np.testing.assert_allclose(plan.timestep, [1, 0])
    np.testing.assert_allclose(plan.of_x0, [0.9, 1.0])
    np.testing.assert_allclose(plan.of_eps, [np.sqrt(0.19), 0.0], rtol=1e-6)
    np.testing.assert_allclose(plan.alpha, [0.5, 0.9])


def test_zero_terminal_snr():
    config = SchedulerConfig(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    abar = schedulers.alphas_cumprod(config)
    assert abar[-1] == 0 and abar[0] == pytest.approx(schedules.scaled_linear()[0])
    with pytest.raises(ArgumentError, match="predicts the noise"):
        schedulers.steps(config, 5)
    assert schedulers.steps(dataclasses.replace(config, prediction_type="v_prediction"), 5).alpha[0] == 0
    assert schedulers.steps(dataclasses.replace(config, kind="euler"), 5).init_noise_sigma == pytest.approx(4096)


def test_pndm_visits_its_second_timestep_twice():
    config = SchedulerConfig(kind="pndm")
    np.testing.assert_array_equal(schedulers.steps(config, 5).timestep, [801, 601, 601, 401, 201, 1])
    np.testing.assert_array_equal(schedulers.steps(config, 5, start=2).timestep, [401, 201, 201, 1])
    assert [schedulers.step_of_call(config, call) for call in range(5)] == [0, 1, 1, 2, 3]
    last, ddim = schedulers.steps(config, 5, start=4), schedulers.steps(SchedulerConfig(), 5, start=4)
    latents, output = np.full((1, 2), 0.3, np.float32), np.full((1, 2), 0.7, np.float32)
    after = []
    for plan in (last, ddim):  # a single step is that of DDIM
        x0, eps = schedulers.convert(plan.row(0), "epsilon", None, latents, output)
        history = schedulers.no_history(plan, latents)
        after.append(schedulers.advance(plan.row(0), latents, x0, eps, history)[0])
    np.testing.assert_allclose(*after, rtol=1e-6)


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "euler", "dpmsolver++", "pndm"])
def test_guided_steps_visit_the_same_timesteps(kind):
    config = SchedulerConfig(kind=kind, timestep_spacing="trailing", steps_offset=0)
    schedule, plan = schedulers.guided(config, 10), schedulers.steps(config, 10)
    if kind not in ("dpmsolver++", "pndm"):
        np.testing.assert_array_equal(schedule.timesteps, plan.timestep)
    assert len(schedule.timesteps) == 10 and schedule.alphas_cumprod_prev[-1] >= schedule.alphas_cumprod_prev[0]
    np.testing.assert_allclose(schedule.alphas_cumprod, schedules.scaled_linear()[schedule.timesteps], rtol=1e-6)


def test_a_later_start():
    """The solver takes its first step in first order, wherever it starts."""
    config = SchedulerConfig(kind="dpmsolver++", timestep_spacing="trailing")
    whole, late = schedulers.steps(config, 10), schedulers.steps(config, 10, start=4)
    assert len(late.timestep) == 6 and late.of_history[0] == 0 and whole.of_history[4] != 0
    np.testing.assert_array_equal(late.of_history[1:], whole.of_history[5:])
    row = late.row(0)
    noisy = schedulers.add_noise(row, np.ones(3), np.zeros(3))
    np.testing.assert_allclose(noisy, np.sqrt(schedules.scaled_linear()[int(row.timestep)]), rtol=1e-6)


@pytest.mark.parametrize(
    "fields, steps, eta, message",
    [
        ({}, 0, 0.0, "1 to 1000"),
        ({}, 1001, 0.0, "1 to 1000"),
        ({}, 5, 1.5, "eta"),
        (dict(steps_offset=1), 1000, 0.0, "timestep 1000, beyond the last one, 999"),
        (dict(kind="pndm", prediction_type="sample"), 5, 0.0, "pndm: networks that predict the clean picture"),
        (dict(kind="pndm", rescale_betas_zero_snr=True), 5, 0.0, "pndm: rescale_betas_zero_snr cannot be"),
    ],
)
def test_refusals(fields, steps, eta, message):
    with pytest.raises(ArgumentError, match=message):
        schedulers.steps(SchedulerConfig(**fields), steps, eta)
