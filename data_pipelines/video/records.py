"""A stored clip: its first picture, the spectral volume of its motion, and some of its later pictures."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.store.kinds import Kind
from data_pipelines.store.tf_example import Values
from data_pipelines.video import volume as volume_lib
from data_pipelines.video.volume import SpectralVolume
from rahf.core.errors import DatasetError


class MotionRecord(NamedTuple):
    """One clip.

    Attributes:
      uid: unique in the dataset: video and first frame, or the number of a drawn scene.
      image: the first picture, encoded, [h,w] as the volume.
      volume: of the motion from the first picture on; float16 in the file.
      times: frames of `targets`, ascending, from 1 on.
      targets: the pictures at `times`, encoded, as large as `image`.
    """

    uid: str
    image: bytes
    volume: SpectralVolume
    times: tuple[int, ...] = ()
    targets: tuple[bytes, ...] = ()


def _features(optional: Collection[str]) -> Any:
    import tensorflow_datasets as tfds  # heavy, and only needed to write

    picture = lambda: tfds.features.Image(shape=(None, None, 3))  # noqa: E731
    return tfds.features.FeaturesDict(
        {
            "uid": tfds.features.Text(),
            "image": picture(),
            "spectrum": tfds.features.Text(),  # bytes of float16, little-endian, of the shape beside it
            "spectrum_shape": tfds.features.Tensor(shape=(4,), dtype=np.int64),
            "frames": tfds.features.Scalar(np.int64),
            "fps": tfds.features.Scalar(np.float32),
            "times": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
            "targets": tfds.features.Sequence(picture()),
        }
    )


def _to_example(record: MotionRecord) -> dict[str, Any]:
    channels = record.volume.channels
    return {
        "uid": record.uid,
        "image": io.BytesIO(record.image),
        "spectrum": channels.astype("<f2").tobytes(),
        "spectrum_shape": np.array(channels.shape, np.int64),
        "frames": record.volume.frames,
        "fps": np.float32(record.volume.fps),
        "times": list(record.times),
        "targets": [io.BytesIO(target) for target in record.targets],
    }


def _from_example(example: Mapping[str, Values]) -> MotionRecord:
    for name in ("uid", "image", "spectrum", "spectrum_shape", "frames", "fps", "times", "targets"):
        if name not in example:
            raise KeyError(name)
    shape = tuple(example["spectrum_shape"])
    channels = np.frombuffer(example["spectrum"][0], "<f2").reshape(shape).astype(np.float32)
    return MotionRecord(
        uid=example["uid"][0].decode(),
        image=example["image"][0],
        volume=SpectralVolume(volume_lib.from_channels(channels), int(example["frames"][0]), float(example["fps"][0])),
        times=tuple(example["times"]),
        targets=tuple(example["targets"]),
    )


def _check(record: MotionRecord, where: str) -> None:
    channels = record.volume.channels
    if not record.image:
        raise DatasetError(f"{where}: the image is empty")
    if not np.isfinite(channels).all() or np.abs(channels).max() > np.finfo(np.float16).max:
        raise DatasetError(f"{where}: the spectral volume is not finite, or too large for float16")
    if len(record.times) != len(record.targets):
        raise DatasetError(f"{where}: {len(record.times)} times for {len(record.targets)} target pictures")


#: Clips, for `store.write_dataset` and `store.open_split`.
MOTION = Kind("motion", "1.0.0", _features, _to_example, _from_example, _check)
