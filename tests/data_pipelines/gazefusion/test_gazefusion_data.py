"""Crops with saliency maps and captions: the published rules without their defects, and batches of them."""

import io
import json
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.gazefusion import captioner, crops, loader, prepare
from rahf.core.errors import ArgumentError, DataError, DatasetError, NotFinite, PretrainedError


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


class FakePipe:
    """A pipeline of transformers that says how bright a picture is; of a model that chats if it has a template."""

    def __init__(self, template=None):
        self.processor, self.asked = types.SimpleNamespace(chat_template=template), []

    def __call__(self, images=None, text=None, return_full_text=None, generate_kwargs=None):
        assert return_full_text is False and generate_kwargs == {"do_sample": False, "max_new_tokens": 20}
        if images is None:
            (turn,) = text
            images = turn["content"][0]["image"]
            self.asked.append(turn["content"][1]["text"])
        pixels = np.asarray(images)
        silent = pixels.min() == 30
        return [{"input_text": text, "generated_text": "" if silent else f" a picture\nof {pixels.max()} "}]


def test_captions_of_a_model(folder, tmp_path):
    """Crops of pictures that nobody described; what has a caption keeps it, and silence is no caption."""
    assert captioner.described(FakePipe(), [np.full((4, 4, 3), 77, np.uint8)]) == ["a picture of 77"]
    chat = FakePipe("template")
    assert captioner.described(chat, [np.zeros((4, 4, 3), np.uint8)] * 2, "What?") == ["a picture of 0"] * 2
    assert chat.asked == ["What?"] * 2
    for answer in ([], [{"generated_text": None}], "text"):
        with pytest.raises(PretrainedError, match="expected one generated_text per picture"):
            captioner.described(answering(answer), [np.zeros((4, 4, 3), np.uint8)])
    root, _, _ = folder
    pictures = tmp_path / "pictures"
    shutil.copytree(root, pictures)
    (pictures / "a.c.txt").unlink()
    pipe = FakePipe()
    described = captioner.Captioner("fake", lambda crops: captioner.described(pipe, crops))
    options = prepare.Options(side=16, sigma=64.0, batch_size=5)
    make = lambda one: prepare.prepare(  # noqa: E731
        pictures,
        tmp_path / "data",
        looked_at,
        "bright",
        options=options,
        dev=0.0,
        test=0.0,
        progress=False,
        captioner=one,
    )
    counts = make(described)
    prompts = {record.uid: record.prompt for record in store.open_split(tmp_path / "data", "train")}
    assert prompts["nameless.png#0"] == "a picture of 250" and prompts["a.b.png#0"] == "a picture of a.b"
    assert "a.c.png#0" not in prompts  # its darkest pixel is 30, of which the model says nothing
    assert counts.total("captioned by a model") == 2 and counts.total("no caption") == 1
    assert "described by fake" in (tmp_path / "data" / "datasheet.md").read_text()
    assert make(described) == counts and make(None).total("no caption") == 2  # another plan


def answering(answer):
    pipe = FakePipe()
    return type("Pipe", (), {"processor": pipe.processor, "__call__": lambda self, **_: answer})()


def test_a_captioner_that_cannot_be_loaded(monkeypatch):
    """Weights are read from safetensors; without PyTorch the extra is named."""
    transformers = types.SimpleNamespace(calls=[])

    def pipeline(task, **options):
        transformers.calls.append((task, options))
        if options["model"] == "bad/model":
            raise ValueError("no such model")
        return FakePipe()

    transformers.pipeline = pipeline
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace())
    one = captioner.from_hub("good/model", "v1")
    assert one.name == "good/model@v1" and one.describe([np.full((2, 2, 3), 9, np.uint8)]) == ["a picture of 9"]
    task, options = transformers.calls[0]
    assert task == "image-text-to-text" and options["revision"] == "v1"
    assert options["model_kwargs"] == {"use_safetensors": True} and "trust_remote_code" not in options
    with pytest.raises(PretrainedError, match="--captioner bad/model: cannot be loaded .* no such model"):
        captioner.from_hub("bad/model")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ArgumentError, match=r"pip install rahf\[torch\]"):
        captioner.from_hub("good/model")


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
    with loader.train_loader(examples, 4, seed=1) as stream:
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
