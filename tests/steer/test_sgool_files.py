"""`rahf sgool` on disk: pictures, intermediate ones, the curve."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.core.errors import ArgumentError
from rahf.diffusion.latents.doodl import DoodlOptions, DoodlResult
from rahf.steer import sgool_files
from tests.helpers import stable_diffusion_maker as maker


class Red:
    """A critic that compiles in a moment: all scores are the mean of red, both heatmaps are red."""

    params = {}

    def tokens(self, prompts):
        count = 1 if isinstance(prompts, str) else len(prompts)
        return np.ones((count, 3), np.int32), np.ones((count, 3), np.bool_)

    def scores(self, pixels, text_ids, text_mask, params=None):
        return jnp.repeat(pixels[..., 0].mean((1, 2))[:, None], 4, 1)

    def heatmaps(self, pixels, text_ids, text_mask, params=None):
        return jnp.repeat(pixels[..., :1], 2, -1)


def test_files(tmp_path):
    pipe, out = maker.pipeline(model=maker.FLAT), tmp_path / "out"
    options = DoodlOptions(iterations=2, num_inference_steps=2)
    result = sgool_files.sgool_files(pipe, "cat", out, Red(), seeds=[3], options=options, keep_every=1)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["energy.csv", "energy.png", "seed3-before0.png", "seed3-before1.png", "seed3.png"]
    with Image.open(out / "seed3.png") as image:
        np.testing.assert_array_equal(image, np.round(result.images[0] * 255))
        metadata = json.loads(image.text["rahf"])
    assert metadata["seed"] == 3 and metadata["salient"]["weight"] == 0.5 and metadata["critic"] == "Red"
    rows = (out / "energy.csv").read_text().splitlines()
    assert rows[0] == "update,seed3" and len(rows) == 4
    assert float(rows[-1].split(",")[1]) == pytest.approx(result.energy[-1, 0], rel=1e-5)
    with pytest.raises(ArgumentError, match="not empty"):
        sgool_files.sgool_files(pipe, "cat", out, Red())


def test_command(monkeypatch, capsys):
    """Every option reaches its place."""
    calls = []

    def record(*arguments, **options):
        calls.append((arguments, options))
        options["progress"](1, 2, np.array([0.5]))
        return DoodlResult(np.zeros((1, 8, 8, 3)), np.array([[0.5], [0.25]]), np.zeros((1, 4, 4, 4)), {})

    monkeypatch.setattr(sgool_files, "sgool_files", record)
    command = (
        "sgool model --prompt cat --critic judge --saliency gaze --heatmap misalignment --score alignment --out out"
    )
    numbers = "--seeds 3 4 --iterations 2 --steps 7 --guidance-scale 3 --weight 0.25 --refresh-every 5 --parts 2"
    assert cli.main([*command.split(), *numbers.split(), "--keep-every", "1", "--backend", "ddim"]) == 0
    arguments, options = calls[0]
    assert arguments == ("model", "cat", "out", "judge")
    names = ("saliency", "heatmap", "score", "seeds", "keep_every")
    assert [options[name] for name in names] == ["gaze", "misalignment", "alignment", [3, 4], 1]
    assert options["options"] == DoodlOptions(2, 7, 3.0, "ddim")
    assert vars(options["salient"]) | {"weight": 0.25, "refresh_every": 5, "parts": 2} == vars(options["salient"])
    assert "0.5000 → 0.2500" in capsys.readouterr().out


def test_curve():
    """Falls from the upper left to the lower right corner of its frame."""
    image = sgool_files.curve([[1.0], [0.5], [0.0]])
    assert image.shape == (320, 480, 3)
    ink = (image != image[0, 0]).any(-1)
    assert ink[100:220, 180:300].any() and not ink[60:120, 330:430].any() and not ink[200:270, 60:140].any()
    assert sgool_files.curve(np.ones((3, 2))).shape == (320, 480, 3)
