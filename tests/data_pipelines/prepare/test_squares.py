"""Squares beside the pictures: everything else stays as it is, batches are equal, other definitions are refused."""

import json

import numpy as np
import pytest

from data_pipelines import store
from data_pipelines.loading import loader
from data_pipelines.prepare import squares as prepare_lib
from data_pipelines.store import squares
from rahf import images
from rahf.cli import main as cli
from rahf.config import AugmentConfig
from rahf.core.errors import ArgumentError, DatasetError
from rahf.text import Tokenizer, train_tokenizer
from tests.helpers.loader_maker import PROMPTS, SIZE, assert_equal, encode, evaluate, make, record, take

_COUNT = 9
_DAMAGED, _UNREADABLE = 3, 5  # records without a square


def picture(number: int, format: str = "JPEG") -> bytes:
    """Cells in random colours: a picture whose square depends on how it is decoded."""
    cells = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    return encode(cells.repeat(6, 0).repeat(6, 1), format)


def pictures() -> list[bytes]:
    data = [picture(number, "PNG" if number == 1 else "JPEG") for number in range(_COUNT)]
    middle = len(data[_DAMAGED]) // 2
    data[_DAMAGED] = data[_DAMAGED][:middle] + bytes(40) + data[_DAMAGED][middle + 40 :]
    data[_UNREADABLE] = data[_UNREADABLE][:100]
    return data


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(PROMPTS))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "data"
    records = [record(i, image=data) for i, data in enumerate(pictures())]
    records = [one._replace(word_shares=(0.5,) * len(one.words)) for one in records]
    extra = {"datasheet.md": "a sheet", "prepare.json": "{}"}
    splits = {"train": records, "dev": [], "test": [record(99, image=picture(99))]}
    store.write_dataset(folder, splits, "Some pictures.", b"vocabulary", extra, optional=["word_shares"])
    return folder


@pytest.fixture(scope="module")
def squared(plain):
    counts = prepare_lib.prepare(plain, plain.parent / "squared", SIZE, progress=False)
    assert counts.records == {"train": _COUNT, "dev": 0, "test": 1}
    reasons = [f"split 'train', uid 'u{number}': " for number in (_DAMAGED, _UNREADABLE)]
    assert [line.startswith(reason) for line, reason in zip(counts.without, reasons, strict=True)] == [True, True]
    return plain.parent / "squared"


class Readable:
    """A split without the record that cannot be decoded."""

    def __init__(self, folder):
        self.source = store.open_split(folder, "train")
        self.numbers = [number for number in range(_COUNT) if number != _UNREADABLE]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.source[self.numbers[index]]


def test_everything_but_the_square_stays_as_it_is(plain, squared):
    for split, count in store.splits(plain).items():
        if not count:
            continue
        before, after = store.open_split(plain, split), store.open_split(squared, split)
        for number in range(count):
            one, other = before[number], after[number]
            assert one._replace(scores=None) == other._replace(scores=None, square=None)
            np.testing.assert_array_equal(one.scores, other.scores)
            if split == "train" and number in (_DAMAGED, _UNREADABLE):
                assert other.square is None
            else:
                assert other.square.dtype == np.uint8 and not other.square.flags.writeable
                np.testing.assert_array_equal(other.square, images.decode_resized(one.image, SIZE))
    assert {f.name for f in squared.iterdir()} - {f.name for f in plain.iterdir()} == {squares.FILE}
    for name in ("datasheet.md", "prepare.json", store.TOKENIZER_FILE):
        assert (squared / name).read_bytes() == (plain / name).read_bytes()
    infos = [json.loads((folder / store.INFO_FILE).read_text()) for folder in (plain, squared)]
    assert infos[0]["description"] == infos[1]["description"]
    assert json.loads((squared / squares.FILE).read_text())["side"] == SIZE


def test_tfds_reads_squares(squared):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(squared).as_data_source("train")
    np.testing.assert_array_equal(source[0]["square"], store.open_split(squared, "train")[0].square)
    assert source[_DAMAGED]["square"].shape == (1, 1, 3)  # none


@pytest.mark.parametrize("augment", [None, AugmentConfig(crop_probability=0.5, photometric_probability=0.5)])
def test_batches_are_equal(plain, squared, tokenizer, augment):
    sources = Readable(plain), Readable(squared)
    with make(sources[0], tokenizer, augment=augment) as a, make(sources[1], tokenizer, augment=augment) as b:
        assert_equal(take(a, 5), take(b, 5))
        assert b.damaged == a.damaged == 1
        state = a.get_state()
        assert b.get_state() == state  # a run may go on with the squares of its data
    with (
        make(sources[0], tokenizer, augment=augment) as whole,
        make(sources[1], tokenizer, process=(0, 2), augment=augment) as first,
        make(sources[1], tokenizer, process=(1, 2), augment=augment) as second,
    ):
        np.testing.assert_array_equal(next(whole).image, np.concatenate([next(first).image, next(second).image]))


def test_evaluation_is_equal(plain, squared, tokenizer):
    assert_equal(list(evaluate(Readable(plain), tokenizer)), list(evaluate(Readable(squared), tokenizer)))


def test_pictures_are_decoded_for_crops_only(squared, tokenizer, monkeypatch):
    boxes, decode = [], images.decode_resized
    monkeypatch.setattr(images, "decode_resized", lambda *a, **kw: boxes.append(a[2]) or decode(*a, **kw))
    sound = store.open_split(squared, "test")
    with make(sound, tokenizer, batch_size=2, augment=AugmentConfig(crop_probability=0.0)) as batches:
        take(batches, 4)
        assert not boxes
        batches.set_state({**batches.get_state(), "version": 1})  # a run of version 0 goes on with its own squares
        assert np.abs(next(batches).image[0].astype(int) - sound[0].square).max() > 5
    boxes.clear()
    with make(sound, tokenizer, batch_size=2, augment=AugmentConfig(crop_probability=1.0)) as batches:
        next(batches)
        assert boxes and images.FULL not in boxes


def test_squares_of_another_size_are_not_used(plain, squared, tokenizer):
    sources, said = [store.open_split(folder, "test") for folder in (plain, squared)], []
    config = loader.DataConfig(path="data/tiny", batch_size=2, max_words=6, augment=None)
    streams = [loader.train_loader(config, SIZE + 8, tokenizer, 0, source=source) for source in sources]
    for stream in streams:
        stream.report = said.append
    with streams[0], streams[1]:
        assert_equal(take(streams[0], 2), take(streams[1], 2))
    (line,) = said
    assert f"have {SIZE} pixels on each side, not {SIZE + 8}" in line and f"--size {SIZE + 8}" in line


def test_another_definition_is_refused_and_made_anew_in_place(squared, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    prepare_lib.prepare(squared, folder, SIZE, progress=False)
    contents = {file.name: file.read_bytes() for file in squared.iterdir()}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents  # from the pictures, not the squares
    monkeypatch.setattr(squares, "SQUARE", "another")
    with pytest.raises(DatasetError, match=f"definition of its squares is .*rahf prepare squares {folder}"):
        store.open_split(folder, "train")
    prepare_lib.prepare(folder, folder, SIZE, progress=False)
    assert len(store.open_split(folder, "train")) == _COUNT
    (folder / squares.FILE).unlink()
    with pytest.raises(DatasetError, match="not stated in squares.json"):
        store.open_split(folder, "train")


def test_what_has_no_squares(plain, tmp_path):
    for side, workers in ((0, 0), (5000, 0), (24, -1)):
        with pytest.raises(ArgumentError, match=f"size {side}, workers {workers}: expected 8 to 4096 pixels"):
            prepare_lib.prepare(plain, tmp_path / "out", side, workers, progress=False)
    with pytest.raises(DatasetError, match="not a prepared dataset|not there"):
        prepare_lib.prepare(tmp_path / "none", tmp_path / "out", SIZE, progress=False)
    clips = tmp_path / "clips"
    clips.mkdir()
    info = {"name": "spectral_volumes", "fileFormat": "array_record", "splits": []}
    (clips / store.INFO_FILE).write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="records of the kind 'spectral_volumes', expected 'rich_feedback'"):
        prepare_lib.prepare(clips, tmp_path / "out", SIZE, progress=False)
    assert not (tmp_path / "out").exists()


def test_the_command(plain, tmp_path, capsys):
    command = ["prepare", "squares", str(plain), "--size", "16", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert cli.main(command) == 3  # some have no square
    shown = capsys.readouterr().out
    assert shown.count("warning: no square: split 'train', uid ") == 2
    assert f"train {_COUNT}, dev 0, test 1; {_COUNT - 1} squares of 16 x 16 pixels" in shown
