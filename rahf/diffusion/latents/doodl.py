"""DOODL (Wallace et al. 2023): the noise that sampling starts from is optimised by the gradient of an energy.

The gradient runs through the whole sampling. With EDICT it keeps the memory of one step (`edict.denoise`); the other
back end is DDIM whose steps are computed again for the gradient, which keeps the latents of every step.

    result = doodl(pipe, "a red cat", energy=total, seeds=[0])
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf.core.errors import ArgumentError, NotFinite
from rahf.diffusion import schedulers
from rahf.diffusion.latents import edict, inversion
from rahf.diffusion.latents.edict import Pair
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.sample import denoisers
from rahf.nn import energy as energy_lib
from rahf.nn import functional, gradients

#: (pictures float32 [B,H,W,3]) → boxes float32 [B,n,4] and their weights [B,n], on the host; see `sgool`.
Boxes = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class DoodlOptions:
    """How the noise is optimised. Defaults: those published for generation.

    Attributes:
      iterations: m, updates of the noise.
      num_inference_steps, guidance_scale: of each sampling.
      backend: "edict", or "ddim" with recomputed steps.
      p, leapfrog: of EDICT.
      grad_scale: factor of the gradient before it is clipped.
      clip: largest absolute value of the gradient, element by element.
      momentum, learning_rate: of the update ``v ← momentum v + g``, ``x ← x - learning_rate v``.
      perturbation: standard deviation of the noise that is added after an update.
      renormalise: scale the noise back to the norm that it started with.
      tie: the pair of EDICT starts from one noise, their mean.
    """

    iterations: int = 50
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    backend: Literal["edict", "ddim"] = "edict"
    p: float = edict.P
    leapfrog: bool = True
    grad_scale: float = 1.0
    clip: float = 1e-3
    momentum: float = 0.9
    learning_rate: float = 1.0
    perturbation: float = 1e-4
    renormalise: bool = True
    tie: bool = True

    def __post_init__(self):
        """Raises ArgumentError for numbers that make no sense; names them."""
        for name in ("iterations", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.backend not in ("edict", "ddim"):
            raise ArgumentError(f"backend: expected 'edict' or 'ddim', found {self.backend!r}")
        for name in ("clip", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name}: expected above 0, found {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ArgumentError(f"momentum: expected 0 to below 1, found {self.momentum}")


class DoodlResult(NamedTuple):
    """What was optimised.

    Attributes:
      images: float32 [B,H,W,3] in [0,1], of the last noise.
      energy: float32 [m+1,B], before each update and at the end.
      latents: the noise, float32 [B,h,w,4], mean of the pair; `Pipeline` draws from it, by DDIM.
      history: number of the update before which a picture was kept → pictures, as of `images`.
    """

    images: np.ndarray
    energy: np.ndarray
    latents: np.ndarray
    history: dict[int, np.ndarray]


class _Numbers(NamedTuple):
    """Traced options: changing them compiles nothing."""

    guidance_scale: Any
    grad_scale: Any
    clip: Any
    momentum: Any
    learning_rate: Any
    perturbation: Any


class _State(NamedTuple):
    pair: Pair
    velocity: Any
    norm: Any  # of each latent at the start, [B]


def doodl(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    energy: energy_lib.Energy,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] = 0,
    latents: Any = None,
    height: int | None = None,
    width: int | None = None,
    options: DoodlOptions = DoodlOptions(),
    keep_every: int = 0,
    progress: Callable[[int, int, np.ndarray], None] | None = None,
) -> DoodlResult:
    """Optimises the noise of one picture per prompt and seed, all in one batch.

    Args:
      pipe: of `rahf.diffusion.load`; not of inpainting.
      prompts, negative_prompt, seeds, latents, height, width: as of the pipeline.
      energy: of pictures [B,H,W,3] in [0,1], to be lowered: any of `rahf.nn.energy` and `rahf.critic.energy`, or a sum.
      options: of the optimisation.
      keep_every: keep the pictures before every so many updates in `history`; 0: none.
      progress: called after each update with its number, their number, and the energies [B] before it.

    Raises:
      ArgumentError: as of the pipeline.
      NotFinite: an energy or a gradient is not finite; names picture, update and energy.
    """
    return optimise(
        pipe,
        prompts,
        energy,
        boxes=None,
        salient_weight=0.0,
        refresh_every=1,
        sampling=(negative_prompt, seeds, latents, (height, width)),
        options=options,
        keep_every=keep_every,
        progress=progress,
    )


def optimise(
    pipe: Pipeline,
    prompts: Any,
    energy: energy_lib.Energy,
    *,
    boxes: Boxes | None,
    salient_weight: float,
    refresh_every: int,
    sampling: tuple,
    options: DoodlOptions,
    keep_every: int,
    progress: Any,
) -> DoodlResult:
    """`doodl`, and `rahf.diffusion.latents.sgool.sgool` with `boxes`; without weight the same computation."""
    if not isinstance(energy, energy_lib.Energy):
        energy = energy_lib.function(energy)
    if pipe.inpaints:
        raise ArgumentError("this is a model of inpainting: give one that draws whole pictures")
    task = pipe.task(prompts, *sampling[:3], size=sampling[3])
    size = tuple(side * pipe.scale_factor for side in task.noise.shape[1:3])
    conditions = pipe.conditions(task.ids, task.negative_ids, size)
    programs = _programs(pipe, options)
    numbers = _Numbers(*(jnp.float32(getattr(options, name)) for name in _Numbers._fields))
    noise = jnp.asarray(task.noise)
    norm = jnp.sqrt(jnp.sum(noise**2, (1, 2, 3)))
    state = _State(Pair(noise, noise), jnp.zeros_like(noise), norm)
    where, seeds = None, jnp.asarray(task.seeds)
    energies, history = [], {}
    for number in range(options.iterations):
        if boxes is not None and salient_weight and number % refresh_every == 0:
            pictures = programs.draw(pipe.params, conditions, state.pair, numbers)
            where = tuple(jnp.asarray(x) for x in boxes(np.asarray(pictures)))
        weight = jnp.float32(salient_weight) if where is not None else None
        state, values, pictures, finite = programs.update(
            pipe.params, conditions, state, numbers, energy, where, weight, seeds, np.int32(number)
        )
        values = np.asarray(values)
        _check_finite(values, np.asarray(finite), number, energy)
        energies.append(values)
        if keep_every and number % keep_every == 0:
            history[number] = np.asarray(pictures)
        if progress is not None:
            progress(number + 1, options.iterations, values)
    pictures = programs.draw(pipe.params, conditions, state.pair, numbers)
    energies.append(np.asarray(programs.energy(pictures, energy, where, weight)))
    latents = np.asarray(state.pair.x + state.pair.y) / 2
    return DoodlResult(np.asarray(pictures), np.stack(energies), latents, history)


def total_energy(
    pictures: jax.Array, energy: energy_lib.Energy, boxes: tuple[jax.Array, jax.Array] | None, weight: Any
) -> jax.Array:
    """The energy [B] of pictures; with boxes ``(1 - l) E(picture) + l E(crop)``, crops averaged by their weights."""
    whole = energy(pictures)
    if boxes is None:
        return whole
    places, shares = boxes
    crops = [energy(crop(pictures, places[:, k])) * shares[:, k] for k in range(places.shape[1])]
    return (1 - weight) * whole + weight * sum(crops)


def crop(pictures: jax.Array, boxes: jax.Array) -> jax.Array:
    """Boxes [B,4] (left, top, right, bottom; shares of the sides) out of pictures, resized to the pictures' size.

    Antialiased bilinear, differentiable in the pixels. The whole picture comes out unchanged.
    """
    h, w, colours = pictures.shape[1:]

    def one(picture: jax.Array, box: jax.Array) -> jax.Array:
        left, top, right, bottom = box
        scale = jnp.stack([1 / (bottom - top), 1 / (right - left)])
        translation = -jnp.stack([top * h, left * w]) * scale
        return jax.image.scale_and_translate(picture, (h, w, colours), (0, 1), scale, translation, "linear")

    return jax.vmap(one)(pictures, boxes)


def _programs(pipe: Pipeline, options: DoodlOptions) -> _Programs:
    """The compiled functions, kept with the pipeline: options that are numbers compile nothing anew."""
    static = {name: value for name, value in vars(options).items() if name not in (*_Numbers._fields, "iterations")}
    key = ("doodl", pipe.scheduler, tuple(static.items()))
    if key not in pipe.compiled:
        pipe.compiled[key] = _Programs(pipe, options)
    return pipe.compiled[key]


class _Programs:
    """The compiled functions of one optimisation."""

    def __init__(self, pipe: Pipeline, options: DoodlOptions):
        self._graphdef, self._scheduler, self._options = pipe.graphdef, pipe.scheduler, options
        self._plan = edict.coefficients(pipe.scheduler, options.num_inference_steps, options.leapfrog)
        self._abar = np.maximum(schedulers.alphas_cumprod(pipe.scheduler), 2.0**-24)
        self.draw = jax.jit(self._pictures)
        self.energy = jax.jit(total_energy)
        self.update = jax.jit(self._update)

    def _pictures(self, params: Any, conditions: Any, pair: Pair, numbers: _Numbers) -> jax.Array:
        arguments = (params, conditions, numbers.guidance_scale)
        denoiser = functools.partial(_eps, self._graphdef, self._scheduler.prediction_type, self._abar)
        if self._options.backend == "edict":
            final = edict.denoise(denoiser, self._plan, arguments, pair, self._options.p)
            latents = (final.x + final.y) / 2
        else:
            latents = inversion.sample(denoiser, self._plan, arguments, (pair.x + pair.y) / 2)
        return functional.merge(self._graphdef, params).decode(latents)

    def _update(self, params, conditions, state, numbers, energy, boxes, weight, seeds, number):
        def objective(pair: Pair):
            pictures = self._pictures(params, conditions, pair, numbers)
            values = total_energy(pictures, energy, boxes, weight)
            return values.sum(), (values, pictures)  # pictures are independent: each has its own gradient

        with gradients.of_guidance():
            (_, (values, pictures)), gradient = jax.value_and_grad(objective, has_aux=True)(state.pair)
        mean = (gradient.x + gradient.y) / 2
        finite = jnp.isfinite(mean).all((1, 2, 3))
        velocity = numbers.momentum * state.velocity + jnp.clip(numbers.grad_scale * mean, -numbers.clip, numbers.clip)
        moved = jax.tree.map(lambda z: z - numbers.learning_rate * velocity, state.pair)
        if self._options.tie:
            moved = Pair(*[(moved.x + moved.y) / 2] * 2)
        noise = _perturbation(seeds, number, velocity.shape[1:])
        moved = jax.tree.map(lambda z: z + numbers.perturbation * noise, moved)
        if self._options.renormalise:
            moved = jax.tree.map(lambda z: z * (state.norm / _norm(z))[:, None, None, None], moved)
        return _State(moved, velocity, state.norm), values, pictures, finite


def _eps(graphdef: Any, prediction_type: Any, abar: np.ndarray, arguments: Any, z: jax.Array, t: jax.Array):
    """The noise that the guided network predicts."""
    params, conditions, scale = arguments
    network = denoisers.epsilon(functional.merge(graphdef, params), abar, prediction_type)
    return denoisers.classifier_free(network, scale)(z, t, conditions)


def _perturbation(seeds: jax.Array, number: Any, shape: tuple[int, ...]) -> jax.Array:
    key = lambda seed: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), number)  # noqa: E731
    return jax.vmap(lambda seed: jax.random.normal(key(seed), shape))(seeds)


def _norm(z: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(z**2, (1, 2, 3)))


def _check_finite(values: np.ndarray, finite: np.ndarray, number: int, energy: energy_lib.Energy) -> None:
    bad = np.flatnonzero(~(np.isfinite(values) & finite))
    if len(bad):
        names = ", ".join(term.name for term in energy.terms)
        what = "energy" if not np.isfinite(values[bad[0]]) else "gradient"
        raise NotFinite(f"picture {int(bad[0])}: its {what} is not finite at update {number} (energies: {names})")
