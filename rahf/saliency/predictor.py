"""A trained saliency model, ready for use: pictures in, densities out, differentiable in the pixels.

model = rahf.load("saliency-lite")
(map,) = model("photo.jpg")
map.log_density                            # float32 [H,W], its exponential sums to 1
map.heatmap, map.scanpath()                # to look at

jax.grad(lambda pixels: model.log_density(pixels)[0, 40, 60])(pixels)   # a pure JAX function
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import Config, SaliencyConfig
from rahf.core import labels, process, tree
from rahf.core.errors import ArgumentError, NotFinite
from rahf.images import inputs, letterbox
from rahf.images.pictures import rgb
from rahf.nn import pixels as pixels_lib
from rahf.saliency.maps import SaliencyMap, inside

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Array, Float

#: The heatmap of a saliency model.
HEATMAPS = ("saliency",)
#: What `center_bias` may be, and the weight of the learned one.
CENTER_BIAS = {"learned": 1.0, "none": 0.0}
_DEFAULT_BATCH = 8

#: (params, canvas [b,H,W,3] float in [0,1], frame int32 [b,4], weight of the centre bias [b]) → log-density [b,h,w].
Function = Callable[[tree.Params, Any, Any, Any], Any]


class Saliency:
    """A network with its parameters and preprocessing.

    Attributes:
      config: of the run.
      params: nested dict of arrays.
      functions: of the network, one for each canvas of `canvases`.
      name: of the run; step: of training, None if unknown.
      model_id: name, step, and a hash of what decides about the numbers.
      weight_license: of the weights.
      graphdef: the static structure that belongs to `params`; None for an exported file.
      center_biased: the network holds a learned centre bias, which `center_bias="none"` leaves out.
    """

    heatmap_names = HEATMAPS

    def __init__(
        self,
        config: Config,
        params: tree.Params,
        functions: Sequence[Function],
        *,
        name: str,
        step: int | None,
        model_id: str,
        weight_license: str,
        graphdef: Any = None,
        center_biased: bool = True,
    ):
        process.claim()
        self.config, self.params, self.name, self.step = config, params, name, step
        self.model_id, self.weight_license, self.graphdef = model_id, weight_license, graphdef
        self.center_biased = center_biased
        self.canvases = canvases(config)
        self.functions = tuple(functions)
        self._compiled = tuple(jax.jit(function) for function in self.functions)
        self._log_density = jax.jit(self.log_density_of)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a saliency model cannot be pickled: its functions are compiled for this process. Hand its path to the "
            "other process, and call rahf.load there"
        )

    def __repr__(self) -> str:
        size = tree.count(self.params) / 1e6
        height, width = self.canvases[0]
        return (
            f"Saliency({self.name!r}, step {self.step}, {size:.1f}M parameters, {width} x {height} pixels, "
            f"weights: {self.weight_license})"
        )

    def __call__(
        self,
        images: Any,
        *,
        center_bias: str = "learned",
        batch_size: int | None = None,
    ) -> list[SaliencyMap]:
        """Predicts for one image or many of any sizes.

        Args:
          images: one or many: paths, encoded bytes, Pillow images, arrays [h,w,3].
          center_bias: "learned", or "none": without the habit of people to look at the middle of a picture.
          batch_size: images per step; None: as many as there are, at most 8.

        Raises:
          rahf.images.ImageError: an image cannot be used; names it.
          ArgumentError: another `center_bias` (or "none" of a model without one) or batch size, or no images.
          NotFinite: the network computes NaN for an image; names it.
        """
        weight = self._bias_weight(center_bias)
        listed = inputs.image_list(images)
        if batch_size is not None and batch_size < 1:
            raise ArgumentError(f"batch_size: expected at least 1, found {batch_size}")
        size = batch_size or min(_DEFAULT_BATCH, 1 << (len(listed) - 1).bit_length())
        results: list[SaliencyMap] = []
        for first in range(0, len(listed), size):
            part = [rgb(source, f"image {first + n}") for n, source in enumerate(listed[first : first + size])]
            results += self._predict(part, weight, size)
        return results

    def _bias_weight(self, center_bias: str) -> float:
        if center_bias not in CENTER_BIAS:
            raise ArgumentError(f"center_bias: expected {' or '.join(CENTER_BIAS)}, found {center_bias!r}")
        if not CENTER_BIAS[center_bias] and not self.center_biased:
            raise ArgumentError(f"center_bias: {self.name} has no learned centre bias that could be left out")
        return CENTER_BIAS[center_bias]

    def _predict(self, part: list[tuple[np.ndarray, str]], weight: float, size: int) -> list[SaliencyMap]:
        results: list[SaliencyMap | None] = [None] * len(part)
        for number in range(len(self.canvases)):
            rows = [row for row, (image, _) in enumerate(part) if self.canvas_of(image.shape[:2]) == number]
            if not rows:
                continue
            # A batch is filled up, so that nothing is compiled twice.
            canvas = np.zeros((size, *self.canvases[number], 3), np.uint8)
            frames = np.zeros((size, 4), np.int32) + np.array([0, 0, *self._grid(number)], np.int32)
            for place, row in enumerate(rows):
                canvas[place], frames[place] = self._placed(part[row][0], number)
            grids = np.asarray(
                self._compiled[number](self.params, _unit(canvas), frames, np.full(size, weight, np.float32))
            )
            for place, row in enumerate(rows):
                image, name = part[row]
                cells = inside(grids[place], letterbox.Frame(*map(int, frames[place])))
                if not np.isfinite(cells).all():
                    raise NotFinite(f"{name}: the network computes values that are not finite; has training diverged?")
                results[row] = SaliencyMap(name, image.shape[:2], cells)
        return results

    def _placed(self, image: np.ndarray, number: int) -> tuple[np.ndarray, letterbox.Frame]:
        frame = letterbox.fit(image.shape[:2], self._grid(number))
        model = self.config.model
        fill = letterbox.fill_value(model.image_mean)
        return letterbox.place(image, frame, self.canvases[number], model.stride, fill), frame

    def _grid(self, number: int) -> tuple[int, int]:
        stride = self.config.model.stride
        return self.canvases[number][0] // stride, self.canvases[number][1] // stride

    def canvas_of(self, size: tuple[int, int]) -> int:
        """Number of the canvas on which a picture of this height and width is largest."""
        areas = []
        for number in range(len(self.canvases)):
            frame = letterbox.fit(size, self._grid(number))
            areas.append(frame.rows * frame.columns)
        return int(np.argmax(areas))

    def log_density(self, pixels: Any, *, center_bias: str = "learned") -> Float[Array, "b H W"]:
        """Log-density of pictures of one size, as a JAX function: for `jit`, `grad` and `vmap`.

        Args:
          pixels: uint8, or float in [0,1]: [B,h,w,3] or [h,w,3]; differentiable where they are floats.
          center_bias: as in a call.

        Returns:
          float32 [B,h,w] at the pictures' size (without the batch axis if `pixels` had none); exponentials sum to 1.

        Raises:
          ImageError, ArgumentTypeError: as `rahf.nn.pixels.batch`.
        """
        weight = self._bias_weight(center_bias)
        array, single = pixels_lib.batch(pixels)
        logs = self._log_density(self.params, array, jnp.full(len(array), weight, jnp.float32))
        return logs[0] if single else logs

    def log_density_of(self, params: tree.Params, array: Any, bias: Any) -> Float[Array, "b H W"]:
        """`log_density` with the parameters as an argument: uint8 or float [B,H,W,3] in [0,1], and the weight of the
        learned centre bias, float32 [B], 1 or 0."""
        size = array.shape[1:3]
        number = self.canvas_of(size)
        frame = letterbox.fit(size, self._grid(number))
        stride, canvas = self.config.model.stride, self.canvases[number]
        picture = pixels_lib.unit(array, (frame.rows * stride, frame.columns * stride))
        fill = letterbox.fill_value(self.config.model.image_mean).astype(np.float32) / np.float32(255)
        around = jnp.broadcast_to(jnp.asarray(fill), (len(array), *canvas, 3))
        place = frame.slices(stride)
        x = around.at[(slice(None), *place)].set(picture)
        frames = jnp.broadcast_to(jnp.asarray(frame, jnp.int32), (len(array), 4))
        cells = self.functions[number](params, x, frames, bias)[(slice(None), *frame.slices())]
        logs = jax.image.resize(cells, (len(array), *size), "bilinear")
        return logs - jax.nn.logsumexp(logs, (1, 2), keepdims=True)

    def tokens(self, prompts: Any = "") -> tuple[()]:
        """What a critic makes of prompts; a saliency model reads none."""
        return ()

    def heatmaps(self, pixels: Any, *tokens: Any) -> Float[Array, "b H W 1"]:
        """The density divided by its largest value, as the only heatmap of a critic's `heatmaps`; differentiable."""
        logs = self.log_density(pixels)
        return jnp.exp(logs - logs.max((-2, -1), keepdims=True))[..., None]

    def heatmap(self, pixels: Any, name: str = "saliency") -> Float[Array, "b H W"]:
        """One of `heatmaps` by its name. Raises UnknownNameError."""
        return self.heatmaps(pixels)[..., labels.position("heatmap", name, HEATMAPS)]


def canvases(config: Config) -> tuple[tuple[int, int], ...]:
    """Height and width of the canvases: the one of training at the largest of its scales, and, if it is no square, the
    same turned."""
    model = config.model
    own = (round(model.image_height * max(model.scales)), round(model.image_width * max(model.scales)))
    return (own,) if own[0] == own[1] else (own, own[::-1])


def scaled_canvases(config: SaliencyConfig, canvas: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of all canvases of `config.scales`, the largest first. `canvas`: the largest."""
    largest = max(config.scales)
    return [(round(canvas[0] * s / largest), round(canvas[1] * s / largest)) for s in sorted(config.scales)[::-1]]


@jax.jit
def _unit(canvas: Any) -> Any:
    return canvas.astype(jnp.float32) * (1.0 / 255.0)
