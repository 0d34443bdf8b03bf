"""Schedules of samplers: published constants, visited timesteps, DDIM and DDPM against formulas and diffusers."""

import numpy as np
import pytest

from rahf.diffusion import schedules


def test_alphas_cumprod_of_published_schedules():
    # Products of 1 - beta by hand: linear over 2 times, beta 1e-4 and 0.02.
    np.testing.assert_allclose(schedules.linear(2), [0.9999, 0.9999 * 0.98])
    np.testing.assert_allclose(schedules.scaled_linear(2), [1 - 0.00085, (1 - 0.00085) * (1 - 0.012)])
    assert schedules.scaled_linear()[-1] == pytest.approx(0.0046599, rel=1e-4)  # Stable Diffusion's last abar
    cosine = schedules.squaredcos_cap_v2(1000)
    exact = (
        np.cos((np.array([1, 500]) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    np.testing.assert_allclose(cosine[[0, 499]], exact)
    assert cosine[-1] > 0 and (np.diff(cosine) < 0).all()


def test_timesteps_that_are_visited():
    alphas_cumprod = schedules.linear(1000)
    times = lambda *a, **k: schedules.ddim(alphas_cumprod, *a, **k).timesteps.tolist()  # noqa: E731
    assert times(4) == [999, 749, 499, 249]
    assert times(4, timestep_spacing="leading") == [750, 500, 250, 0]
    assert times(4, timestep_spacing="leading", steps_offset=1) == [751, 501, 251, 1]
    assert times(4, timestep_spacing="linspace") == [999, 666, 333, 0]
    assert times(3) == [999, 666, 332]
    steps = schedules.ddim(alphas_cumprod, 4)
    np.testing.assert_allclose(steps.alphas_cumprod, alphas_cumprod[[999, 749, 499, 249]], rtol=1e-6)
    np.testing.assert_allclose(steps.alphas_cumprod_prev, [*alphas_cumprod[[749, 499, 249]], 1.0], rtol=1e-6)
    np.testing.assert_allclose(steps.direction, np.sqrt(1 - steps.alphas_cumprod_prev), atol=1e-4)
    assert not steps.stochastic and (steps.std_dev == 0).all()


def test_ancestral_sampling_is_ddim_with_eta_1():
    alphas_cumprod = schedules.linear(1000)
    for found, expected in zip(schedules.ddpm(alphas_cumprod, 7), schedules.ddim(alphas_cumprod, 7, eta=1.0)):
        np.testing.assert_array_equal(found, expected)
    half, whole, large = (
        schedules.ddim(alphas_cumprod, 7, 0.5),
        schedules.ddpm(alphas_cumprod, 7),
        schedules.ddpm(alphas_cumprod, 7, "large"),
    )
    np.testing.assert_allclose(half.std_dev, 0.5 * whole.std_dev)
    np.testing.assert_array_equal(large.direction, whole.direction)
    assert (large.std_dev[:-1] > whole.std_dev[:-1]).all() and large.std_dev[-1] == whole.std_dev[-1] == 0
    # All times: beta itself, and variance and direction together make the noise that is left.
    full = schedules.ddpm(alphas_cumprod, 1000, "large")
    np.testing.assert_allclose(full.std_dev[:-1] ** 2, np.linspace(1e-4, 0.02, 1000)[::-1][:-1], rtol=1e-4)
    np.testing.assert_allclose(whole.direction**2 + whole.std_dev**2, 1 - whole.alphas_cumprod_prev, atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_inference_steps=0), "num_inference_steps: expected 1 to 1000, the number of timesteps, found 0"),
        (dict(num_inference_steps=1001), "num_inference_steps: expected 1 to 1000"),
        (dict(eta=1.5), "eta: expected 0 .deterministic. to 1"),
        (dict(timestep_spacing="even"), "timestep_spacing: expected 'trailing', 'leading' or 'linspace', found 'even'"),
        (
            dict(timestep_spacing="leading", steps_offset=300),
            "steps_offset: 300 leads to timestep 1050, beyond the last one, 999",
        ),
        (
            dict(alphas_cumprod=np.linspace(0.9, 0.0, 10), num_inference_steps=2),
            "a schedule that ends without any signal",
        ),
        (dict(alphas_cumprod=np.full(10, 0.5), num_inference_steps=2), "alphas_cumprod: expected to fall"),
    ],
)
def test_schedules_that_cannot_be(change, message):
    arguments = dict(alphas_cumprod=schedules.linear(1000), num_inference_steps=4) | change
    with pytest.raises(ValueError, match=message):
        schedules.ddim(**arguments)
    with pytest.raises(ValueError, match="variance: expected 'small' or 'large', found 'learned'"):
        schedules.ddpm(schedules.linear(10), 2, "learned")


@pytest.mark.parametrize("make", [schedules.ddim, schedules.ddpm])
def test_the_cosine_schedule_can_be_sampled(make):
    """Its last abar, 2.4e-9, is too little signal for float32; it counts as the least that is not."""
    alphas_cumprod = schedules.squaredcos_cap_v2()
    assert alphas_cumprod[-1] < schedules.SMALLEST_ALPHA_CUMPROD
    steps = make(alphas_cumprod, 50)
    assert steps.timesteps[0] == 999 and steps.alphas_cumprod[0] == np.float32(schedules.SMALLEST_ALPHA_CUMPROD)
    assert all(np.isfinite(values).all() for values in steps) and (np.diff(steps.alphas_cumprod) > 0).all()
    # With the exact noise the steps lead to the picture.
    x0, noise = np.float32(0.25), np.float32(-0.7)
    z = schedules.add_noise(x0, noise, steps.alphas_cumprod[0])
    clean = schedules.pred_original_sample(z, noise, steps.alphas_cumprod[0])
    np.testing.assert_allclose(clean, x0, atol=2e-3)


def test_names_of_beta_schedules():
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        np.testing.assert_array_equal(schedules.alphas_cumprod(name, 50), getattr(schedules, name)(50))
    with pytest.raises(
        ValueError, match="beta_schedule: expected linear, scaled_linear, squaredcos_cap_v2, found 'cos'"
    ):
        schedules.alphas_cumprod("cos")


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_same_steps_as_diffusers(beta_schedule, spacing):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install rahf[torch]")
    torch = pytest.importorskip("torch")
    published = dict(linear=(1e-4, 0.02), scaled_linear=(0.00085, 0.012), squaredcos_cap_v2=(1e-4, 0.02))
    beta_start, beta_end = published[beta_schedule]
    options = dict(timestep_spacing=spacing, steps_offset=int(spacing == "leading"))
    scheduler = diffusers.DDIMScheduler(
        1000, beta_start, beta_end, beta_schedule, clip_sample=False, set_alpha_to_one=False, **options
    )
    scheduler.set_timesteps(20)
    alphas_cumprod = schedules.alphas_cumprod(beta_schedule)
    np.testing.assert_allclose(scheduler.alphas_cumprod, alphas_cumprod, rtol=1e-3, atol=1e-8)
    if beta_schedule == "squaredcos_cap_v2":  # ends with too little signal for float32
        alphas_cumprod = np.maximum(alphas_cumprod, np.linspace(1e-6, 1e-7, 1000))
    steps = schedules.ddim(alphas_cumprod, 20, set_alpha_to_one=False, **options)
    np.testing.assert_array_equal(steps.timesteps, scheduler.timesteps)
    # With linspace diffusers steps to t - 50, which is not the timestep that it visits next.
    if spacing == "linspace" or beta_schedule == "squaredcos_cap_v2":
        return
    z, eps = torch.tensor([0.3, -1.2], dtype=torch.float64), torch.tensor([0.9, 0.4], dtype=torch.float64)
    for index, timestep in enumerate(scheduler.timesteps):
        x0 = schedules.pred_original_sample(z.numpy(), eps.numpy(), steps.alphas_cumprod[index])
        following = np.sqrt(steps.alphas_cumprod_prev[index]) * x0 + steps.direction[index] * eps.numpy()
        np.testing.assert_allclose(following, scheduler.step(eps, timestep, z).prev_sample, rtol=2e-3)


def test_former_names_warn():
    with pytest.warns(
        DeprecationWarning, match="schedules.cosine is now called rahf.diffusion.schedules.squaredcos_cap"
    ):
        former = schedules.cosine
    assert former is schedules.squaredcos_cap_v2
    with pytest.warns(DeprecationWarning) as warned:
        steps = schedules.ddim(signals=former(10), steps=2, spacing="leading", offset=1)
    assert sorted(str(one.message).split(" is now")[0] for one in warned) == [
        f"ddim: argument {name}" for name in ("offset", "signals", "spacing", "steps")
    ]
    expected = schedules.ddim(former(10), 2, timestep_spacing="leading", steps_offset=1)
    np.testing.assert_array_equal(steps.timesteps, expected.timesteps)
    with pytest.raises(TypeError, match="ddim: steps is the old name of num_inference_steps; give one of them"):
        schedules.ddim(former(10), num_inference_steps=2, steps=2)
