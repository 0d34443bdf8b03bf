"""`tf.train.Example` without TensorFlow: bytes ↔ ``{feature name: list of bytes, floats or ints}``.

The message is described here and not taken from `tensorflow_datasets`, whose import costs a data worker seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from rahf.core.errors import ExampleError

Values = list[bytes] | list[float] | list[int]

#: Field of a feature → Python type of its values.
_KINDS = {"bytes_list": bytes, "float_list": float, "int64_list": int}


def parse(payload: bytes) -> dict[str, Values]:
    """Parses one serialized example.

    Args:
      payload: the serialized message.

    Returns:
      The values of every feature. A feature without any list has no values. Floats are Python floats
      holding float32 values, integers are signed 64 bit.

    Raises:
      ExampleError: cut off, malformed, or a list of the wrong kind.
    """
    try:
        example = _Example.FromString(payload)
    except message.DecodeError as error:
        raise ExampleError(f"{len(payload)} bytes that are no message of this kind: {error}") from error
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def serialize(features: Mapping[str, Sequence[bytes] | Sequence[float] | Sequence[int]]) -> bytes:
    """The inverse of `parse`. Equal features give equal bytes.

    Args:
      features: for each name a list of bytes, of floats (stored as float32) or of ints (64 bit, signed).

    Raises:
      TypeError: a list of another kind.
    """
    example = _Example()
    for name, values in features.items():
        field = next((field for field, kind in _KINDS.items() if all(isinstance(v, kind) for v in values)), None)
        if field is None:
            raise TypeError(f"feature {name!r}: expected only bytes, only floats or only ints, found {values!r:.80}")
        getattr(example.features.feature[name], field).value.extend(values)
    return example.SerializeToString(deterministic=True)


def _values(feature: Any) -> Values:
    field = feature.WhichOneof("kind")
    return getattr(feature, field).value[:] if field else []


def _message_class() -> type[message.Message]:
    """The class of the message, in a pool of its own: the default pool may hold TensorFlow's description of it."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_DESCRIPTION, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("rahf.Example"))


# As in tensorflow/core/example/{example,feature}.proto.
_DESCRIPTION = """
name: "rahf/example.proto" package: "rahf" syntax: "proto3"
message_type {
  name: "BytesList"
  field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED }
}
message_type {
  name: "FloatList"
  field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED }
}
message_type {
  name: "Int64List"
  field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED }
}
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 type_name: ".rahf.BytesList" label: LABEL_OPTIONAL oneof_index: 0 }
  field { name: "float_list" number: 2 type_name: ".rahf.FloatList" label: LABEL_OPTIONAL oneof_index: 0 }
  field { name: "int64_list" number: 3 type_name: ".rahf.Int64List" label: LABEL_OPTIONAL oneof_index: 0 }
  oneof_decl { name: "kind" }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 type_name: ".rahf.Features.FeatureEntry" label: LABEL_REPEATED }
  nested_type {
    name: "FeatureEntry"
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type_name: ".rahf.Feature" label: LABEL_OPTIONAL }
    options { map_entry: true }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type_name: ".rahf.Features" label: LABEL_OPTIONAL }
}
"""
_Example = _message_class()
