"""A critic for PyTorch: scores of tensors, with gradients that reach the generator of the images.

    reward = as_torch(rahf.load("runs/demo"), "overall")
    images = generator(noise)                       # float [B,3,H,W] in [0,1], any device
    (-reward(images, prompts).mean()).backward()    # gradients in the generator's parameters

DLPack exchanges tensors without a copy where JAX and PyTorch see the same device and the memory fits (dense, and on a
CPU aligned to 64 bytes).
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf.core import labels, pixel_range, process
from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError, ArgumentTypeError, ImageError
from rahf.critic.critic import Critic
from rahf.images import pictures as pictures_lib
from rahf.nn import pixels as pixels_lib

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


class TorchReward:
    """Scores of image tensors, differentiable by PyTorch's autograd (first order). `as_torch` returns one."""

    def __init__(self, critic: Critic, score: str | Mapping[str, float] | None = None):
        """As `as_torch`."""
        _torch()  # its ImportError says how to install PyTorch
        _note_memory()
        self.critic = critic
        self.weights = None if score is None else labels.weights(score)
        if score is not None:
            critic.outputs.check_score(score)
        self._tokens = functools.lru_cache(maxsize=4096)(critic.tokens)
        self.compiled = _compiled(critic)

    def __call__(self, images: torch.Tensor, prompts: str | Sequence[str]) -> torch.Tensor:
        """Scores images.

        Args:
          images: float [B,3,H,W] or [3,H,W] in [0,1], of any floating type, on any device; or uint8.
          prompts: one for all images, or one per image.

        Returns:
          float32 [B] (or [B,4] in the order of `rahf.core.batch.SCORES`, if there is no `score`; without B for a single
          image), high = good, on the images' device. The gradient has the images' type and device.

        Raises:
          rahf.images.ImageError: another shape (channels last is named) or type, or values below -0.25 or above 1.25.
          TypeError: no tensor; the message says what takes other images.
          ValueError, TypeError: prompts, as by the critic.

        Warns:
          rahf.text.PromptWarning: a prompt is too long; names the words lost.
        """
        process.claim()
        _check(images)
        single = images.ndim == 3
        batch = images[None] if single else images
        ids, mask = self._text(prompts, len(batch))
        scores = _function().apply(batch, self.critic, self.compiled, ids, mask)
        if self.weights is not None:
            scores = _weighted(scores, self.weights)
        return scores[0] if single else scores

    def _text(self, prompts: str | Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(prompts, str):
            return self._tokens(prompts)
        prompts = list(prompts)
        if len(prompts) != count:
            raise ArgumentError(f"{count} images but {len(prompts)} prompts; give one for all, or one per image")
        rows = [self._tokens(prompt) for prompt in prompts]
        return np.concatenate([ids for ids, _ in rows]), np.concatenate([mask for _, mask in rows])


def _weighted(scores: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """[B,4] → [B]. Scores of weight 0 are left out: what a model does not predict is NaN."""
    used = np.flatnonzero(weights)
    return scores[:, used.tolist()] @ _torch().from_numpy(weights[used]).to(scores)


def as_torch(critic: Critic, score: str | Mapping[str, float] | None = None) -> TorchReward:
    """A critic as a differentiable function of PyTorch tensors.

    Args:
      critic: of `rahf.load`: a run directory or an exported file.
      score: a name of `rahf.core.batch.SCORES`, or weights by name; None: all four scores.

    Raises:
      ImportError: PyTorch is not installed.
      NotPredicted: the critic does not predict the score, or one of those with a weight.
      ValueError: an unknown score; suggests the nearest.
    """
    return TorchReward(critic, score)


def policy_reward(critic: Critic, score: str | Mapping[str, float] = "overall") -> Callable[..., Any]:
    """A reward in the shape that DDPO-style trainers expect; no gradients.

    `DDPOTrainer` of TRL called it so until TRL 0.23, which was the last to have it. For the reward functions of present
    TRL see `rahf.interop.trl.prompt_reward`.

    Returns:
      Function of (images [B,3,H,W] in [0,1], prompts, metadata) → (rewards float32 [B] on the images' device,
      {score name: list of B floats} to be logged). Pixels are checked as by `as_torch`, then clipped to [0,1]. NumPy
      arrays [B,H,W,3], the channels last, are taken, too.
    """
    all_scores, weights = as_torch(critic), labels.weights(score)
    critic.outputs.check_score(score)

    def reward(images: torch.Tensor, prompts: Sequence[str], metadata: Any = None) -> tuple[torch.Tensor, dict]:
        torch = _torch()
        with torch.no_grad():
            scores = all_scores(clipped(_from_numpy(images)), prompts)
            logged = {name: scores[:, SCORES.index(name)].tolist() for name in critic.outputs.scores}
            return _weighted(scores, weights), logged

    return reward


def differentiable_reward(critic: Critic, score: str | Mapping[str, float] = "overall") -> Callable[..., Any]:
    """A reward in the shape that AlignProp-style trainers expect: gradients flow into the images.

    `AlignPropTrainer` of TRL called it so until TRL 0.23, which was the last to have it.

    Returns:
      Function of (images [B,3,H,W], about [0,1], prompts, metadata) → (rewards float32 [B], {}). Pixels are checked as
      by `as_torch`; what then is outside [0,1] is clipped, as when a picture is saved, and has no gradient.
    """
    differentiable = as_torch(critic, score)

    def reward(images: torch.Tensor, prompts: Sequence[str], metadata: Any = None) -> tuple[torch.Tensor, dict]:
        return differentiable(clipped(images), prompts), {}

    return reward


class _Compiled(NamedTuple):
    """`value`: (params, images [B,3,H,W], ids, mask) → scores [B,4]. `pull`: these and the gradient of the scores → the
    gradient of the images."""

    value: Callable[..., jax.Array]
    pull: Callable[..., jax.Array]


#: All rewards of a critic share its compiled functions.
_cache: weakref.WeakKeyDictionary[Critic, _Compiled] = weakref.WeakKeyDictionary()


def _compiled(critic: Critic) -> _Compiled:
    if critic not in _cache:
        network_scores = critic.network.scores  # a reference to the critic would keep its own entry alive

        def scores(params, images, ids, mask):
            return pixels_lib.call(network_scores, params, jnp.moveaxis(images, 1, -1), ids, mask)

        def pull(params, images, ids, mask, cotangent):
            return jax.vjp(lambda x: scores(params, x, ids, mask), images)[1](cotangent)[0]

        _cache[critic] = _Compiled(jax.jit(scores), jax.jit(pull))
    return _cache[critic]


@functools.cache
def _torch() -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ImportError("rahf.interop.torch needs PyTorch: pip install rahf[torch]") from error
    return torch


@functools.cache
def _note_memory() -> None:
    """Logs, once, that JAX has taken the memory of a GPU before `rahf.interop` could prevent it."""
    if jax.default_backend() == "gpu" and not any(os.environ.get(name) for name in process.GPU_MEMORY_SETTINGS):
        _log.warning(
            "JAX has reserved 75%% of the GPU's memory, which PyTorch may need: import rahf.interop before a critic is "
            "loaded, or set XLA_PYTHON_CLIENT_PREALLOCATE=false"
        )


@functools.cache
def _function() -> type:
    """The autograd function: a class, defined here because its base class needs PyTorch."""
    torch = _torch()
    once = torch.autograd.function.once_differentiable

    class Score(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images, critic, compiled, ids, mask):
            ctx.params, ctx.pull, ctx.text = critic.params, compiled.pull, (ids, mask)
            ctx.save_for_backward(images)
            scores = compiled.value(critic.params, to_jax(images), ids, mask)
            return to_torch(scores, images.device)

        @staticmethod
        @once
        def backward(ctx, cotangent):
            (images,) = ctx.saved_tensors
            gradient = ctx.pull(ctx.params, to_jax(images), *ctx.text, to_jax(cotangent))
            return to_torch(gradient, images.device).to(images.dtype), None, None, None, None

    return Score


def for_critic(pictures: Any) -> Any:
    """Pictures of a trainer in the form that a critic takes: tensors [B,3,H,W] or [3,H,W] with the channels last.

    Tensors are clipped to [0,1]; all else (NumPy arrays [B,H,W,3], Pillow images, paths) is returned unchanged. PyTorch
    is not needed for these.

    Raises:
      ImageError: a tensor of another shape, type or range.
    """
    module = sys.modules.get("torch")  # a tensor cannot exist where PyTorch has not been imported
    if module is None or not isinstance(pictures, module.Tensor):
        return pictures
    return clipped(pictures.detach()).movedim(-3, -1)


def _from_numpy(images: Any) -> Any:
    """NumPy arrays [B,H,W,3] as tensors [B,3,H,W] on the CPU; all else unchanged. Raises ImageError."""
    if not isinstance(images, np.ndarray):
        return images
    if images.ndim != 4 or not images.size:
        raise ImageError(f"images: array of shape {images.shape}, expected [B,H,W,3]")
    pictures_lib.check_channels(images[0], "images")
    return _torch().from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def clipped(images: torch.Tensor) -> torch.Tensor:
    """Pixels in [0,1], checked before they are clipped: clipping would hide a picture in -1..1 or 0..255."""
    _check(images)
    return images.clamp(0, 1) if images.is_floating_point() else images


def _check(images: torch.Tensor) -> None:
    torch = _torch()
    if not isinstance(images, torch.Tensor):
        kind = f"{type(images).__module__}.{type(images).__name__}"
        raise ArgumentTypeError(
            f"images: expected a tensor [B,3,H,W], found {kind}; critic(images, prompts) takes paths, Pillow images "
            "and arrays, critic.scores(pixels, tokens) JAX arrays"
        )
    shape = tuple(images.shape)
    if images.ndim not in (3, 4) or shape[-3] != 3 or not images.numel():
        last = images.ndim in (3, 4) and shape[-1] in (1, 3, 4)
        remedy = "; this looks like channels last (HWC), use images.movedim(-1, -3)" if last else ""
        raise ImageError(f"images of shape {shape}, expected [B,3,H,W] or [3,H,W]{remedy}")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise ImageError(f"images of type {images.dtype}; {pixel_range.EXPECTED_TYPES}")
    if images.is_floating_point():
        values = images.detach()
        pixel_range.check("images", float(values.min()), float(values.max()), pixel_range.OPTIMIZED)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A tensor as a JAX array, on the same device where JAX has it; without copying where that is possible.

    float64 becomes float32. The array must not be used after the tensor was written to.
    """
    torch = _torch()
    tensor = tensor.detach()
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    if not _shared_device(tensor.device):
        tensor = tensor.cpu()
    return jnp.from_dlpack(tensor.contiguous())


def _shared_device(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and jax.default_backend() == "gpu")


def to_torch(array: jax.Array, device: torch.device) -> torch.Tensor:
    """A JAX array as a tensor on `device`, without copying where that is possible."""
    torch = _torch()
    return torch.from_dlpack(jax.block_until_ready(array)).to(device)
