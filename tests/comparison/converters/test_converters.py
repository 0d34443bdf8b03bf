"""Outputs of other programs in their own layout become predictions files with the same numbers."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.comparison.converters import diffdoctor
from rahf.comparison.predictions import read_predictions
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError, DataError


def convert(kind, source, out, *options):
    return cli.main(["predictions", kind, str(source), "--out", str(out), *map(str, options)])


def smooth(seed, side=32):
    """A map in [0,1] without steps, as float32 [side,side]."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(side)[:, None] * rng.uniform(0.1, 0.3) + np.arange(side) * rng.uniform(0.1, 0.3))
    return ((waves + 1) / 2).astype(np.float32)


def test_imagedoctor(tmp_path):
    outputs = tmp_path / "outputs"
    for name in ("17", "18", "19"):
        (outputs / name).mkdir(parents=True)
    np.save(outputs / "17/artifact.npy", smooth(0))
    np.save(outputs / "17/misalignment.npy", np.asfortranarray(smooth(1).astype(np.float16)))
    (outputs / "17/output.txt").write_text(
        "<think>Plausibility score: 0.1</think>\n<answer>Semantic Alignment score: 0.75\nMisalignment Locations: x\n"
        "Aesthetic score: 0.5 \nPlausibility score: .25\nArtifact Locations: y\nOverall Impression score: 1</answer>"
    )
    np.save(outputs / "18/artifact.npy", np.array([{"a": 1}], object), allow_pickle=True)  # never unpickled
    (outputs / "19/output.txt").write_text("nothing of use")
    assert convert("imagedoctor", outputs, tmp_path / "out") == 3
    (line,) = read_predictions(tmp_path / "out/predictions.jsonl").lines
    assert line.image == "17"
    predicted = line.read()
    np.testing.assert_allclose(predicted.scores, [0.25, 0.75, 0.5, 1])
    for values, seed in zip(predicted.heatmaps, (0, 1)):
        np.testing.assert_allclose(values, smooth(seed), atol=0.003)
    with pytest.raises(ArgumentError, match="exists"):
        from rahf.comparison.converters import imagedoctor

        imagedoctor.convert(outputs, tmp_path / "out")


def test_a_map_whose_header_promises_more_than_there_is_is_refused(tmp_path):
    file = tmp_path / "outputs/1/artifact.npy"
    file.parent.mkdir(parents=True)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    file.write_bytes(buffer.getvalue())
    assert convert("imagedoctor", tmp_path / "outputs", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_richhf_torch(tmp_path):
    folder, side = tmp_path / "log", 48
    (folder / "test_imgs").mkdir(parents=True)
    entries = []
    for number in range(2):
        entry = {"idx": number, "caption": f"a red cat, {number} dogs", "pred_text": f"a red_0 cat {number} dogs"}
        entry |= {f"pred_score_{name}": 0.1 * i for i, name in enumerate(SCORES)}
        entries.append(entry | {f"gt_score_{name}": 0.9 for name in SCORES} | {"gt_text": "a_0"})
    (folder / "test_outputs.json").write_text(json.dumps([*entries, {"idx": 2}]))
    rows = [np.concatenate([smooth(seed, side) for seed in seeds], 1) for seeds in ((0, 1, 2), (0, 3, 4))]
    grey = (np.concatenate(rows) * 255).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(folder / "test_imgs/000.jpg")
    assert convert("richhf-torch", folder, tmp_path / "out") == 3
    first, second = read_predictions(tmp_path / "out/predictions.jsonl").lines
    predicted = first.read()
    assert first.prompt == "a red cat, 0 dogs" and predicted.word_labels == (1, 0, 1, 1, 1)
    np.testing.assert_allclose(predicted.scores, [0, 0.1, 0.2, 0.3], rtol=1e-6)
    for values, seed in zip(predicted.heatmaps, (3, 4)):
        np.testing.assert_allclose(values, smooth(seed, side), atol=0.06)
    assert second.maps == (None, None)


def test_diffdoctor(tmp_path):
    """The overlay as its program makes it: OpenCV's BGR colours over an RGB picture, written as BGR."""
    pictures, outputs = tmp_path / "pictures", tmp_path / "outputs"
    pictures.mkdir(), outputs.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    mask = (smooth(5, 512) * 255).astype(np.uint8)
    bgr = diffdoctor.jet().round()[mask][:, :, ::-1]
    mixed = np.clip(np.round(0.6 * bgr + 0.4 * pixels), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(pictures / "a.b.png")
    Image.fromarray(mixed[:, :, ::-1]).save(outputs / "result_a.png")
    Image.fromarray(mixed[:256]).save(outputs / "result_c.png")
    assert convert("diffdoctor", outputs, tmp_path / "out", "--images", pictures) == 3
    (line,) = read_predictions(tmp_path / "out/predictions.jsonl").lines
    assert line.image == "a.b.png" and line.maps[1] is None
    np.testing.assert_allclose(line.read().heatmaps[0], mask / 255, atol=1.6 / 255)
    Image.fromarray(pixels[::-1]).save(pictures / "a.b.png")  # another picture of the same name
    with pytest.raises(DataError, match="no overlay of"):
        diffdoctor.convert(outputs, tmp_path / "out2", pictures)


def test_the_colour_scale_is_opencvs():
    """Levels 0, 32, 96, 128, 160, 255 of COLORMAP_JET: blue 128, 255, 254, 126, 0, 0 and so on (OpenCV 4)."""
    at = diffdoctor.jet()[[0, 32, 96, 128, 255]]
    np.testing.assert_allclose(
        at, [[0, 0, 127.5], [0, 0.5, 255], [1.5, 255, 253.5], [129.5, 255, 125.5], [127.5, 0, 0]]
    )


def test_what_rahf_predict_writes(tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    Image.fromarray((smooth(6) * 255).astype(np.uint8)).save(folder / "a_implausibility.png")
    entry = {
        "image": "pictures/a.png",
        "prompt": "red cat",
        "scores": dict.fromkeys(SCORES, 0.5) | {"overall": None},
        "words_decided_by": "probability",
        "words": [
            {"word": "red", "misaligned": True, "probability": 0.9},
            {"word": "cat", "misaligned": False, "probability": None},
        ],
        "files": {"implausibility": "/somewhere/else/a_implausibility.png", "feedback": "x.png"},
    }
    lost = entry | {"image": "b.png", "files": {"implausibility": "../../etc/passwd"}}
    (folder / "predictions.json").write_text(json.dumps({"model": "m-7-abc", "images": [entry, lost]}))
    assert convert("rahf-predict", folder, tmp_path / "out") == 3
    file = read_predictions(tmp_path / "out/predictions.jsonl")
    (line,) = file.lines
    assert (file.name, line.image, line.prompt) == ("m-7-abc", "pictures/a.png", "red cat")
    predicted = line.read()
    np.testing.assert_array_equal(predicted.scores, [0.5, 0.5, 0.5, np.nan])
    assert (predicted.word_labels, predicted.word_probabilities) == ((0, 1), (0.9, 0.0))
    np.testing.assert_allclose(predicted.heatmaps[0], smooth(6), atol=0.005)
    assert predicted.heatmaps[HEATMAPS.index("misalignment")] is None


def test_what_rahf_score_writes(tmp_path):
    from rahf.scoring.fields import ScoringRecord
    from rahf.scoring.score_block import ScoredRecord, table

    pyarrow = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "scores"
    folder.mkdir()
    records = [ScoringRecord(n, f"{n}.png", None, "a cat", "a cat", None) for n in (1, 2)]
    scored = [
        ScoredRecord(records[0], np.array([0.1, 0.2, 0.3, 0.4], np.float32), False, None),
        ScoredRecord(records[1], None, False, "damaged"),
    ]
    pyarrow.write_table(table(scored, "pictures"), folder / "part-00000.parquet")
    assert convert("rahf-score", folder, tmp_path / "out") == 3
    (line,) = read_predictions(tmp_path / "out/predictions.jsonl").lines
    assert (line.image, line.prompt) == ("1.png", "a cat")
    np.testing.assert_allclose(line.scores, [0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("kind", ["imagedoctor", "richhf-torch", "rahf-predict", "rahf-score"])
def test_another_layout_is_an_error(tmp_path, kind, capsys):
    (tmp_path / "empty").mkdir()
    assert convert(kind, tmp_path / "empty", tmp_path / "out") == 1
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
