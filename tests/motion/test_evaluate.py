"""`rahf evaluate` of a motion model: rows whose numbers are known."""

import json

import numpy as np
import pytest

from data_pipelines.video import prepare, read
from rahf import images, registry
from rahf.cli import main as cli
from rahf.config import AutoencoderKLConfig, Config, DataConfig, MotionConfig
from rahf.core.errors import ArgumentError, DatasetError
from rahf.metrics import motion as motion_metrics
from rahf.motion import evaluate, features, loops
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.evaluate import Drawing
from rahf.motion.model import MotionGenerator

SMALL = MotionConfig(
    width=32,
    height=16,
    stage="frequency",
    vae=AutoencoderKLConfig(
        in_channels=4, out_channels=4, block_out_channels=(4,), layers_per_block=1, norm_num_groups=2
    ),
    block_out_channels=(4,),
    norm_num_groups=2,
)


class Oracle(MotionGenerator):
    """Draws the true motion of a photograph; towards a loop, a half of it; with another seed, with turned phases."""

    def __init__(self, data, workdir):
        super().__init__(Config(workdir=str(workdir), data=DataConfig(path=data), model=SMALL), {}, None)
        clips = [read.clip(data, f"test:{number}") for number in range(2)]
        self.known = {images.load_rgb(clip.image).tobytes(): clip.volume for clip in clips}

    def volume(self, picture, seed=0, steps=50, guidance_scale=1.75, loop_scale=0.0, recurrences=1):
        volume = self.known[picture.tobytes()]
        return volume._replace(spectrum=volume.spectrum * (0.5 if loop_scale else 1) * (1j if seed else 1))


class Colours:
    """In the place of a feature network: the mean colour."""

    name = "colours"

    def maps(self, pictures):
        return (pictures,)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "drawn"
    prepare.prepare_scenes(folder, 3, dev=0, test=0.67, size=(32, 16), progress=False)
    return str(folder)


def test_rows_of_known_motion(data, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "load", lambda name: {"colours": Colours()}[name])
    drawing = Drawing(seeds=(0, 1), loop_scales=(0.0, 0.5))
    rows = evaluate.evaluate(Oracle(data, tmp_path / "run"), drawing=drawing, features="colours")
    assert [*rows] == ["drawn", "drawn, loop scale 0.5", "motion of the next clip", "no motion", "true motion"]
    drawn, half, other, still, true = (row.metrics for row in rows.values())
    assert true["motion/correlation"] == pytest.approx(1) and true["motion/direction"] == pytest.approx(1)
    assert true["motion/power"] == 0 and true["motion/frechet"] == pytest.approx(0, abs=1e-9)
    # A quarter of a swing later: the same power, lines and places, and no correlation.
    assert drawn["motion/count"] == 4 and drawn["motion/correlation"] == pytest.approx(0.5)
    assert drawn["motion/direction"] == pytest.approx(1) and drawn["motion/place"] == pytest.approx(1)
    assert abs(drawn["motion/power"]) < 1e-6 and drawn["motion/frechet"] > 0
    ratios = [value for name, value in half.items() if name.startswith("motion/power/")]
    assert min(ratios) == pytest.approx(np.log10(0.25), abs=0.01) and max(ratios) <= 1e-6
    volumes = [read.clip(data, f"test:{number}").volume.spectrum for number in range(2)]
    error = np.mean([float(loops.loop_error(spectrum_lib.to_texture(volume))) for volume in volumes])
    assert true["motion/loop_error"] == pytest.approx(error, rel=1e-4) and still["motion/loop_error"] == 0
    assert other["motion/place"] == pytest.approx(motion_metrics.place(volumes[0], volumes[1]), rel=1e-4)
    assert np.isnan(still["motion/place"]) and still["motion/correlation"] == 0
    saved = json.loads((tmp_path / "run/report/test/metrics.json").read_text())
    assert saved["meta"]["features"] == "colours" and saved["meta"]["clips"] == 2 and saved["meta"]["seeds"] == [0, 1]
    assert saved["rows"]["no motion"]["metrics"]["motion/place"] is None


def test_what_cannot_be_evaluated(data, tmp_path):
    oracle = Oracle(data, tmp_path / "run")
    for call, kind, message in (
        (dict(data=[data, data]), ArgumentError, "one dataset at a time, found 2"),
        (dict(drawing=Drawing(seeds=())), ArgumentError, "a seed and a loop scale at least"),
        (dict(split="best"), DatasetError, "no split"),
    ):
        with pytest.raises(kind, match=message):
            evaluate.evaluate(oracle, **call)
    prepare.prepare_scenes(tmp_path / "large", 1, dev=0, test=0, size=(16, 16), progress=False)
    with pytest.raises(DatasetError, match="clips of 16 x 16 pixels; the model draws 32 x 16"):
        evaluate.evaluate(oracle, data=str(tmp_path / "large"), split="train")


def test_the_command_hands_its_options_over(monkeypatch):
    called = []
    monkeypatch.setattr(registry, "family_name", lambda path: "motion")
    monkeypatch.setattr(evaluate, "evaluate", lambda *path, **options: called.append((path, options)))
    arguments = ["evaluate", "RUN", "--seeds", "0", "1", "--steps", "20", "--loop-scales", "0", "0.5"]
    assert cli.main([*arguments, "--features", "none", "--limit", "3"]) == 0
    ((path, options),) = called
    assert path == ("RUN",) and options["features"] is None and options["limit"] == 3
    assert options["drawing"] == Drawing([0, 1], 20, 1.75, [0.0, 0.5])
