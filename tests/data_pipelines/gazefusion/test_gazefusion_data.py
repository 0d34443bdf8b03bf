"""Crops with saliency maps and captions: the published rules without their defects, and batches of them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.gazefusion import crops, loader, prepare
from rahf.core.errors import DataError, DatasetError, NotFinite


@pytest.mark.parametrize("width, count", [(512, 1), (639, 1), (640, 2), (1024, 3), (1200, 4)])
def test_numbers_of_crops(width, count):
    """Golden counts of spec 8.5; a rest of 128 pixels has a crop of its own, one of 127 has none."""
    places = crops.starts(width)
    assert len(places) == count and places[0] == 0 and places[-1] + 512 <= width
    assert crops.starts(width // 8, 64) == [place // 8 for place in places] or width % 8


def test_the_shorter_side_is_brought_to_the_crops():
    assert crops.resized(300, 400) == (512, 683) and crops.resized(1000, 500) == (1024, 512)
    picture = np.zeros((20, 8, 3), np.uint8)
    picture[12:] = 200
    tall = list(crops.crops(picture, 8))
    assert len(tall) == 4 and tall[0].shape == (8, 8, 3) and crops.is_black(tall[0]) and (tall[-1] == 200).all()


def looked_at(pictures):
    """A model that expects people to look where a crop is bright; at half its size."""
    looked_at.batches.append(len(pictures))
    return [picture[::2, ::2].mean(-1) + 1e-3 for picture in pictures]


def picture(file, width, low=0, high=250):
    pixels = np.full((16, width, 3), low, np.uint8)
    pixels[6:10, 2::8] = high
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures whose names differ behind a dot, one twice, one black at its end, one without a caption."""
    root = tmp_path_factory.mktemp("gazefusion") / "pictures"
    root.mkdir()
    picture(root / "a.b.png", 40)
    picture(root / "a.c.png", 16, 30)
    picture(root / "again.png", 40)
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[4:8, 10:12] = 250
    Image.fromarray(pixels).save(root / "half.png")
    picture(root / "nameless.png", 16)
    picture(root / "flat.png", 16, 90, 90)
    (root / "broken.png").write_bytes(b"no picture")
    for name in ("a.b", "a.c", "again", "half", "flat", "broken"):
        (root / f"{name}.txt").write_text(f"a picture of {name}")
    looked_at.batches = []
    options = prepare.Options(side=16, sigma=64.0, batch_size=5)
    counts = prepare.prepare(
        root, root.parent / "data", looked_at, "bright", options=options, dev=0.0, test=0.0, progress=False
    )
    return root, counts, list(looked_at.batches)


def test_records(folder):
    """Every crop that shows something has its map, the last part of a batch included; the rest is counted by name."""
    root, counts, batches = folder
    records = list(store.open_split(root.parent / "data", "train"))
    uids = [record.uid for record in records]
    assert uids == [*(f"a.b.png#{n}" for n in range(4)), "a.c.png#0", *(f"again.png#{n}" for n in range(4)),
                    "half.png#0", "half.png#1"]  # fmt: skip
    assert sum(batches) == 12 and batches == [5, 5, 2]
    assert records[4].prompt == "a picture of a.c" and records[4].words[:2] == ("a", "picture")
    assert counts.total("joined") == len(records) == 11 and counts.total("pictures") == 7
    rows = ("records", "no caption", "undecodable", "near-black crop", "flat saliency", "same picture again")
    assert [counts.total(row) for row in rows] == [15, 1, 1, 1, 1, 1]
    refused = [json.loads(line) for line in (root.parent / "data" / "refused.jsonl").read_text().splitlines()]
    assert {line["image"]: line["kind"] for line in refused} == {
        "broken.png": "undecodable",
        "flat.png#0": "flat saliency",
        "half.png#2": "near-black crop",
        "nameless.png": "no caption",
    }
    with Image.open(io.BytesIO(records[0].image)) as image:
        assert image.size == (16, 16)
    saliency = density.decode(records[4].saliency)
    assert saliency.shape == (16, 16) and saliency.min() == 0
    assert np.unravel_index(saliency.argmax(), saliency.shape)[0] in (7, 8)


def test_unchanged_inputs_are_not_read_again(folder):
    root, counts, _ = folder
    options = prepare.Options(side=16, sigma=64.0, batch_size=5)

    def fails(pictures):
        raise AssertionError("the model was asked again")

    again = prepare.prepare(
        root, root.parent / "data", fails, "bright", options=options, dev=0.0, test=0.0, progress=False
    )
    assert again == counts
    with pytest.raises(AssertionError, match="asked again"):
        prepare.prepare(
            root, root.parent / "data", fails, "another", options=options, dev=0.0, test=0.0, progress=False
        )
    assert len(store.open_split(root.parent / "data", "train")) == 11  # the former data set is still there
    with pytest.raises(DatasetError, match="--size, --batch-size, --sigma"):
        prepare.prepare(root, root.parent / "other", fails, "bright", options=prepare.Options(batch_size=0))


def test_maps():
    """Least value 0, largest 1, blurred by sigma pixels of 512; the same everywhere is no map."""
    point = np.zeros((64, 64))
    point[32, 32] = 5.0
    unit = prepare.to_unit(point, 64, 16.0)
    assert unit.max() == 1 and unit.min() == 0 and unit[32, 34] == pytest.approx(np.exp(-0.5), rel=2e-2)
    assert prepare.to_unit(np.full((8, 8), 0.3), 16, 10.0) is None and prepare.to_unit(np.zeros((8, 8)), 8, 1.0) is None
    with pytest.raises(NotFinite, match="not finite"):
        prepare.to_unit(np.array([[np.nan, 1.0]]), 8, 1.0)


def encode(prompt):
    return (np.array([len(prompt), 0], np.int32),)


def test_batches(folder):
    """Sizes, ranges, a position that can be saved, and a last batch that is filled up."""
    root, _, _ = folder
    examples = loader.Examples(str(root.parent / "data"), "train", 8, encode)
    with loader.TrainLoader(examples, 4, seed=1) as stream:
        first, state, second = next(stream), stream.get_state(), next(stream)
        assert first.image.shape == (4, 8, 8, 3) and first.image.dtype == np.uint8 and first.hint.shape == (4, 8, 8)
        assert first.hint.dtype == np.float32 and first.hint.min() >= 0 and 0.5 < first.hint.max() <= 1
        assert first.ids[0].shape == (4, 2) and set(first.index) & set(second.index) == set()
        stream.set_state(state)
        np.testing.assert_array_equal(next(stream).image, second.image)
        with pytest.raises(DataError, match="belongs to other data or another seed"):
            stream.set_state(state | {"seed": 2})
    batches = list(loader.eval_batches(examples, 8))
    assert [batch.example_mask.sum() for batch in batches] == [8, 3] and batches[1].index.tolist()[3:] == [-1] * 5
