"""`rahf prepare motion`: videos, or drawn scenes → clips with the spectral volume of their motion."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines import store
from data_pipelines.prepare import counts as counts_lib
from data_pipelines.prepare import splits as splits_lib
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.processes import mapper
from data_pipelines.prepare.progress import progress_bars
from data_pipelines.video import decode, flow, libraries, scenes
from data_pipelines.video import volume as volume_lib
from data_pipelines.video.records import MOTION, MotionRecord
from data_pipelines.video.volume import FPS, FRAMES, TERMS, SpectralVolume
from rahf.core import terminal
from rahf.core.errors import DatasetError

#: Beside the data: frames, rate, terms, size, and the scale of each frequency.
MOTION_FILE = "motion.json"
STRIDE = 10  # frames from one window's start to the next (Li et al. 2024)
_TARGETS = 8  # later pictures that a clip keeps, evenly spread
_SAMPLES = 4096  # magnitudes of each frequency and clip from which percentiles are taken, evenly spread
_PLAN_VERSION = 1  # raise it when a change lets the same inputs give other bytes


@dataclasses.dataclass
class MotionCounts(counts_lib.PreparationCounts):
    """Counts of windows; a video that gives none counts as one record.

    Attributes:
      videos: number of files read.
      resampled: of them, those whose frames were repeated or left out to reach the rate.
      thresholds: of `flow.Filters`.
      scales_from: split whose 95th percentiles scale the frequencies.
    """

    title: ClassVar[str] = "Motion"
    refusals: ClassVar[tuple[str, ...]] = (
        "undecodable",
        "shorter than a window",
        "cut",
        "still",
        "too much motion",
        "camera moves",
        "bad flow file",
    )
    notes: ClassVar[tuple[str, ...]] = ()
    videos: int = 0
    resampled: int = 0
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    scales_from: str = "train"

    def remarks(self) -> list[str]:
        lines = super().remarks()
        if self.videos:
            lines.append(f"{self.videos} videos, {self.resampled} of them resampled to the common rate")
            lines.append("thresholds: " + ", ".join(f"{name} {value:g}" for name, value in self.thresholds.items()))
        if self.scales_from != "train":
            lines.append(f"warning: no clip is in train; the frequencies are scaled by {self.scales_from}")
        return lines


class FrequencyScales:
    """Collects magnitudes for the 95th percentile of each frequency, an even sample of each clip.

    Magnitudes of exactly 0 do not count: in drawn scenes most pixels stand still, and the percentile would be 0. Flow
    of videos has none.
    """

    def __init__(self):
        self.samples: list[np.ndarray] = []

    def add(self, volume: SpectralVolume) -> None:
        magnitudes = np.abs(volume.channels).reshape(len(volume.spectrum), -1)
        self.samples.append(magnitudes[:, :: max(1, magnitudes.shape[1] // _SAMPLES)])

    def values(self) -> list[float]:
        """Of each frequency; of one in which nothing moves the largest of all."""
        magnitudes = np.concatenate(self.samples, 1)
        scales = [float(np.percentile(one[one > 0], 95.0)) if (one > 0).any() else 0.0 for one in magnitudes]
        return [scale or max(max(scales), 1e-6) for scale in scales]


def prepare_scenes(
    out: str | os.PathLike,
    count: int,
    *,
    dev: float = 0.1,
    test: float = 0.1,
    size: tuple[int, int] = (256, 160),
    terms: int = TERMS,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> MotionCounts:
    """Draws scenes whose flow is known exactly and writes them as a dataset. The bytes do not depend on `workers`.

    Args:
      out: directory to make; a prepared dataset in its place is replaced.
      count: number of scenes in all.
      dev, test: shares of the scenes.
      size: width and height in pixels.
      terms: of the spectral volumes; those of drawn scenes are 0 from 16 on.
      seed: of all randomness.
      workers: processes that draw; 0: this one.
      progress: show a bar.

    Raises:
      DatasetError: numbers out of range, or `out` holds something else.
    """
    splits_lib.check_shares(dev, test)
    width, height = _check_size(size)
    _check_terms(terms)
    if count < 1 or seed < 0 or workers < 0:
        raise DatasetError(f"--synthetic {count}, seed {seed}, workers {workers}: expected at least one scene, "
                           "and no negative number")  # fmt: skip
    numbers = {"test": round(count * test), "dev": round(count * dev)}
    numbers["train"] = count - sum(numbers.values())
    counts, drawn = MotionCounts(), itertools.count(1)
    with (
        progress_bars(terminal.console(quiet=not progress)) as bars,
        mapper(_draw, workers) as draw,
    ):

        def records(split: str) -> Iterator[MotionRecord]:
            for record in draw((seed, split, index, width, height, terms) for index in range(numbers[split])):
                counts.count(split, "records")
                counts.count(split, "joined")
                bars("drawing scenes", next(drawn), count)
                yield record

        plan = {"synthetic": scenes.VERSION, "count": count, "seed": seed, "dev": dev, "test": test}
        return _write(out, records, counts, _Plan(plan, (width, height), terms, FPS))


def prepare_videos(
    videos: list[str | os.PathLike],
    out: str | os.PathLike,
    *,
    flows: str | os.PathLike | None = None,
    dev: float = 0.1,
    test: float = 0.1,
    size: tuple[int, int] = (256, 160),
    terms: int = TERMS,
    fps: float = FPS,
    stride: int = STRIDE,
    filters: flow.Filters = flow.Filters(),
    progress: bool = True,
) -> MotionCounts:
    """Cuts videos into windows, computes their flow and spectral volumes, and writes them as a dataset.

    All windows of a video are in one split, chosen by the hash of its name. Windows without motion, with a cut or with
    a moving camera are dropped and counted.

    Args:
      videos: files and folders of files.
      out: directory to make; a prepared dataset in its place is replaced.
      flows: folder of `NAME/FIRST.npy`, float [T,h,w,2] of the window of video NAME that begins at frame FIRST, in
        pixels of `size`: flow of another program instead of OpenCV's.
      dev, test: shares of the videos.
      size: width and height in pixels of pictures and flow; the middle of the video is cropped to that aspect ratio.
      terms: of the spectral volumes.
      fps: rate to which videos are brought.
      stride: frames from one window's start to the next.
      filters: what is dropped.
      progress: show a bar.

    Raises:
      DatasetError: nothing to read, no window that can be used, or PyAV or OpenCV is not installed.
    """
    splits_lib.check_shares(dev, test)
    width, height = _check_size(size)
    _check_terms(terms)
    if not (np.isfinite(fps) and 0 < fps <= 1000) or stride < 1:
        raise DatasetError(f"--fps {fps}, --stride {stride}: expected a positive rate and at least 1 frame")
    listed = decode.video_files(videos)
    libraries.load("av"), libraries.load("cv2")
    counts = MotionCounts(videos=len(listed), thresholds=dataclasses.asdict(filters))
    refused: list[dict[str, Any]] = []
    places: dict[str, list[tuple[int, pathlib.Path]]] = {split: [] for split in splits_lib.SPLITS}
    for number, path in enumerate(listed):
        places[splits_lib.by_hash(path.name, dev, test)].append((number, path))
    with progress_bars(terminal.console(quiet=not progress)) as bars:
        read = itertools.count(1)

        def records(split: str) -> Iterator[MotionRecord]:
            for number, path in places[split]:
                frames = decode.Frames(path, fps, width, height)
                note = lambda kind, reason, path=path: (  # noqa: E731
                    counts.count(split, "records"),
                    counts.count(split, kind),
                    refused.append({"video": str(path), "reason": kind, "detail": reason}),
                )
                joined = lambda: (counts.count(split, "records"), counts.count(split, "joined"))  # noqa: E731
                clips = _clips(frames, stride, terms, filters, flows, joined, note)
                yield from (clip._replace(uid=f"{path.stem}-{number}-{clip.uid}") for clip in clips)
                counts.resampled += bool(frames.resampled)
                bars("reading videos", next(read), len(listed))

        plan = {"videos": [path.name for path in listed], "fps": fps, "stride": stride, "dev": dev, "test": test}
        return _write(out, records, counts, _Plan(plan, (width, height), terms, fps), refused)


def _clips(
    frames: decode.Frames,
    stride: int,
    terms: int,
    filters: flow.Filters,
    flows: str | os.PathLike | None,
    joined: Callable[[], Any],
    note: Callable[[str, str], Any],
) -> Iterator[MotionRecord]:
    """The usable windows of a video, named after their first frame; the others are noted."""
    iterator, number = decode.windows(iter(frames), FRAMES, stride), 0
    while True:
        try:
            first, window = next(iterator)
        except StopIteration:
            if not number:
                note("shorter than a window", f"fewer than {FRAMES} frames at {frames.fps:g} per second")
            return
        except Refused as error:
            note(error.kind, str(error))
            return
        number += 1
        try:
            flow.check_pictures(window, filters)
            texture = flow.texture(window) if flows is None else _flow_file(flows, frames.path, first, window)
            flow.check_motion(texture, filters)
        except Refused as error:
            note(error.kind, f"window at frame {first}: {error}")
            continue
        joined()
        times = target_times(FRAMES)
        yield MotionRecord(
            uid=str(first),
            image=_encoded(window[0]),
            volume=volume_lib.of_texture(texture, terms, frames.fps),
            times=times,
            targets=tuple(_encoded(window[time]) for time in times),
        )


def target_times(frames: int) -> tuple[int, ...]:
    """The frames of which a clip keeps the picture."""
    return tuple(round((number + 1) * (frames - 1) / _TARGETS) for number in range(_TARGETS))


def _flow_file(flows: str | os.PathLike, video: pathlib.Path, first: int, window: np.ndarray) -> np.ndarray:
    path = pathlib.Path(flows) / video.stem / f"{first}.npy"
    expected = (*window.shape[:3], 2)
    try:
        texture = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Refused("bad flow file", f"{path}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(texture, np.ndarray) or texture.dtype.kind != "f" or texture.shape != expected:
        shape = getattr(texture, "shape", type(texture).__name__)
        raise Refused("bad flow file", f"{path}: expected floats of shape {[*expected]}, found {shape}")
    if not np.isfinite(texture).all():
        raise Refused("bad flow file", f"{path}: NaN or infinity")
    return texture.astype(np.float32)


class _Plan(NamedTuple):
    """What decides about the bytes of a dataset: inputs by name, size in pixels, terms, and frames per second."""

    inputs: dict[str, Any]
    size: tuple[int, int]
    terms: int
    fps: float


def _write(
    out: str | os.PathLike,
    records: Callable[[str], Iterable[MotionRecord]],
    counts: MotionCounts,
    plan: _Plan,
    refused: list[dict[str, Any]] | None = None,
) -> MotionCounts:
    target = pathlib.Path(out)
    scales = {split: FrequencyScales() for split in splits_lib.SPLITS}

    def watched(split: str) -> Iterator[MotionRecord]:
        counts.add_split(split)
        for record in records(split):
            scales[split].add(record.volume)
            yield record

    def description() -> str:
        counts.scales_from = next((split for split in splits_lib.SPLITS if scales[split].samples), "train")
        width, height = plan.size
        values = {"frames": FRAMES, "fps": plan.fps, "terms": plan.terms, "width": width, "height": height}
        values |= {"percentile": 95.0, "scales": scales[counts.scales_from].values()}
        return json.dumps(values, indent=2) + "\n"

    # Data of the usual number of terms keep the identity that they had before it could be chosen.
    chosen = {} if plan.terms == TERMS else {"terms": plan.terms}
    text = json.dumps([_PLAN_VERSION, plan.inputs | chosen, plan.size], sort_keys=True)
    lines = refused if refused is not None else []
    try:
        store.write_dataset(
            target,
            {split: watched(split) for split in splits_lib.SPLITS},
            description="Clips with the spectral volume of their motion, for Generative Image Dynamics.",
            # The order matters: the scales' split is chosen before the counts are written.
            extra={
                MOTION_FILE: description,
                **counts_lib.summary_files(hashlib.sha256(text.encode()).hexdigest(), counts, lines),
            },
            kind=MOTION,
        )
    except DatasetError as error:
        if counts.total("records") and not counts.total("joined"):
            reasons = ", ".join(f"{kind} {counts.total(kind)}" for kind in counts.refusals if counts.total(kind))
            first = f"; the first: {lines[0]['video']}: {lines[0]['detail']}" if lines else ""
            raise DatasetError(f"{target}: no window can be used ({reasons}){first}") from error
        raise
    return counts


def _draw(job: tuple[int, str, int, int, int, int]) -> MotionRecord:
    seed, split, index, width, height, terms = job
    drawn, times = scenes.scene(seed, split, index, width, height), target_times(FRAMES)
    return MotionRecord(
        uid=f"{drawn.kind}-{split}-{index}",
        image=_encoded(drawn.frame(0)),
        volume=drawn.volume(terms),
        times=times,
        targets=tuple(_encoded(drawn.frame(time)) for time in times),
    )


def _encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _check_terms(terms: int) -> None:
    if not 1 <= terms <= FRAMES // 2 + 1:
        raise DatasetError(f"--terms {terms}: {FRAMES} frames have 1 to {FRAMES // 2 + 1} frequencies")


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if min(size) < 16 or max(size) > 2048 or width % 8 or height % 8:
        raise DatasetError(f"--size {width}x{height}: expected multiples of 8 from 16 to 2048, as 256x160")
    return width, height
