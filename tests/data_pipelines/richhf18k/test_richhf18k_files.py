"""TFRecord framing and labels of RichHF-18K: checksums, damage, pointers, maps, names."""

import io
import math
import struct

import numpy as np
import pytest
from PIL import Image

from data_pipelines.richhf18k import labels, tfrecord
from data_pipelines.store import tf_example
from data_pipelines.store.records import missing_labels
from rahf.core.errors import DatasetError


def slow_masked_crc(data):
    """CRC32C bit by bit (reversed polynomial 0x82F63B78), then TFRecord's mask."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def frame(payload):
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", slow_masked_crc(length)) + payload + struct.pack("<I", slow_masked_crc(payload))


PAYLOADS = [tf_example.serialize({"filename": [f"train/u{i}.jpg".encode()], "n": [i]}) for i in range(4)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.tfrecord"
    path.write_bytes(b"".join(map(frame, PAYLOADS)))
    return path


def damage(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_crc_of_the_check_string():
    assert slow_masked_crc(b"123456789") == (((0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 1000):
        data = rng.bytes(size)
        assert tfrecord.masked_crc(data) == slow_masked_crc(data)


def test_reads_records_in_order(file):
    entries = list(tfrecord.read_examples(file))
    assert [entry.features["n"] for entry in entries] == [[0], [1], [2], [3]]
    assert [entry.offset for entry in entries] == [i * len(frame(PAYLOADS[0])) for i in range(4)]
    assert not any(entry.problem or entry.fatal for entry in entries)


def test_writes_what_it_reads(file, tmp_path):
    tfrecord.write(tmp_path / "again.tfrecord", PAYLOADS)
    assert (tmp_path / "again.tfrecord").read_bytes() == file.read_bytes()


def test_payload_crc_error_costs_one_record(file):
    size = len(frame(PAYLOADS[0]))
    damage(file, size + 12 + 5)  # inside the payload of record 1
    entries = list(tfrecord.read_examples(file))
    assert [entry.features and entry.features["n"] for entry in entries] == [[0], None, [2], [3]]
    assert entries[1].problem == f"CRC error in the payload of record 1 at byte {size}"
    assert not entries[1].fatal


def test_length_crc_error_ends_the_file(file):
    size = len(frame(PAYLOADS[0]))
    damage(file, 2 * size + 1)
    entries = list(tfrecord.read_examples(file))
    assert [entry.fatal for entry in entries] == [False, False, True]
    assert "length of record 2" in entries[2].problem and f"at byte {2 * size}" in entries[2].problem


@pytest.mark.parametrize("cut", [1, 5, 20, 55])
def test_cut_off_file(file, cut):
    data = file.read_bytes()
    file.write_bytes(data[:-cut])
    *good, last = tfrecord.read_examples(file)
    assert [entry.features["n"] for entry in good] == [[0], [1], [2]]
    assert last.fatal and last.features is None and "cut off" in last.problem


def test_a_record_that_is_no_example(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(frame(PAYLOADS[0]) + frame(b"\xff\xff\xff") + frame(PAYLOADS[1]))
    entries = list(tfrecord.read_examples(path))
    assert [bool(entry.features) for entry in entries] == [True, False, True]
    assert "record 1 is not a tf.train.Example" in entries[1].problem


def test_another_kind_of_file(tmp_path):
    path = tmp_path / "train.tfrecord"
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (entry,) = tfrecord.read_examples(path)
    assert entry.fatal and "not a TFRecord file" in entry.problem


def test_empty_and_absent_files(tmp_path):
    (tmp_path / "dev.tfrecord").write_bytes(b"")
    assert list(tfrecord.read_examples(tmp_path / "dev.tfrecord")) == []
    with pytest.raises(DatasetError, match="no such file"):
        next(tfrecord.read_examples(tmp_path / "test.tfrecord"))


def test_git_lfs_pointer_says_how_to_get_the_file(tmp_path):
    path = tmp_path / "train.tfrecord"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 98765\n")
    with pytest.raises(DatasetError, match="Git-LFS pointer.*98765 bytes .sha256:12ab.*git lfs pull"):
        next(tfrecord.read_examples(path))


def test_reads_the_reference_files(shared):
    counts = {}
    for split in ("train", "dev", "test"):
        entries = list(tfrecord.read_examples(shared / "data" / "rehearsal" / f"{split}.tfrecord"))
        assert not any(entry.problem for entry in entries)
        assert all(len(entry.features) == 8 for entry in entries)
        counts[split] = len(entries)
    assert counts == {"train": 2600, "dev": 250, "test": 250}


# Labels


def picture(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def disc_map():
    """Two overlapping discs and one apart: levels 0, 85, 170, 255."""
    y, x = np.mgrid[:128, :128]
    discs = [(x - a) ** 2 + (y - b) ** 2 < 300 for a, b in ((40, 40), (50, 40), (45, 45))]
    return (85 * np.sum(discs, 0)).astype(np.uint8)


def features(**changes):
    complete = {
        "filename": [b"train/abc-1.jpg"],
        "artifact_score": [0.9],
        "misalignment_score": [0.7],
        "aesthetics_score": [0.5],
        "overall_score": [0.25],
        "artifact_map": [picture(disc_map())],
        "misalignment_map": [picture(np.zeros((64, 64), np.uint8))],
        "prompt_misalignment_label": [b"1 0 1"],
    }
    return {name: value for name, value in {**complete, **changes}.items() if value is not None}


def decoded(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_names_and_polarity():
    released = labels.read_labels(features())
    np.testing.assert_allclose(released.scores, [0.9, 0.7, 0.5, 0.25], rtol=1e-6)
    assert released.word_labels == (1, 0, 1)
    np.testing.assert_array_equal(decoded(released.implausibility), disc_map())
    assert not decoded(released.misalignment).any()
    assert labels.uid_of(features()) == "abc-1"
    assert missing_labels(released) == []
    assert (released.pixels, released.moved_far) == (128 * 128 + 64 * 64, 0)


def test_snapping_by_hand():
    values = np.array([[0, 20, 21, 42, 43, 64, 65, 85, 105, 106, 127, 128, 212, 213, 234, 235, 255]], np.uint8)
    snapped, far = labels.snap(values)
    expected = [0, 0, 0, 0, 85, 85, 85, 85, 85, 85, 85, 170, 170, 255, 255, 255, 255]
    np.testing.assert_array_equal(snapped[0], expected)
    assert far == 10  # 21, 42 | 43, 64 | 106, 127 | 128 (to 170), 212 | 213 | 234: 20 < distance


def test_jpeg_maps_lose_their_ringing():
    encoded = picture(disc_map(), "JPEG", quality=75)
    ringing = decoded(encoded)
    assert (ringing[disc_map() == 0] > 0).any()  # else this test tests nothing
    released = labels.read_labels(features(artifact_map=[encoded]))
    clean = decoded(released.implausibility)
    assert set(np.unique(clean)) <= set(labels.LEVELS)
    assert (clean != disc_map()).mean() < 0.005
    nearest = np.array(labels.LEVELS)[np.abs(ringing[..., None] - np.array(labels.LEVELS)).argmin(-1)]
    np.testing.assert_array_equal(clean, nearest)
    assert released.moved_far == (np.abs(ringing.astype(int) - nearest) > 20).sum() > 0


def test_maps_of_other_kinds_become_8_bit_grey():
    rgb = np.repeat(disc_map()[..., None], 3, -1)
    wide = disc_map().astype(np.uint16) * 257
    for encoded in (picture(rgb), picture(wide)):
        released = labels.read_labels(features(artifact_map=[encoded]))
        image = Image.open(io.BytesIO(released.implausibility))
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), disc_map())


@pytest.mark.parametrize(
    "feature, name",
    [
        ("artifact_score", "plausibility"),
        ("misalignment_score", "alignment"),
        ("aesthetics_score", "aesthetics"),
        ("overall_score", "overall"),
        ("artifact_map", "implausibility"),
        ("misalignment_map", "misalignment"),
        ("prompt_misalignment_label", "words"),
    ],
)
def test_any_label_may_be_missing(feature, name):
    released = labels.read_labels(features(**{feature: None}))
    assert missing_labels(released) == [name]


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"artifact_score": [1.01]}, "bad score", "artifact_score is 1.01"),
        ({"overall_score": [math.nan]}, "bad score", "nan"),
        ({"aesthetics_score": [-0.5]}, "bad score", "-0.5"),
        ({"aesthetics_score": [b"0.5"]}, "malformed", "type bytes"),
        ({"aesthetics_score": [0.5, 0.5]}, "malformed", "2 values"),
        ({"prompt_misalignment_label": [b"1 2 0"]}, "word/label mismatch", "1 2 0"),
        ({"artifact_map": [b"GIF89a"]}, "undecodable", "artifact_map"),
        ({"misalignment_map": [picture(disc_map())[:200]]}, "undecodable", "misalignment_map"),
        ({"artifact_map": [picture(np.zeros((1, 1), np.uint8))[:16] + b"\0\1\0\0\0\1\0\0" + b"\x08\0\0\0\0"]},
         "undecodable", "artifact_map"),
    ],
)  # fmt: skip
def test_refused_labels(changes, kind, message):
    with pytest.raises(labels.Refused, match=message) as caught:
        labels.read_labels(features(**changes))
    assert caught.value.kind == kind


@pytest.mark.parametrize("value", [None, [], [b""], [1.0]])
def test_a_record_without_file_name(value):
    with pytest.raises(labels.Refused, match="filename.*artifact_map") as caught:
        labels.uid_of(features(filename=value))
    assert caught.value.kind == "missing field"
