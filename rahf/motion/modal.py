"""A picture as something that can be pulled: every frequency of its spectral volume swings as a damped oscillator.

The displacement is ``F(p) = Re sum_f S_f(p) q_f`` (Li et al. 2024, equation 6; Davis et al. 2015). Each mode obeys
``y'' + 2 xi w y' + w² y = force``, and ``q = y - i v / w`` with v = y'. A step of the exact exponential integrator is
the true solution for a force that is constant during the step, whatever its length. Explicit Euler, which the paper
names, multiplies the energy of a mode in every step that is longer than ``2 xi / w``: at 3 Hz and xi = 0.05 longer than
5.3 ms.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Complex, Float

from rahf.core.errors import ArgumentError

#: Damping ratio of all modes unless another one is given: a swing has died away after about ten periods.
DAMPING = 0.05
Integrator = Literal["exact", "euler"]


class Modes(NamedTuple):
    """The modes of a picture.

    Attributes:
      shapes: complex64 [M,h,w,2], the spectral volume without its term of frequency 0.
      frequencies: float64 [M], Hz, above 0.
      damping: float64 [M], ratios; below 1 a mode swings.
    """

    shapes: Complex[np.ndarray, "m h w 2"]
    frequencies: Float[np.ndarray, " m"]
    damping: Float[np.ndarray, " m"]

    @property
    def angular(self) -> Float[np.ndarray, " m"]:
        """2 pi f, radians per second."""
        return 2 * np.pi * self.frequencies


class State(NamedTuple):
    """Complex amplitude and velocity of every mode, complex128 [M]."""

    position: Complex[np.ndarray, " m"]
    velocity: Complex[np.ndarray, " m"]


class Step(NamedTuple):
    """One step of the exponential integrator: ``(y, v) ← transition (y, v) + response force``.

    Attributes:
      transition: float64 [M,2,2].
      response: float64 [M,2].
    """

    transition: Float[np.ndarray, "m 2 2"]
    response: Float[np.ndarray, "m 2"]


def modes_of(
    spectrum: Complex[np.ndarray, "k h w 2"],
    frames: int,
    fps: float,
    damping: float | Float[np.ndarray, " m"] = DAMPING,
) -> Modes:
    """The modes of a spectral volume. The term of frequency 0 has no restoring force and is left out.

    Args:
      spectrum: [K,h,w,2] of a texture of `frames` frames at `fps` per second.
      damping: ratio, one for all modes or one each.

    Raises:
      ArgumentError: one term only, or numbers that make no sense.
    """
    terms = spectrum.shape[0]
    if terms < 2:
        raise ArgumentError("modes: expected a spectral volume of two terms or more, found 1, of frequency 0")
    if not (np.isfinite(fps) and fps > 0 and frames > 0):
        raise ArgumentError(f"modes: expected a positive number of frames and frames per second, found {frames}, {fps}")
    ratios = np.broadcast_to(np.asarray(damping, np.float64), terms - 1).copy()
    if not (np.isfinite(ratios).all() and (ratios >= 0).all()):
        raise ArgumentError(f"damping: expected ratios of 0 or more, found {damping}")
    return Modes(np.asarray(spectrum)[1:], np.arange(1, terms) * (fps / frames), ratios)


def at_rest(modes: Modes) -> State:
    """The state in which nothing moves."""
    zeros = np.zeros(len(modes.frequencies), np.complex128)
    return State(zeros, zeros.copy())


def exact_step(modes: Modes, seconds: float) -> Step:
    """The exponential of each mode's 2x2 system over `seconds`, and the response to a constant force of 1."""
    system = np.zeros((len(modes.frequencies), 3, 3))
    system[:, 0, 1] = 1.0
    system[:, 1, 0], system[:, 1, 1] = -(modes.angular**2), -2 * modes.damping * modes.angular
    system[:, 1, 2] = 1.0  # the force is a third, constant state
    exponential = scipy.linalg.expm(system * seconds)
    return Step(exponential[:, :2, :2], exponential[:, :2, 2])


def euler_step(modes: Modes, seconds: float) -> Step:
    """Explicit Euler, as the paper: ``v' = v + h (force - 2 xi w v - w² y)``, ``y' = y + h v``. See `is_stable`."""
    transition = np.zeros((len(modes.frequencies), 2, 2))
    transition[:, 0] = 1.0, seconds
    transition[:, 1, 0] = -seconds * modes.angular**2
    transition[:, 1, 1] = 1 - 2 * seconds * modes.damping * modes.angular
    return Step(transition, np.broadcast_to(np.array([0.0, seconds]), (len(modes.frequencies), 2)).copy())


def is_stable(step: Step) -> bool:
    """Whether no mode grows without a force."""
    return bool((np.abs(np.linalg.eigvals(step.transition)) <= 1 + 1e-12).all())


def advance(state: State, force: Complex[np.ndarray, " m"], step: Step) -> State:
    """The state one step later, the force constant in between."""
    before = np.stack([state.position, state.velocity], -1)
    after = np.einsum("mij,mj->mi", step.transition, before) + step.response * np.asarray(force)[:, None]
    return State(after[:, 0], after[:, 1])


def free_motion(modes: Modes, state: State, seconds: float) -> State:
    """The closed form of a free oscillation after `seconds`, for damping below 1.

    ``y(t) = e^{-xi w t} (y0 cos(w_d t) + (v0 + xi w y0) / w_d sin(w_d t))`` with ``w_d = w sqrt(1 - xi²)``.

    Raises:
      ArgumentError: a mode that does not swing.
    """
    if not (modes.damping < 1).all():
        raise ArgumentError(f"free_motion: expected damping below 1, found {modes.damping.max()}")
    omega, decay = modes.angular, modes.damping * modes.angular
    damped = omega * np.sqrt(1 - modes.damping**2)
    cosine, sine, fall = np.cos(damped * seconds), np.sin(damped * seconds), np.exp(-decay * seconds)
    slope = (state.velocity + decay * state.position) / damped
    position = fall * (state.position * cosine + slope * sine)
    velocity = fall * (state.velocity * cosine - (omega**2 * state.position + decay * state.velocity) / damped * sine)
    return State(position, velocity)


def simulate(
    modes: Modes,
    forces: Complex[np.ndarray, "n m"],
    seconds: float,
    state: State | None = None,
    integrator: Integrator = "exact",
    substeps: int = 1,
) -> Complex[np.ndarray, "n m"]:
    """Modal coordinates q after each of N steps.

    Args:
      modes: of the picture.
      forces: of each step, constant during it.
      seconds: length of a step.
      state: to begin with; None: at rest.
      integrator: "exact", or "euler" as the paper.
      substeps: into which each step is divided: makes Euler stable, changes nothing for "exact".

    Raises:
      ArgumentError: numbers that make no sense, or Euler with steps at which a mode grows by itself; says how many
        substeps are enough.
    """
    if not (np.isfinite(seconds) and seconds > 0) or substeps < 1:
        raise ArgumentError(f"simulate: expected steps of positive length, found {seconds} s in {substeps} substeps")
    if integrator not in ("exact", "euler"):
        raise ArgumentError(f"integrator: expected 'exact' or 'euler', found {integrator!r}")
    step = (exact_step if integrator == "exact" else euler_step)(modes, seconds / substeps)
    if integrator == "euler" and not is_stable(step):
        longest = float((2 * modes.damping / modes.angular).min())
        enough = f"substeps={math.floor(seconds / longest) + 1}" if longest else "damping above 0"
        raise ArgumentError(
            f"integrator: explicit Euler with steps of {1000 * seconds / substeps:.3g} ms amplifies a mode in every "
            f"step (the highest has {modes.frequencies.max():.3g} Hz); use integrator='exact', or {enough}"
        )
    state, coordinates = state or at_rest(modes), []
    for force in forces:
        for _ in range(substeps):
            state = advance(state, force, step)
        coordinates.append(modal_coordinates(modes, state))
    return np.array(coordinates).reshape(len(forces), len(modes.frequencies))


def modal_coordinates(modes: Modes, state: State) -> Complex[np.ndarray, " m"]:
    """``q = y - i v / w``: turns with the phase of the swing, so that shapes with a phase travel."""
    return state.position - 1j * state.velocity / modes.angular


def displacement(modes: Modes, coordinates: Complex[np.ndarray, " m"]) -> Float[np.ndarray, "h w 2"]:
    """``F(p) = Re sum_f S_f(p) q_f``, float32 [h,w,2], pixels."""
    return np.tensordot(coordinates, modes.shapes, 1).real.astype(np.float32)


def drag_force(
    modes: Modes, row: int, column: int, pull: tuple[float, float], reach: float = 1.0
) -> Complex[np.ndarray, " m"]:
    """The force on every mode of a pull at one pixel, ``strength · (d · conj S_f(p0))``.

    The strength is such that a pull that is kept up would move the pixel by `reach` times `pull` in the direction of
    the pull. A pixel that moves in no mode takes no force.

    Args:
      row, column: the pixel p0.
      pull: (x, y) in pixels.
      reach: see above.

    Returns:
      complex128 [M].
    """
    shape = modes.shapes[:, row, column].astype(np.complex128)
    pull = np.asarray(pull, np.float64)
    projection = shape.conj() @ pull
    # At rest under a force y = force / w², and the displacement along the pull is sum |d · S|² / w² times the strength.
    along = float((np.abs(projection) ** 2 / modes.angular**2).sum())
    length = float(pull @ pull)
    if along <= 1e-12 * max(length, 1e-12) or not length:
        return np.zeros_like(projection)
    return projection * (reach * length / along)
