"""Damped oscillators against their closed form, the limit of explicit Euler, and drags."""

import numpy as np
import pytest

from rahf.core.errors import ArgumentError
from rahf.motion import modal


def modes(damping=0.05, terms=16, seed=0):
    rng = np.random.default_rng(seed)
    spectrum = rng.normal(size=(terms, 4, 5, 2)) + 1j * rng.normal(size=(terms, 4, 5, 2))
    return modal.modes_of(spectrum.astype(np.complex64), 150, 30.0, damping)


def test_frequencies_are_those_of_the_terms():
    np.testing.assert_allclose(modes().frequencies, np.arange(1, 16) * 0.2)
    assert modes().shapes.shape == (15, 4, 5, 2)


@pytest.mark.parametrize("damping", [0.0, 0.05, 0.7])
@pytest.mark.parametrize("seconds", [1 / 30, 0.9])
def test_steps_equal_the_closed_form_whatever_their_length(damping, seconds):
    one, rng = modes(damping), np.random.default_rng(1)
    start = modal.State(rng.normal(size=15) + 1j * rng.normal(size=15), rng.normal(size=15) + 0j)
    state, step = start, modal.exact_step(one, seconds)
    for _ in range(20):
        state = modal.advance(state, np.zeros(15), step)
    exact = modal.free_motion(one, start, 20 * seconds)
    np.testing.assert_allclose(state.position, exact.position, atol=1e-10)
    np.testing.assert_allclose(state.velocity, exact.velocity, atol=1e-9)


@pytest.mark.parametrize("damping", [0.2, 1.0, 3.0])
def test_a_constant_force_leads_to_its_equilibrium(damping):
    """Also with critical and stronger damping: y = force / w²."""
    one = modes(damping)
    force = np.full(15, 2.0 - 1.0j)
    coordinates = modal.simulate(one, np.tile(force, (400, 1)), 1.0)
    np.testing.assert_allclose(coordinates[-1], force / one.angular**2, rtol=1e-6)


def test_explicit_euler_grows_where_the_derivation_says_so():
    """At 3 Hz and xi = 0.05 a step of 1/30 s amplifies by 1.154; below 2 xi / w = 5.3 ms it is stable."""
    one = modes()
    growth = np.abs(np.linalg.eigvals(modal.euler_step(one, 1 / 30).transition[-1])).max()
    assert growth == pytest.approx(1.154, abs=1e-3)
    assert modal.is_stable(modal.euler_step(one, 0.0053)) and not modal.is_stable(modal.euler_step(one, 0.0054))
    assert modal.is_stable(modal.exact_step(one, 5.0))
    with pytest.raises(
        ArgumentError, match=r"steps of 33.3 ms amplifies a mode in every step .* integrator='exact', or substeps=7"
    ):
        modal.simulate(one, np.zeros((3, 15)), 1 / 30, integrator="euler")
    with pytest.raises(ArgumentError, match="or damping above 0"):
        modal.simulate(modes(0.0), np.zeros((3, 15)), 1 / 30, integrator="euler", substeps=1000)


def test_euler_with_substeps_approaches_the_exact_solution():
    one = modes(terms=4)
    forces = np.random.default_rng(2).normal(size=(30, 3)) + 0j
    exact = modal.simulate(one, forces, 1 / 30)
    errors = [
        np.abs(modal.simulate(one, forces, 1 / 30, integrator="euler", substeps=count) - exact).max()
        for count in (20, 200)
    ]
    assert errors[1] < errors[0] / 8 and errors[1] < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("pull", [(3.0, 0.0), (-2.0, 5.0)])
def test_a_kept_up_pull_moves_the_pixel_as_far_in_its_direction(pull):
    one = modes()
    force = modal.drag_force(one, 1, 2, pull)
    flow = modal.displacement(one, force / one.angular**2)
    direction = np.array(pull) / np.hypot(*pull)
    assert flow[1, 2] @ direction == pytest.approx(np.hypot(*pull), rel=1e-5)


def test_a_pixel_without_motion_takes_no_force():
    one = modes()
    one.shapes[:, 0, 0] = 0
    assert not modal.drag_force(one, 0, 0, (4.0, 4.0)).any()
    assert not modal.drag_force(one, 1, 1, (0.0, 0.0)).any()


def test_the_swing_after_a_release_decays_to_rest():
    one = modes()
    force = modal.drag_force(one, 1, 2, (5.0, 0.0))
    coordinates = modal.simulate(one, np.concatenate([np.tile(force, (60, 1)), np.zeros((4000, 15))]), 1 / 30)
    size = np.abs(coordinates).max(1)
    assert size[59] > 0 and size[-1] < 1e-3 * size[59]


def test_coordinates_and_displacement_by_hand():
    """One mode of 1 Hz: q = y - i v / w, and the real part of S q."""
    one = modal.Modes(np.array([[[[2 + 1j, 1j]]]], np.complex64), np.array([1.0]), np.array([0.1]))
    coordinates = modal.modal_coordinates(one, modal.State(np.array([3 + 0j]), np.array([2 * np.pi + 0j])))
    np.testing.assert_allclose(coordinates, [3 - 1j])
    np.testing.assert_allclose(modal.displacement(one, coordinates)[0, 0], [7, 1])


def test_numbers_that_make_no_sense():
    spectrum = np.zeros((3, 1, 1, 2), np.complex64)
    for arguments, message in (
        ((spectrum[:1], 150, 30.0), "two terms or more, found 1"),
        ((spectrum, 150, 0.0), "positive number"),
        ((spectrum, 150, 30.0, -0.1), "damping: expected ratios of 0 or more"),
    ):
        with pytest.raises(ArgumentError, match=message):
            modal.modes_of(*arguments)
    one = modes()
    for options, message in ((dict(seconds=0.0), "positive length"), (dict(seconds=0.1, integrator="rk"), "'rk'")):
        with pytest.raises(ArgumentError, match=message):
            modal.simulate(one, np.zeros((1, 15)), **options)
    with pytest.raises(ArgumentError, match="damping below 1"):
        modal.free_motion(modes(1.0), modal.at_rest(one), 1.0)
