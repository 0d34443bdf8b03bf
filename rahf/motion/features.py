"""A fixed network's maps of pictures: for a perceptual loss, and for distances between sets of videos.

The paper compares features of VGG. Its weights are large and are not shipped; where they are not at hand, the
EfficientNet-Lite tower of a critic stands in, above all that of the shipped "lite". `FeatureNetwork.name` says which it
was: distances over features of different networks are no numbers of one table.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rahf.core.errors import ArgumentError
from rahf.core.tree import Params
from rahf.critic import loading
from rahf.nn import efficientnet, functional
from rahf.nn.efficientnet import EfficientNet
from rahf.nn.vgg import VGG
from rahf.pretrained import resnet, vgg

#: Stages whose maps count: relu1_2 to relu4_3 of VGG16, strides 2 to 16 of EfficientNet-Lite.
STAGES = 4
_VGG_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
_DTYPE = jnp.dtype("float32")
#: Added to the mean of a map, by which differences are divided.
_LEAST = 1e-6


class FeatureNetwork(NamedTuple):
    """A network that is not trained.

    Attributes:
      name: for tables.
      params: of the network.
      function: (params, normalised pictures) → maps.
      mean, std: of the normalisation of pixels in [0,1].
    """

    name: str
    params: Params
    function: Callable[[Params, Array], tuple[Array, ...]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def maps(self, pictures: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """The maps of `STAGES` stages, finest first, of pictures in [0,1]."""
        normalised = (pictures - jnp.asarray(self.mean, _DTYPE)) / jnp.asarray(self.std, _DTYPE)
        return self.function(self.params, normalised)

    def difference(self, one: Float[Array, "b h w 3"], other: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        """How much the maps of `one` differ from those of `other`, differentiable in `one`.

        The mean over stages of ``mean |f(one) - f(other)| / mean |f(other)|``: a share, so that networks whose features
        have another size weigh alike.
        """
        pairs = zip(self.maps(one), jax.lax.stop_gradient(self.maps(other)))
        mean = lambda values: jnp.abs(values).mean((1, 2, 3))  # noqa: E731
        return jnp.stack([mean(a - b) / (mean(b) + _LEAST) for a, b in pairs]).mean(0)


def load(source: str | os.PathLike) -> FeatureNetwork:
    """Reads a network.

    Args:
      source: torchvision's VGG as .pth or .safetensors; or what `rahf.load` takes: a critic whose tower is an
        EfficientNet-Lite, as "lite".

    Raises:
      PretrainedError: a file that is no VGG.
      ArgumentError: a critic with another tower.
      CheckpointError, ExportError: no critic there.
    """
    path = pathlib.Path(source)
    if path.suffix.lower() in _VGG_ENDINGS:
        return _vgg(path)
    critic = loading.load(source)
    model = critic.config.model
    if getattr(model, "tower", None) != "efficientnet":
        raise ArgumentError(
            f"{os.fspath(source)}: features are those of a VGG (.pth, .safetensors) or of a critic with the tower "
            f'"efficientnet", as "lite"; this is a {model.family} model with another one'
        )
    graphdef, _ = functional.abstract(lambda: EfficientNet(model.efficientnet, dtype=_DTYPE))
    last = [stage for stage, stride in enumerate(efficientnet.STRIDES) if stride == 2][STAGES - 1]
    name = f"EfficientNet-Lite tower of {critic.name}"
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, _DTYPE), critic.params["tower"])
    function = lambda params, pictures: functional.merge(graphdef, params).maps_until(pictures, last)  # noqa: E731
    return FeatureNetwork(name, params, function, model.image_mean, model.image_std)


def _vgg(path: pathlib.Path) -> FeatureNetwork:
    config = vgg.published_vgg(path).first(STAGES)
    graphdef, _ = functional.abstract(lambda: VGG(config, dtype=_DTYPE))
    params = jax.tree.map(jnp.asarray, vgg.load_vgg(path, config))
    function = lambda params, pictures: functional.merge(graphdef, params).maps(pictures)  # noqa: E731
    return FeatureNetwork(f"VGG {path.name}", params, function, resnet.MEAN, resnet.STD)
