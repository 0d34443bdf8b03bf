"""A picture and a spectral volume → frames, without a trained network.

Every pixel is moved by softmax splatting at the picture's own size; the flow is upscaled from the volume's grid. What
the motion uncovers is filled from its surroundings, by preference from what moves little: the background. One frame is
held at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, UInt8

from data_pipelines.video.volume import SpectralVolume
from rahf.core.errors import ArgumentError
from rahf.motion import spectrum as spectrum_lib
from rahf.motion import splat

Method = Literal["softmax", "average", "backward"]
#: Draws frames: pictures float32 [B,h,w,3] in [0,1], displacements [B,h,w,2], importance [B,h,w] → float32 [B,h,w,3].
Frames = Callable[[Array, Array, Array], Array]
_LEVELS = 6  # of the pyramid that fills holes: up to 64 pixels across
_PREFERENCE = 40.0  # exponent of how much less what moves most counts in a hole than what moves least near it
_NEAR = 16  # pixels of a block; near is a block and its neighbours
_DOUBT = 0.005  # weight at which a mean and the coarser one count alike


class Renderer:
    """Draws a picture at any time of its motion; compiled once per size of picture and volume."""

    def __init__(
        self,
        picture: UInt8[np.ndarray, "H W 3"],
        volume: SpectralVolume,
        magnify: float = 1.0,
        mask: Float[np.ndarray, "H W"] | None = None,
        method: Method = "softmax",
        network: Frames | None = None,
    ):
        """Builds.

        Args:
          picture: the photograph.
          volume: on any grid; displacements grow with the picture.
          magnify: factor of all displacements.
          mask: how much of its motion each pixel keeps, in [0,1]; None: all.
          method: "average" and "backward" are baselines: equal weights, and bilinear samples at ``q - F(q)``.
          network: draws the frames instead; `rahf.motion.renderer_task.load`.

        Raises:
          ArgumentError: a factor that is not positive, a mask of another size, or another method.
        """
        height, width = picture.shape[:2]
        if not (np.isfinite(magnify) and magnify > 0):
            raise ArgumentError(f"magnify: expected a factor above 0, found {magnify}")
        if mask is not None and mask.shape != (height, width):
            raise ArgumentError(f"mask: expected the picture's {width} x {height} pixels, found {mask.shape[::-1]}")
        if method not in ("softmax", "average", "backward"):
            raise ArgumentError(f"method: expected 'softmax', 'average' or 'backward', found {method!r}")
        self.volume, self.size = volume, (height, width)
        self._picture = jnp.asarray(picture, jnp.float32) / 255.0
        self._spectrum = jnp.asarray(volume.spectrum) * magnify
        self._mask = jnp.ones((height, width)) if mask is None else jnp.asarray(mask, jnp.float32)
        self._method, self._network = method, network
        motion = _mean_motion(self._spectrum, volume.frames)
        grid = volume.spectrum.shape[1:3]
        factor = ((height / grid[0]) * (width / grid[1])) ** 0.5
        self.importance = jax.image.resize(motion, self.size, "linear") * factor * self._mask

    def flow(self, time: float) -> Float[Array, "H W 2"]:
        """Displacements of the picture's pixels at a time, in frames of the volume."""
        return _flow(self._spectrum, self._mask, jnp.float32(time), self.volume.frames)

    def frame(self, time: float) -> UInt8[np.ndarray, "H W 3"]:
        """The picture at a time, in frames of the volume; also between two frames."""
        flow = self.flow(time)
        if self._network is not None:
            return np.asarray(_eight_bit(self._network(self._picture[None], flow[None], self.importance[None])[0]))
        if self._method == "backward":
            return np.asarray(_backward(self._picture, flow))
        weights = self.importance if self._method == "softmax" else jnp.zeros_like(self.importance)
        return np.asarray(_forward(self._picture, flow, self.importance, weights))


def frame_times(volume: SpectralVolume, seconds: float, fps: float, loop: bool) -> Float[np.ndarray, " n"]:
    """The times of an animation's frames, in frames of the volume.

    Args:
      volume: what repeats after its period.
      seconds: length; a loop is given whole periods (`rahf.motion.loops.loop_seconds`).
      fps: frames per second.
      loop: the frame after the last one is the first.

    Raises:
      ArgumentError: no frame at all, or numbers that make no sense.
    """
    for name, value in (("seconds", seconds), ("fps", fps)):
        if not (np.isfinite(value) and value > 0):
            raise ArgumentError(f"{name}: expected a number above 0, found {value:g}")
    count = round(seconds * fps)
    if count < 1:
        raise ArgumentError(f"seconds: {seconds:g} s at {fps:g} frames/s are less than one frame; make it longer")
    if loop:
        periods = max(1, round(seconds / volume.period))
        return np.arange(count) * (periods * volume.frames / count)
    return np.arange(count) * (volume.fps / fps)


def splatted(
    pictures: Float[Array, "b h w c"],
    flow: Float[Array, "b h w 2"],
    importance: Float[Array, "b h w"],
    weights: Float[Array, "b h w"] | None = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """Pictures along their motion, holes filled; and how much arrived at each pixel.

    Args:
      pictures: in [0,1].
      flow: displacements of their pixels.
      importance: mean motion of each pixel.
      weights: of the splatting; None: the importance.
    """
    # The importance comes along, to tell what stands still from what moves at the edge of a hole.
    values = jnp.concatenate([pictures, importance[..., None]], -1)
    moved = splat.softmax_splat(values, flow, importance if weights is None else weights)
    largest = jnp.maximum(importance.max((1, 2), keepdims=True), 1e-6)
    arrived = moved.values[..., -1]
    least = _least_nearby(jnp.where(moved.coverage > 0.05, arrived, jnp.inf))
    still = jnp.exp(-_PREFERENCE * jnp.maximum(arrived - least, 0) / largest)
    return fill_holes(moved.values[..., :-1], moved.coverage, still), moved.coverage


def fill_holes(
    values: Float[Array, "b h w c"], coverage: Float[Array, "b h w"], preference: Float[Array, "b h w"]
) -> Float[Array, "b h w c"]:
    """What little arrived at is blended with coarser and coarser means of its surroundings.

    Args:
      values: 0 where nothing arrived.
      coverage: of `rahf.motion.splat.Splatted`.
      preference: how much a pixel counts in the means, above 0.
    """
    covered = jnp.clip(coverage, 0, 1)[..., None]
    return _fill(values, jnp.clip(2 * covered, 0, 1), covered * preference[..., None], _LEVELS)


def _fill(values: Array, keep: Array, weight: Array, levels: int) -> Array:
    """Keeps a share of each pixel and takes the rest from the means of a pyramid, which weights make."""
    if not levels or min(values.shape[1:3]) < 2:
        total = weight.sum((1, 2), keepdims=True)
        mean = (values * weight).sum((1, 2), keepdims=True) / jnp.maximum(total, 1e-12)
        return keep * values + (1 - keep) * mean
    total, sums = _halved(weight), _halved(values * weight)
    hit = total > 1e-12
    means = jnp.where(hit, sums / jnp.where(hit, total, 1.0), 0.0)
    confidence = total / (total + _DOUBT)
    coarse = _fill(means, confidence, total, levels - 1)
    return keep * values + (1 - keep) * jax.image.resize(coarse, values.shape, "linear")


def _least_nearby(values: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """The smallest value of each pixel's block and of the eight around it; 0 where there is none."""
    b, h, w = values.shape
    padded = jnp.pad(values, ((0, 0), (0, -h % _NEAR), (0, -w % _NEAR)), constant_values=jnp.inf)
    blocks = padded.reshape(b, padded.shape[1] // _NEAR, _NEAR, padded.shape[2] // _NEAR, _NEAR).min((2, 4))
    around = jax.lax.stop_gradient(jnp.pad(blocks, ((0, 0), (1, 1), (1, 1)), constant_values=jnp.inf))
    rows, columns = blocks.shape[1:]
    least = jnp.stack([around[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]).min(0)
    least = jnp.where(jnp.isfinite(least), least, 0.0)
    return jnp.repeat(jnp.repeat(least, _NEAR, 1), _NEAR, 2)[:, :h, :w]


def _halved(values: Array) -> Array:
    """Means of 2 x 2; an odd side is padded by its last row."""
    b, h, w, c = values.shape
    values = jnp.pad(values, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return values.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean((2, 4))


_mean_motion = jax.jit(splat.mean_motion_of, static_argnums=1)


@functools.partial(jax.jit, static_argnames="frames")
def _flow(
    spectrum: Complex[Array, "k h w 2"], mask: Float[Array, "H W"], time: Float[Array, ""], frames: int
) -> Float[Array, "H W 2"]:
    flow = spectrum_lib.at_time(spectrum, frames, time)
    scale = jnp.array([mask.shape[1] / flow.shape[1], mask.shape[0] / flow.shape[0]], jnp.float32)
    return jax.image.resize(flow, (*mask.shape, 2), "linear") * scale * mask[..., None]


@jax.jit
def _forward(
    picture: Float[Array, "H W 3"],
    flow: Float[Array, "H W 2"],
    importance: Float[Array, "H W"],
    weights: Float[Array, "H W"],
) -> UInt8[Array, "H W 3"]:
    return _eight_bit(splatted(picture[None], flow[None], importance[None], weights[None])[0][0])


@jax.jit
def _backward(picture: Float[Array, "H W 3"], flow: Float[Array, "H W 2"]) -> UInt8[Array, "H W 3"]:
    return _eight_bit(splat.backward_warp(picture[None], -flow[None])[0])


def _eight_bit(pixels: Float[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    return jnp.floor(jnp.clip(pixels, 0, 1) * 255 + 0.5).astype(jnp.uint8)
