"""DDIM inversion: how exact it is, what the errors that it states mean, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import SchedulerConfig
from rahf.core.errors import ArgumentError, NotFinite
from rahf.diffusion import schedulers
from rahf.diffusion.latents import inversion
from tests.helpers import stable_diffusion_maker as maker

SCHEDULER = SchedulerConfig()
WIDTH, STEPS = 16, 50
PICTURES = np.random.default_rng(3).random((2, 8, 8, 3), np.float32)


def toy(weights, z, t):
    """A network tanh(z W / 2 + t / 1000)."""
    return jnp.tanh(z @ weights / 2 + t[:, None] / 1000)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_coefficients_are_those_of_the_schedulers_steps(prediction_type):
    scheduler = dataclasses.replace(SCHEDULER, prediction_type=prediction_type)
    plan, number = inversion.coefficients(scheduler, STEPS), 30
    steps = schedulers.steps(scheduler, STEPS)
    row, history = steps.row(number), schedulers.no_history(steps, jnp.zeros((1, 4)))
    z, output = np.random.default_rng(1).standard_normal((2, 1, 4)).astype(np.float32)
    expected, _ = schedulers.advance(row, z, *schedulers.convert(row, prediction_type, None, z, output), history)
    np.testing.assert_allclose(plan.a[number] * z + plan.b[number] * output, expected, atol=1e-5)
    assert plan.timestep[number] == row.timestep
    late = inversion.coefficients(scheduler, STEPS, start=48)
    np.testing.assert_array_equal(late.a, plan.a[48:])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_invert_then_sample_gives_the_latents_back(prediction_type):
    """Over 50 steps to 1e-3 in float32; plain inversion is off by at least ten times as much."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5, jnp.float32)
    clean = jnp.asarray(rng.standard_normal((4, WIDTH)), jnp.float32)
    plan = inversion.coefficients(dataclasses.replace(SCHEDULER, prediction_type=prediction_type), STEPS)

    def round_trip(iterations):
        run = jax.jit(lambda w, z: inversion.undo(toy, plan, w, z, iterations))
        back = run(weights, clean)
        return back, float(jnp.abs(inversion.sample(toy, plan, weights, back.latents) - clean).max())

    exact, error = round_trip(40)
    plain, error_of_plain = round_trip(0)
    assert error < 1e-3 and error_of_plain > 10 * error
    assert exact.trajectory.shape == (STEPS + 1, 4, WIDTH) and np.isnan(plain.error).all()
    # The stated errors are those of the steps.
    number = 20
    row = [column[number] for column in plan[:3]]
    z = exact.trajectory[number]
    after = row[1] * z + row[2] * toy(weights, z, jnp.full(4, row[0]))
    missed = np.abs(after - exact.trajectory[number + 1]).max(1)
    np.testing.assert_allclose(missed, exact.error[number], atol=2e-6)
    assert exact.error.max() < 1e-4


@pytest.fixture(scope="module")
def pipe():
    """One that predicts v."""
    pipe = maker.pipeline(model=maker.FLAT)
    pipe.scheduler = dataclasses.replace(pipe.scheduler, prediction_type="v_prediction")
    return pipe


def test_sampling_is_that_of_the_pipeline_and_gives_the_picture_back(pipe):
    """The picture is the autoencoder's."""
    back = inversion.invert(pipe, PICTURES, "cat", num_inference_steps=20, iterations=20)
    assert back.trajectory.shape == (21, 2, 8, 8, 4) and back.error.max() < 1e-4
    np.testing.assert_array_equal(back.trajectory[-1], pipe.encode(PICTURES))
    images = pipe("cat", latents=back.latents, num_inference_steps=20, guidance_scale=1.0).images
    np.testing.assert_allclose(images, pipe.decode(pipe.encode(PICTURES)), atol=1e-3)


def test_what_cannot_be_undone_is_refused(pipe, monkeypatch):
    for arguments, message in (
        (dict(start=5), "start: expected 0 to 4, the last step, found 5"),
        (dict(iterations=-1), "iterations: expected at least 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            inversion.invert(pipe, PICTURES, num_inference_steps=5, **arguments)
    scheduler = pipe.scheduler
    monkeypatch.setattr(pipe, "scheduler", dataclasses.replace(scheduler, clip_sample=True))
    with pytest.raises(ArgumentError, match="clip_sample clamps the clean estimate"):
        inversion.invert(pipe, PICTURES)
    monkeypatch.setattr(
        pipe, "scheduler", dataclasses.replace(scheduler, prediction_type="sample", set_alpha_to_one=True)
    )
    with pytest.raises(ArgumentError, match="forgets its latents"):
        inversion.invert(pipe, PICTURES)
    with pytest.raises(ArgumentError, match="inpainting"):
        inversion.invert(maker.pipeline(inpaints=True), PICTURES)


def test_a_way_back_to_nan_is_named(pipe, monkeypatch):
    unet = pipe.params["unet"] | {"conv_out": {**pipe.params["unet"]["conv_out"], "bias": jnp.full(4, jnp.nan)}}
    monkeypatch.setattr(pipe, "params", pipe.params | {"unet": unet})
    with pytest.raises(NotFinite, match="picture 0: its latents are not finite .* over 20 steps"):
        inversion.invert(pipe, PICTURES, num_inference_steps=20, iterations=20)
