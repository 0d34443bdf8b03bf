"""The schedulers of `diffusers` as numbers: DDIM, DDPM, Euler, DPM-Solver++(2M) and PNDM (PLMS).

A step of each of them is linear in the latents, the clean estimate x0, the predicted noise, what the steps before have
kept of theirs, and fresh noise. All factors are computed here in float64, once, so that a sampler is one scan over
their rows, whichever scheduler they belong to:

    steps = schedulers.steps(config, 50)
    latents = steps.init_noise_sigma * noise
    history = schedulers.no_history(steps, latents)
    output = network(row.input_scale * latents, row.timestep)
    x0, eps = schedulers.convert(row, config.prediction_type, schedulers.clip_range(config), latents, output)
    latents, history = schedulers.advance(row, latents, x0, eps, history, fresh_noise)

`rahf.diffusion.schedules` has the steps of guided sampling, of which `guided` gives those of the same timesteps.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.config import SchedulerConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion import schedules

#: ``abar`` of the last timestep where it would be 0 and is divided by, as in `diffusers`.
_TERMINAL = 2.0**-24
#: Solvers of second order use the first order at the end of fewer steps (Lu et al. 2022).
_FEW_STEPS = 15
#: Exponent of the sigmas of Karras et al. 2022.
_RHO = 7.0
#: Shares of the newest outputs in steps of order 1 to 4 (Adams-Bashforth), the newest first.
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
_KEPT = 4  # outputs that PNDM keeps: three, and the one of the second call


class Steps(NamedTuple):
    """The steps of a sampler, first the noisiest; NumPy float32 arrays [N], one entry per call of the network.

    Attributes:
      timestep: that the network is given; fractional for Euler with linspace.
      input_scale: factor of the latents that the network is given.
      alpha, sigma: shares of picture and noise in these scaled latents, the squares of which sum to 1.
      of_sample, of_x0, of_eps, of_noise: factors of the step.
      kept_x0, kept_eps: factors of what a step keeps for later ones.
      of_history: [N,K], factors of what the last K steps have kept, that of the step before first; K = 0 for methods of
        one step.
    """

    timestep: Float[np.ndarray, " n"]
    input_scale: Float[np.ndarray, " n"]
    alpha: Float[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]
    of_sample: Float[np.ndarray, " n"]
    of_x0: Float[np.ndarray, " n"]
    of_eps: Float[np.ndarray, " n"]
    of_noise: Float[np.ndarray, " n"]
    kept_x0: Float[np.ndarray, " n"]
    kept_eps: Float[np.ndarray, " n"]
    of_history: Float[np.ndarray, "n k"]
    init_noise_sigma: Any = 1.0  # standard deviation of the latents that sampling starts from, float32 []

    def row(self, number: int) -> Steps:
        """The numbers of one step, each float32 [], but `of_history` [K]."""
        return Steps(*(np.asarray(column[number]) for column in self[:-1]), np.float32(self.init_noise_sigma))

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return bool((np.asarray(self.of_noise) > 0).any())


def alphas_cumprod(config: SchedulerConfig) -> Float[np.ndarray, " t"]:
    """``abar`` of each timestep, float64 [T]; the last is 0 with `rescale_betas_zero_snr`."""
    count = config.num_train_timesteps
    if config.beta_schedule == "squaredcos_cap_v2":
        abar = schedules.squaredcos_cap_v2(count)
    else:
        function = schedules.linear if config.beta_schedule == "linear" else schedules.scaled_linear
        abar = function(count, config.beta_start, config.beta_end)
    if config.rescale_betas_zero_snr:  # Lin et al. 2024, algorithm 1
        root = np.sqrt(abar)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        abar = root**2
    return abar


def steps(config: SchedulerConfig, num_inference_steps: int, eta: float = 0.0, start: int = 0) -> Steps:
    """The steps of a configured scheduler.

    Args:
      config: of the model.
      num_inference_steps: N.
      eta: of DDIM: 0 draws no noise, 1 as much as DDPM; other schedulers have no use for it.
      start: number of the first step that is taken, where sampling starts from a picture.

    Returns:
      N - start steps; of PNDM one more, unless that is one: its second timestep is visited twice.

    Raises:
      ArgumentError: numbers that make no sense; names them.
    """
    _check(config, num_inference_steps, eta)
    if not 0 <= start < num_inference_steps:
        raise ArgumentError(f"start: expected 0 to {num_inference_steps - 1}, found {start}")
    timesteps = _timesteps(config, num_inference_steps)
    if config.kind == "ddim":
        plan = _ddim(config, timesteps, eta)
    elif config.kind == "ddpm":
        plan = _ddpm(config, timesteps)
    elif config.kind == "euler":
        plan = _euler(config, timesteps)
    elif config.kind == "pndm":
        plan, start = _pndm(config, timesteps[start:], num_inference_steps), 0
    else:
        plan = _dpm_solver(config, timesteps, start)
    if config.prediction_type == "epsilon" and (plan.alpha[start:] == 0).any():
        raise ArgumentError(
            "scheduler: rescale_betas_zero_snr leaves no picture in the first timestep, so a network that predicts "
            "the noise (prediction_type epsilon) does not tell the picture; use timestep_spacing leading"
        )
    return Steps(*(x[start:].astype(np.float32) for x in plan[:-1]), np.float32(plan.init_noise_sigma))


def guided(config: SchedulerConfig, num_inference_steps: int, eta: float = 0.0) -> schedules.Schedule:
    """Steps of DDIM (DDPM for that scheduler) over the same timesteps, for `rahf.diffusion.sample`.

    Raises:
      ArgumentError: as of `steps`.
    """
    _check(config, num_inference_steps, eta)
    config = config if config.kind == "ddpm" else _as_ddim(config)
    timesteps = _timesteps(config, num_inference_steps)
    before = np.maximum(_visited(config, timesteps), _TERMINAL)
    after = _after(config, timesteps, num_inference_steps)
    posterior = np.sqrt((1 - after) / (1 - before) * np.maximum(1 - before / after, 0))
    removed = posterior if config.kind == "ddpm" else eta * posterior
    large = config.kind == "ddpm" and config.variance_type == "fixed_large"
    std_dev = np.where(after < 1, np.sqrt(1 - before / after), 0.0) if large else removed
    direction = np.sqrt(np.maximum(1 - after - removed**2, 0))
    columns = (x.astype(np.float32) for x in (before, after, direction, std_dev))
    return schedules.Schedule(timesteps.astype(np.int32), *columns)


def ddim_alphas(config: SchedulerConfig, num_inference_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps of a scheduler, descending, and ``abar`` before and after each step of DDIM; float64 [N] each.

    Raises:
      ArgumentError: as of `steps`.
    """
    _check(config, num_inference_steps, 0.0)
    config = _as_ddim(config)
    timesteps = _timesteps(config, num_inference_steps)
    before = np.maximum(_visited(config, timesteps), _TERMINAL)
    return timesteps, before, _after(config, timesteps, num_inference_steps)


def step_of_call(config: SchedulerConfig, call: int) -> int:
    """The number of the step that a row of `steps` belongs to, both counted from the first one that is taken."""
    return call - 1 if config.kind == "pndm" and call >= 2 else call


def _as_ddim(config: SchedulerConfig) -> SchedulerConfig:
    """DDIM over the same noise, to where the scheduler leads."""
    clean = config.kind not in ("ddim", "pndm")
    return dataclasses.replace(config, kind="ddim", set_alpha_to_one=clean or config.set_alpha_to_one)


def _check(config: SchedulerConfig, num_inference_steps: int, eta: float) -> None:
    if not 1 <= num_inference_steps <= config.num_train_timesteps:
        raise ArgumentError(
            f"num_inference_steps: expected 1 to {config.num_train_timesteps}, the number of timesteps, found "
            f"{num_inference_steps}"
        )
    if not (np.isfinite(eta) and 0 <= eta <= 1):
        raise ArgumentError(f"eta: expected 0 (deterministic) to 1 (as much noise as DDPM), found {eta}")


def clip_range(config: SchedulerConfig) -> float | None:
    """Largest absolute value that the clean estimate is clamped to; None: it is not."""
    return config.clip_sample_range if config.clip_sample and config.kind in ("ddim", "ddpm") else None


def convert(row: Steps, prediction_type: str, clip: float | None, sample: Array, output: Array) -> tuple[Array, Array]:
    """A network's output → the clean estimate and the predicted noise, float32.

    Args:
      row: of `Steps.row`.
      prediction_type: of the network.
      clip: of `clip_range`.
      sample: [B,...] latents, not scaled.
      output: of the network, for the latents times `row.input_scale`.
    """
    sample, output = sample.astype(jnp.float32) * row.input_scale, output.astype(jnp.float32)
    if prediction_type == "epsilon":
        x0, eps = (sample - row.sigma * output) / row.alpha, output
    elif prediction_type == "v_prediction":
        x0, eps = row.alpha * sample - row.sigma * output, row.alpha * output + row.sigma * sample
    else:
        x0, eps = output, (sample - row.alpha * output) / row.sigma
    if clip is not None:
        x0 = jnp.clip(x0, -clip, clip)
    return x0, eps


def no_history(steps: Steps, latents: Array) -> Array:
    """What the first step has of steps before it: zeros float32 [K,B,...] for latents [B,...]."""
    return jnp.zeros((np.shape(steps.of_history)[-1], *latents.shape), jnp.float32)


def advance(
    row: Steps, sample: Array, x0: Array, eps: Array, history: Array, noise: Array | None = None
) -> tuple[Array, Array]:
    """The latents after a step, and the history for the next one.

    Args:
      row: of `Steps.row`.
      sample, x0, eps: before the step, as in `convert`.
      history: [K,B,...], of `no_history` or of the step before.
      noise: standard normal; None: the steps draw none.
    """
    after = row.of_sample * sample + row.of_x0 * x0 + row.of_eps * eps
    for number in range(len(history)):
        after = after + row.of_history[number] * history[number]
    if len(history):
        history = jnp.concatenate([(row.kept_x0 * x0 + row.kept_eps * eps)[None], history[:-1]])
    return after if noise is None else after + row.of_noise * noise, history


def add_noise(row: Steps, latents: Array, noise: Array) -> Array:
    """Clean latents with the noise that they have before a step."""
    return (row.alpha * latents + row.sigma * noise) / row.input_scale


def _timesteps(config: SchedulerConfig, count: int) -> np.ndarray:
    """Timesteps, descending: whole ones, but of Euler with linspace. The solver leaves a place at the end."""
    total, solver = config.num_train_timesteps, config.kind == "dpmsolver++"
    places = count + solver
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, total - 1, places)[::-1][:count]
        timesteps = timesteps.astype(np.float32).astype(np.float64) if config.kind == "euler" else np.round(timesteps)
    elif config.timestep_spacing == "leading":
        timesteps = (np.arange(places) * (total // places))[::-1][:count] + config.steps_offset
    else:
        timesteps = np.round(total - np.arange(count) * (total / count)) - 1
    if timesteps[0] >= total or timesteps[-1] < 0:
        raise ArgumentError(
            f"num_inference_steps: {count} steps with steps_offset {config.steps_offset} lead to timestep "
            f"{timesteps[0]:g}, beyond the last one, {total - 1}; take fewer"
        )
    return timesteps


def _visited(config: SchedulerConfig, timesteps: np.ndarray) -> np.ndarray:
    return alphas_cumprod(config)[timesteps.astype(int)]


def _after(config: SchedulerConfig, timesteps: np.ndarray, count: int) -> np.ndarray:
    """``abar`` that each step leads to."""
    abar = alphas_cumprod(config)
    if config.kind == "ddpm":
        return np.append(abar[timesteps[1:].astype(int)], 1.0)
    return _stepped(config, timesteps.astype(int), config.num_train_timesteps // count)


def _stepped(config: SchedulerConfig, timesteps: np.ndarray, down: int) -> np.ndarray:
    """``abar`` of the timesteps that lie `down` lower.

    DDIM and PNDM in `diffusers` go down by a fixed number, even where the next timestep that they visit is another.
    """
    abar, following = alphas_cumprod(config), timesteps - down
    return np.where(following >= 0, abar[following], 1.0 if config.set_alpha_to_one else abar[0])


def _ddim(config: SchedulerConfig, timesteps: np.ndarray, eta: float) -> Steps:
    """Song et al. 2021, equations 12 and 16."""
    before, after = _visited(config, timesteps), _after(config, timesteps, len(timesteps))
    std_dev = eta * np.sqrt((1 - after) / (1 - before) * np.maximum(1 - before / after, 0))
    direction = np.sqrt(np.maximum(1 - after - std_dev**2, 0))
    return _plan(timesteps, before, of_x0=np.sqrt(after), of_eps=direction, of_noise=std_dev)


def _ddpm(config: SchedulerConfig, timesteps: np.ndarray) -> Steps:
    """Ho et al. 2020, equation 7."""
    before, after = _visited(config, timesteps), _after(config, timesteps, len(timesteps))
    beta = 1 - before / after
    variance = (1 - after) / (1 - before) * beta if config.variance_type == "fixed_small" else beta
    return _plan(
        timesteps,
        before,
        of_sample=np.sqrt(before / after) * (1 - after) / (1 - before),
        of_x0=np.sqrt(after) * beta / (1 - before),
        of_noise=np.where(timesteps > 0, np.sqrt(np.maximum(variance, 1e-20)), 0.0),
    )


def _sigmas(config: SchedulerConfig, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps, and the standard deviations of the noise on unscaled pictures before each step and after the last.

    Those of Karras et al. 2022, equation 5, are spread between the first and the last; their timesteps follow.
    """
    abar = alphas_cumprod(config)
    abar[-1] = max(abar[-1], _TERMINAL) if config.rescale_betas_zero_snr else abar[-1]
    every = np.sqrt((1 - abar) / abar)
    sigmas = np.interp(timesteps, np.arange(len(abar)), every)
    if config.use_karras_sigmas:
        # The solver spreads them over all noise of training, Euler over that of its timesteps.
        ends = every[[-1, 0]] if config.kind == "dpmsolver++" else sigmas[[0, -1]]
        first, last = ends ** (1 / _RHO)
        sigmas = (first + np.linspace(0, 1, len(timesteps)) * (last - first)) ** _RHO
        timesteps = np.interp(np.log(sigmas), np.log(every), np.arange(len(abar)))
        if config.kind == "dpmsolver++":  # its timesteps are whole
            timesteps = np.floor(timesteps) if config.beta_schedule == "squaredcos_cap_v2" else np.round(timesteps)
    return timesteps, np.append(sigmas, 0.0 if config.final_sigmas_type == "zero" else every[0])


def _euler(config: SchedulerConfig, timesteps: np.ndarray) -> Steps:
    """Karras et al. 2022, algorithm 2 without churn: latents are pictures plus noise, not scaled down."""
    timesteps, sigmas = _sigmas(config, timesteps)
    ratio, alpha = sigmas[1:] / sigmas[:-1], 1 / np.sqrt(sigmas[:-1] ** 2 + 1)
    largest = sigmas.max()
    start = largest if config.timestep_spacing in ("linspace", "trailing") else np.sqrt(largest**2 + 1)
    plan = _plan(timesteps, alpha**2, of_sample=ratio, of_x0=1 - ratio)
    return plan._replace(input_scale=alpha, sigma=sigmas[:-1] * alpha, init_noise_sigma=start)


def _dpm_solver(config: SchedulerConfig, timesteps: np.ndarray, start: int) -> Steps:
    """Lu et al. 2022, DPM-Solver++(2M), algorithm 2; the first step and perhaps the last are of first order."""
    (timesteps, sigmas), count = _sigmas(config, timesteps), len(timesteps)
    alpha = 1 / np.sqrt(sigmas**2 + 1)
    sigma = sigmas * alpha
    of_sample, of_x0, of_previous = np.zeros((3, count))
    few = config.lower_order_final and count < _FEW_STEPS
    first_at_end = config.euler_at_final or few or config.final_sigmas_type == "zero"
    for i in range(count):
        shrink = sigmas[i + 1] / sigmas[i]  # exp(-h), h the step in log(alpha / sigma)
        of_sample[i], of_x0[i] = sigma[i + 1] / sigma[i], alpha[i + 1] * (1 - shrink)
        if config.solver_order == 1 or i <= start or (i + 1 == count and first_at_end):
            continue
        h, h_before = -np.log(shrink), np.log(sigmas[i - 1] / sigmas[i])
        slope = alpha[i + 1] * ((1 - shrink) / 2 if config.solver_type == "midpoint" else (shrink - 1) / h + 1)
        of_x0[i], of_previous[i] = of_x0[i] + slope * h / h_before, -slope * h / h_before
    plan = _plan(timesteps, alpha[:-1] ** 2, of_sample=of_sample, of_x0=of_x0, kept_x0=np.ones(count))
    return plan._replace(sigma=sigma[:-1], of_history=of_previous[:, None])


def _pndm(config: SchedulerConfig, timesteps: np.ndarray, count: int) -> Steps:
    """Liu et al. 2022, equation 9 with the linear multistep method of equation 12, without Runge-Kutta steps.

    The network's outputs of up to four timesteps are combined (Adams-Bashforth). The first step is taken twice: the
    second time with the mean of the outputs at both of its ends (Heun), from the latents before it. These are linear in
    those after it and in the first output, so they need not be kept.

    Args:
      timesteps: that are visited.
      count: of all steps, from the beginning.
    """
    abar = alphas_cumprod(config)
    if config.prediction_type == "sample" or abar[-1] == 0:
        problem = "rescale_betas_zero_snr" if abar[-1] == 0 else "networks that predict the clean picture"
        raise ArgumentError(f"scheduler pndm: {problem} cannot be combined with it; take ddim")
    down, predicts_v = config.num_train_timesteps // count, config.prediction_type == "v_prediction"
    twice = len(timesteps) > 1
    calls = np.concatenate([timesteps[:2], timesteps[1:]]) if twice else timesteps
    before = calls.astype(int)
    if twice:
        before[1] += down  # the first step again
    at, (before, after) = abar[calls.astype(int)], (abar[before], _stepped(config, before, down))
    of_sample = np.sqrt(after / before)
    of_output = np.sqrt(1 - after) - of_sample * np.sqrt(1 - before)
    if predicts_v:
        of_sample, of_output = of_sample + of_output * np.sqrt(1 - before), of_output * np.sqrt(before)
    shares = np.zeros((len(calls), 1 + _KEPT))  # of the outputs of this call and of those before
    for call in range(len(calls)):
        # Of the second call, the history keeps a place that later ones leave out.
        outputs = [0] if call == 0 else [0, 1] if call == 1 else [n for n in range(call + 1) if n != call - 1][:4]
        mean = (0.5, 0.5) if call == 1 else _ADAMS_BASHFORTH[len(outputs) - 1]
        shares[call, outputs] = of_output[call] * np.asarray(mean)
    if twice:  # latents before the first step = (those after it - of_output output) / of_sample
        again = of_sample[1] / of_sample[0]
        shares[1, 1] -= again * of_output[0]
        of_sample[1] = again
    of_x0, of_eps = (-np.sqrt(1 - at), np.sqrt(at)) if predicts_v else (np.zeros(len(at)), np.ones(len(at)))
    plan = _plan(
        calls,
        at,
        of_sample=of_sample,
        of_x0=shares[:, 0] * of_x0,
        of_eps=shares[:, 0] * of_eps,
        kept_x0=of_x0,
        kept_eps=of_eps,
    )
    return plan._replace(of_history=shares[:, 1:])


def _plan(timesteps: np.ndarray, abar: np.ndarray, **factors: np.ndarray) -> Steps:
    zeros = np.zeros(len(timesteps))
    names = ("of_sample", "of_x0", "of_eps", "of_noise", "kept_x0", "kept_eps")
    columns = [factors.get(name, zeros) for name in names]
    return Steps(timesteps, zeros + 1, np.sqrt(abar), np.sqrt(1 - abar), *columns, zeros[:, None][:, :0])
