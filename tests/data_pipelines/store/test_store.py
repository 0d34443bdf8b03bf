"""The prepared dataset: what is written is what is read, the same bytes each time, and errors speak."""

import io
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.store import tf_example, write
from data_pipelines.store.records import Record
from rahf.core.batch import SCORES


def encoded(kind="PNG", size=(8, 6), mode="L", value=85):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, kind)
    return buffer.getvalue()


def make_records(count, prefix="u"):
    image = encoded("JPEG", (16, 12), "RGB", (200, 30, 10))
    records = []
    for i in range(count):
        scores = np.array([i / 100, np.nan, 0.25, 1], np.float32)
        words = ("a", "naïve", f"cat\n{i}")
        labels = None if i % 3 == 0 else (1, 0, 1)
        grey = None if i % 2 == 0 else encoded()
        records.append(
            Record(f"{prefix}{i}", f"a naïve, cat\n{i}", words, labels, image, grey, encoded(value=0), scores)
        )
    return records


def assert_same(stored: Record, expected: Record):
    assert stored._replace(scores=None) == expected._replace(scores=None)
    assert stored.scores.dtype == np.float32
    np.testing.assert_array_equal(stored.scores, expected.scores)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "data"
    counts = store.write_dataset(
        folder,
        {"train": iter(make_records(12)), "dev": [], "test": make_records(3, "t")},
        "A test.",
        tokenizer=b"model",
        extra={"note.txt": "hello", "late.txt": lambda: b"late"},
    )
    assert counts == {"train": 12, "dev": 0, "test": 3}
    return folder


def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "copy")


def shard(folder, split="train"):
    return next(folder.glob(f"*-{split}.array_record-*"))


def test_round_trip_keeps_order_missing_labels_and_bytes(dataset):
    source = store.open_split(dataset, "train")
    assert len(source) == 12
    for i, expected in enumerate(make_records(12)):
        assert_same(source[i], expected)
    assert_same(source[np.int64(-1)], make_records(12)[11])
    assert store.splits(dataset) == {"train": 12, "dev": 0, "test": 3}
    assert store.tokenizer_path(dataset).read_bytes() == b"model"
    assert (dataset / "note.txt").read_text() == "hello"
    assert (dataset / "late.txt").read_text() == "late"
    for outside in (12, -13):
        with pytest.raises(IndexError):
            source[outside]


def test_prompt_without_words_is_not_a_missing_label(tmp_path):
    record = make_records(2)[1]._replace(prompt="?!", words=(), word_labels=())
    store.write_dataset(tmp_path / "d", {"train": [record]}, "x")
    assert store.open_split(tmp_path / "d", "train")[0].word_labels == ()


def test_tfds_reads_it(dataset):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(dataset)
    assert builder.info.splits["train"].num_examples == 12
    example = builder.as_data_source("train")[1]
    assert example["uid"] == b"u1" and example["prompt"].decode() == "a naïve, cat\n1"
    assert example["image"].shape == (12, 16, 3)
    assert example["implausibility"].shape == (6, 8, 1) and (example["implausibility"] == 85).all()
    assert example["has_implausibility"] and not builder.as_data_source("train")[0]["has_implausibility"]
    assert list(example["word_labels"]) == [1, 0, 1]
    np.testing.assert_array_equal(example["scores"], make_records(2)[1].scores)


def test_grain_reads_it_and_pickle_carries_it(dataset):
    import grain

    source = pickle.loads(pickle.dumps(store.open_split(dataset, "train")))
    shuffled = grain.MapDataset.source(source).shuffle(seed=1)
    assert {shuffled[i].uid for i in range(12)} == {f"u{i}" for i in range(12)}
    assert isinstance(source, grain.sources.RandomAccessDataSource)


def test_the_text_of_a_source_names_the_data_not_the_place(dataset, tmp_path):
    moved = store.open_split(copy(dataset, tmp_path), "train")
    assert repr(moved) == repr(store.open_split(dataset, "train"))
    other = [r._replace(prompt=r.prompt[:-1] + "x") for r in make_records(12)]  # as many, as large
    store.write_dataset(tmp_path / "other", {"train": other}, "A test.")
    assert repr(store.open_split(tmp_path / "other", "train")) != repr(moved)


def test_same_records_give_same_bytes_in_another_process(dataset, tmp_path):
    code = (
        "import sys; from tests.data_pipelines.store import test_store as t; from data_pipelines import store;"
        "splits = {'train': t.make_records(12), 'dev': [], 'test': t.make_records(3, 't')};"
        "store.write_dataset(sys.argv[1], splits,"
        " 'A test.', b'model', {'note.txt': 'hello', 'late.txt': b'late'});"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'tensorflow', 'torch'}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "again")]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]"
    assert contents(tmp_path / "again") == contents(dataset)


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_reading_starts_without_jax_and_tfds():
    code = (
        "import sys; from data_pipelines import store;"
        "print(sorted({'jax', 'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules)))"
    )
    root = str(pathlib.Path(__file__).resolve().parents[3])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_large_splits_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_SHARD_BYTES", 3000)
    store.write_dataset(tmp_path / "d", {"train": make_records(12)}, "x")
    assert len(list((tmp_path / "d").glob("*.array_record-*"))) > 2
    source = store.open_split(tmp_path / "d", "train")
    assert [source[i].uid for i in range(12)] == [f"u{i}" for i in range(12)]


def test_writing_replaces_a_dataset_at_once_and_nothing_else(dataset, tmp_path):
    old = copy(dataset, tmp_path)

    def failing():
        yield make_records(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_dataset(old, {"train": failing()}, "x")
    assert contents(old) == contents(dataset)
    assert os.listdir(tmp_path) == ["copy"]
    store.write_dataset(old, {"train": make_records(1)}, "x")
    assert store.splits(old) == {"train": 1}
    assert os.listdir(tmp_path) == ["copy"]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"precious")
    with pytest.raises(store.DatasetError, match="not a prepared dataset.*me.jpg"):
        store.write_dataset(tmp_path / "photos", {"train": make_records(1)}, "x")
    with pytest.raises(store.DatasetError, match="is a file"):
        store.write_dataset(tmp_path / "photos" / "me.jpg", {"train": make_records(1)}, "x")
    assert (tmp_path / "photos" / "me.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "nothing to write"),
        (make_records(1) + make_records(1), "record 1 .uid 'u0'.*written before"),
        ([make_records(2)[1]._replace(word_labels=(1,))], "3 words but 1 word labels"),
        ([make_records(1)[0]._replace(scores=np.zeros(3))], r"shape \(3,\)"),
        ([make_records(1)[0]._replace(image=b"")], "image is empty"),
    ],
)
def test_malformed_records_are_not_written(tmp_path, records, message):
    with pytest.raises(store.DatasetError, match=message):
        store.write_dataset(tmp_path / "d", {"train": records}, "x")
    assert not os.listdir(tmp_path)


def test_a_directory_that_is_no_dataset(dataset, tmp_path):
    with pytest.raises(store.DatasetError, match="not there.*rahf prepare"):
        store.open_split(tmp_path / "nowhere", "train")
    (tmp_path / "cat.png").write_bytes(b"x")
    with pytest.raises(store.DatasetError, match="not a prepared dataset.*holds cat.png.*rahf prepare"):
        store.open_split(tmp_path, "train")
    with pytest.raises(store.DatasetError, match="is a file"):
        store.splits(tmp_path / "cat.png")
    folder = copy(dataset, tmp_path)
    for text in ("{", "[]", '{"fileFormat": "tfrecord", "splits": []}'):
        (folder / "dataset_info.json").write_text(text)
        with pytest.raises(store.DatasetError, match="dataset_info.json"):
            store.open_split(folder, "train")


def test_unknown_and_empty_splits_say_what_is_there(dataset):
    with pytest.raises(store.DatasetError, match=r"no split 'val'.*train \(12 records\), dev \(0 records\)"):
        store.open_split(dataset, "val")
    with pytest.raises(store.DatasetError, match="split 'dev' is empty"):
        store.open_split(dataset, "dev")


def test_no_vocabulary(tmp_path):
    store.write_dataset(tmp_path / "d", {"train": make_records(1)}, "x")
    with pytest.raises(store.DatasetError, match="no tokenizer.model"):
        store.tokenizer_path(tmp_path / "d")


@pytest.mark.parametrize("keep", [0, 1000, -1000])
def test_a_truncated_file_is_noticed_at_once(dataset, tmp_path, keep):
    folder = copy(dataset, tmp_path)
    data = shard(folder).read_bytes()
    shard(folder).write_bytes(data[:keep])
    with pytest.raises(store.DatasetError, match="array_record-00000 is cut off or damaged.*again"):
        store.open_split(folder, "train")
    assert len(store.open_split(folder, "test")) == 3  # the other split is fine


def test_a_missing_or_exchanged_file_is_noticed(dataset, tmp_path):
    folder = copy(dataset, tmp_path)
    shutil.copy(shard(folder, "test"), shard(folder, "train"))
    with pytest.raises(store.DatasetError, match="holds 3 records, dataset_info.json says 12"):
        store.open_split(folder, "train")
    shard(folder, "train").unlink()
    with pytest.raises(store.DatasetError, match="is missing"):
        store.open_split(folder, "train")


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path):
    noise = np.random.default_rng(0).bytes(2000)  # does not compress, so it is found in the file
    records = [r._replace(image=noise + bytes([i])) for i, r in enumerate(make_records(3))]
    records[1] = records[1]._replace(image=noise[::-1])
    store.write_dataset(tmp_path / "d", {"train": records}, "x")
    data = bytearray(shard(tmp_path / "d").read_bytes())
    place = data.index(noise[::-1][500:600])
    data[place] ^= 1
    shard(tmp_path / "d").write_bytes(data)
    source = store.open_split(tmp_path / "d", "train")
    assert_same(source[0], records[0])
    with pytest.raises(store.DatasetError, match=r"array_record-00000: record 1 \(.*damaged.*again"):
        source[1]
    assert_same(source[2], records[2])


def test_a_record_with_a_missing_field(dataset, tmp_path, monkeypatch):
    folder = copy(dataset, tmp_path)
    source = store.open_split(folder, "train")
    parse = tf_example.parse
    monkeypatch.setattr(tf_example, "parse", lambda data: {k: v for k, v in parse(data).items() if k != "prompt"})
    with pytest.raises(store.DatasetError, match="record 4 .*no field 'prompt'.*prepare the data again"):
        source[4]


def test_scores_come_in_the_order_of_the_batch(dataset):
    assert SCORES == ("plausibility", "alignment", "aesthetics", "overall")
    assert store.open_split(dataset, "train")[7].scores[0] == np.float32(0.07)
