"""The one rule about the values of pixels: uint8, or floats in [0, 1]. Pictures, JAX functions and PyTorch share it."""

from __future__ import annotations

import math

from rahf.core.errors import ImageError

#: Of a finished picture: floats may leave [0, 1] by rounding only.
PICTURE = (-1e-3, 1 + 1e-3)
#: Of pixels that an optimizer or a generator changes: they may leave [0, 1] by a step. Pictures in [-1, 1] fall below.
OPTIMIZED = (-0.25, 1.25)
#: What is expected, for messages about other types.
EXPECTED_TYPES = "expected uint8 0..255 or floats in [0,1]"
#: What is wrong with an array whose mask would be ignored.
MASKED = "a masked array, whose values under the mask are unclear; use pixels.filled(value)"
_CERTAINLY_BYTES = 2.0  # above it the values cannot come from [0, 1], not even after steps


def check(name: str, low: float, high: float, limits: tuple[float, float] = PICTURE) -> None:
    """Refuses floats that cannot be pixels in [0, 1], and says which mistake they look like.

    Args:
      name: of the image or argument, for the message.
      low, high: smallest and largest value; NaN if there is a NaN among the values.
      limits: `PICTURE` or `OPTIMIZED`.

    Raises:
      ImageError: a value that is not finite, or outside of `limits`.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{name}: pixels are not finite (NaN or infinite)")
    if limits[0] <= low and high <= limits[1]:
        return
    if high > limits[1]:
        remedy = "pixels in 0..255 given as float? Divide by 255" if high > _CERTAINLY_BYTES else "clip them"
    else:
        remedy = "pixels in -1..1? Use (x + 1) / 2" if low >= PICTURE[0] - 1 else "rescale them"
    raise ImageError(f"{name}: floats from {low:g} to {high:g}, expected 0..1; {remedy}")
