"""Prompts for critics, how to compare predictions, and a critic of colours, whose scores are computed by hand."""

import types

import numpy as np
from PIL import Image

from rahf.core.batch import Prediction
from rahf.text import prompts as prompts_lib

SIDE = 8
PROMPTS = ["a red cat on a blue mat", "two dogs", "one green bird and two cats.", "mat", "a blue bird, a dog"]


class ColourCritic:
    """Plausibility = 1 - mean red, alignment = mean green, aesthetics = mean blue, overall = their mean.

    Implausibility is the red channel, misalignment the blue one. Prompts of more than five words are cut.
    """

    image_size = SIDE
    model_id = "colours-1"

    def __init__(self):
        self.calls = []

    def tokens(self, prompts):
        self._warn([prompts] if isinstance(prompts, str) else prompts)

    def _warn(self, prompts):
        cut = [prompt for prompt in prompts if len(prompt.split()) > 5]
        prompts_lib.warn([types.SimpleNamespace(prompt=prompt, notes=["it is cut"]) for prompt in cut])

    def __call__(self, images, prompts, batch_size=None):
        self.calls.append(len(images))
        self._warn([prompts] if isinstance(prompts, str) else prompts)
        assert batch_size is None or len(images) <= batch_size
        small = np.stack([self._small(one) for one in images]).astype(np.float64) / 255
        red, green, blue = np.moveaxis(small.mean((1, 2)), -1, 0)
        scores = np.stack([1 - red, green, blue, (1 - red + green + blue) / 3], 1)
        heatmaps = small[:, :, :, [0, 2]]
        words = np.zeros((len(images), 4), np.float32)
        return Prediction(heatmaps.astype(np.float32), scores.astype(np.float32), words)

    def _small(self, image):
        if isinstance(image, bytes):
            import io

            image = Image.open(io.BytesIO(image)).convert("RGB")
        elif not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image))
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def plain(red, green, blue, size=(SIDE, SIDE)) -> np.ndarray:
    """A picture of one colour, uint8 [h,w,3]."""
    return np.full((*size, 3), (red, green, blue), np.uint8)


def assert_same(found: Prediction, expected: Prediction, atol: float = 1e-5):
    for name, a, b in zip(Prediction._fields, found, expected):
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=name)
