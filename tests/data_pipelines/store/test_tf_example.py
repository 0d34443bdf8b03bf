"""`tf.train.Example` by our description of the message, against TFDS' own and against garbage."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.store import tf_example
from rahf.core import errors


def reference(**features):
    example = tf_example_pb2.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(feature, kind).value.extend(values)
    return example.SerializeToString()


FEATURES = {
    "name": [b"train/\xff\x00.jpg", b""],
    "score": [0.5, -1.25, 1e30],
    "number": [0, 1, -1, 2**63 - 1, -(2**63), 300],
    "long": [bytes(100_000)],
}


def test_parse_agrees_with_tfds():
    expected = {**FEATURES, "score": [float(np.float32(v)) for v in FEATURES["score"]]}
    assert tf_example.parse(reference(**FEATURES)) == expected


def test_tfds_parses_what_we_serialize():
    example = tf_example_pb2.Example.FromString(tf_example.serialize(FEATURES))
    feature = example.features.feature
    assert set(feature) == set(FEATURES)
    assert list(feature["name"].bytes_list.value) == FEATURES["name"]
    assert list(feature["number"].int64_list.value) == FEATURES["number"]
    np.testing.assert_array_equal(feature["score"].float_list.value, np.float32(FEATURES["score"]))
    assert tf_example.parse(tf_example.serialize(FEATURES)) == tf_example.parse(reference(**FEATURES))


def test_unpacked_numbers_and_unknown_fields():
    # By hand: key 0x0d = field 1, four bytes (1.0f); key 0x08 = field 1, variable length (300 = ac 02).
    floats = b"\x12\x05\x0d\x00\x00\x80\x3f"
    ints = b"\x1a\x03\x08\xac\x02"
    unknown = b"\x7a\x02hi" + b"\x79" + bytes(8) + b"\x78\x05"  # field 15: bytes, 64 bit, variable length
    entries = b""
    for name, feature in ((b"f", floats), (b"i", ints + unknown), (b"empty", b"")):
        entry = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(feature)]) + feature
        entries += b"\x0a" + bytes([len(entry)]) + entry
    payload = unknown + b"\x0a" + bytes([len(entries)]) + entries
    assert tf_example.parse(payload) == {"f": [1.0], "i": [300], "empty": []}
    assert set(tf_example_pb2.Example.FromString(payload).features.feature) == {"f", "i", "empty"}


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0a",  # cut off
        b"\x0a\x05ab",  # a field that is longer than the message
        b"\x0a" + b"\xff" * 11,  # an integer of more than 10 bytes
        b"\x0b",  # a group without end
        b"\x0a\x0b\x0a\x09\x0a\x01s\x12\x04\x12\x02\x0a\x05",  # a list that is longer than its feature
        b"\x0a\x0e\x0a\x0c\x0a\x01s\x12\x07\x12\x05\x0a\x03abc",  # three bytes of floats
        b"\x0a\x05\x0a\x03\x0a\x01\xff",  # a name that is not UTF-8
    ],
)
def test_malformed(payload):
    with pytest.raises(errors.ExampleError, match=f"{len(payload)} bytes that are no message of this kind: Error pars"):
        tf_example.parse(payload)


def test_garbage_raises_nothing_else():
    rng = np.random.default_rng(0)
    intact = reference(a=[b"abc"] * 3, b=[1.0, 2.0], c=[5, 1 << 40])
    refused = 0
    for _ in range(3000):
        data = bytearray(intact[: rng.integers(0, len(intact) + 1)])
        for _ in range(rng.integers(0, 4)):
            if data:
                data[rng.integers(len(data))] = rng.integers(256)
        try:
            tf_example.parse(bytes(data))
        except errors.ExampleError:
            refused += 1
    assert 500 < refused < 3000


def test_serialize_refuses_mixed_lists():
    with pytest.raises(TypeError, match="'x'"):
        tf_example.serialize({"x": [b"a", 1]})
