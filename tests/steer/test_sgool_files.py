"""`rahf sgool` on disk: pictures, intermediate ones, the curve."""

import json

import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.steer import sgool_files
from tests.helpers import stable_diffusion_maker as maker

pytestmark = pytest.mark.usefixtures("quickly")


def test_command(tmp_path, tiny_run, capsys):
    model, out = maker.save(tmp_path / "model", maker.FLAT), tmp_path / "out"
    arguments = ["sgool", str(model), "--prompt", "cat", "--critic", str(tiny_run), "--out", str(out)]
    options = ["--iterations", "2", "--steps", "2", "--keep-every", "1", "--heatmap", "misalignment", "--seeds", "3"]
    assert cli.main([*arguments, *options]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["energy.csv", "energy.png", "seed3-before0.png", "seed3-before1.png", "seed3.png"]
    with Image.open(out / "seed3.png") as image:
        assert image.size == (8, 8)
        metadata = json.loads(image.text["rahf"])
    assert metadata["seed"] == 3 and metadata["salient"]["weight"] == 0.5 and metadata["iterations"] == 2
    rows = (out / "energy.csv").read_text().splitlines()
    assert rows[0] == "update,seed3" and len(rows) == 4
    assert "energy" in capsys.readouterr().out
    assert cli.main([*arguments, *options]) == 1
    assert "not empty" in capsys.readouterr().err


def test_curve():
    """Falls from the upper left to the lower right corner of its frame."""
    image = sgool_files.curve([[1.0], [0.5], [0.0]])
    assert image.shape == (320, 480, 3)
    ink = (image != image[0, 0]).any(-1)
    assert ink[100:220, 180:300].any() and not ink[60:120, 330:430].any() and not ink[200:270, 60:140].any()
    assert sgool_files.curve(np.ones((3, 2))).shape == (320, 480, 3)
