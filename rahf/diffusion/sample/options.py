"""Options of guidance, and what each does."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal

import jax

from rahf.core.errors import ArgumentError

_STATIC = dict(static=True)


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
    """Universal guidance (Bansal et al. 2023): how strongly, by which gradient, and at which steps the energy steers.

    Start with forward guidance alone: ``scale`` 0.05, 0.1, 0.2, 0.5 with ``normalise="eps"``, which makes
    scales mean the same for every energy and every step. Pictures that no longer look like the model's own,
    or patterns that only this critic likes, mean that the scale is too high; `recurrences` (2 to 4) let a
    high scale go with pictures that the model finds likely. Judge with another critic than the one that
    guides. Backward guidance helps where the energy's gradient says little about the noise (masks,
    detectors); it costs `backward_steps` gradients of the energy but none of the denoiser.

    A pytree: the numbers `scale`, `max_norm`, `backward_rate`, `backward_tolerance` and `total_variation` are
    leaves and may be traced, so trying other ones under `jax.jit` compiles nothing; all else is static.

    Attributes:
      scale: of forward guidance, s in ``eps + s · sqrt(1 - abar) · g``. A number, or [B], one per sample. 0:
        none; given as a plain number it costs no gradient, and the samples are those of the plain sampler to
        the last bit.
      normalise: what g is. "none": the gradient itself (published scales for it run from 2 to 20,000, one for
        every task); "unit": divided by its norm; "eps": that, times the norm of eps, so that s is a share of
        the noise. Norms are over all numbers of one sample.
      max_norm: a longer gradient is shortened to it, per sample, before `normalise`; matters for "none".
      window: guide only while `abar`, the share of signal in the latents, is in this closed range. At lower
        `abar` the clean estimate is a blur unlike any picture that a critic was trained on.
      recurrences: k, number of visits of each step inside the window, with fresh noise put back in between
        (self-recurrence); 1: none is repeated. The noise lets the model mend what a push has broken, and undoes a
        part of the push: at the same scale the energy falls less. The cost grows k-fold.
      through_denoiser: let the gradient flow from the clean estimate back through eps (exact; about twice the
        time, and the denoiser's activations); False: treat eps as a constant.
      backward_steps: m, the highest number of Adam's steps on a displacement of the clean estimate; 0: no backward
        guidance.
      backward_rate: learning rate of these steps.
      backward_tolerance: a sample stops when its energy is below this.
      total_variation: weight of the mean absolute difference between neighbouring values of the displaced
        estimate, to keep displacements smooth.
      clean_range: the clean estimate is clamped to it before each step, and eps made to agree, as pixel-space
        models are often sampled; (-1, 1) for those. None: not clamped.
      remat: compute the activations of denoiser, decoder and energy again for the gradient instead of keeping them.
        Memory is that of the largest of the three, not their sum; and, where the whole trajectory is differentiated,
        that of one step.
    """

    scale: Any = 0.1
    max_norm: Any = math.inf
    backward_rate: Any = 0.01
    backward_tolerance: Any = 1e-5
    total_variation: Any = 0.0
    normalise: Literal["none", "unit", "eps"] = _static("eps")
    window: tuple[float, float] = _static((0.1, 1.0))
    recurrences: int = _static(1)
    through_denoiser: bool = _static(True)
    backward_steps: int = _static(0)
    clean_range: tuple[float, float] | None = _static(None)
    remat: bool = _static(True)

    def __post_init__(self):
        """Raises ValueError naming the option, what was expected and what was found. Traced numbers are not
        checked."""
        for name in ("scale", "max_norm", "backward_rate", "backward_tolerance", "total_variation"):
            value = getattr(self, name)
            if isinstance(value, numbers.Real) and not (value >= 0 and (math.isfinite(value) or name == "max_norm")):
                raise ArgumentError(f"{name}: expected a finite number of at least 0, found {value}")
        if self.normalise not in ("none", "unit", "eps"):
            raise ArgumentError(f"normalise: expected 'none', 'unit' or 'eps', found {self.normalise!r}")
        for name, least in (("recurrences", 1), ("backward_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise ArgumentError(f"{name}: expected a whole number of at least {least}, found {value!r}")
        for name in ("window", "clean_range"):
            value = getattr(self, name)
            if value is not None and not (len(value) == 2 and value[0] < value[1]):
                raise ArgumentError(f"{name}: expected (low, high) with low < high, found {value!r}")
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise ArgumentError(f"window: expected shares of signal, 0 <= low < high <= 1, found {self.window!r}")

    @property
    def forward(self) -> bool:
        """Whether there is forward guidance; False only if the scale is known to be 0."""
        return not (isinstance(self.scale, numbers.Real) and self.scale == 0)
