"""Flow of real videos by OpenCV, and what makes a window useless: no motion, cuts, a camera that moves."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.prepare.counts import Refused
from data_pipelines.video import libraries

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_STEP = 10  # frames between two looks for a moving camera


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which windows are dropped. Lengths are shares of the width.

    Attributes:
      least_motion: a window is still if fewer than `moving_share` of its pixels move by this much on average.
      moving_share: see `least_motion`.
      most_motion: largest median over pixels and frames; flow is unreliable beyond.
      cut: mean absolute difference of neighbouring frames, of 255, that is a cut, if it is also five times the median.
      camera: movement of the whole picture, fitted by a similarity, that most pixels follow.
      camera_share: pixels that have to follow it.
    """

    least_motion: float = 0.001
    moving_share: float = 0.1
    most_motion: float = 0.12
    cut: float = 20.0
    camera: float = 0.015
    camera_share: float = 0.7


def texture(frames: np.ndarray) -> np.ndarray:
    """Displacements from the first frame to every other by DIS optical flow (Kroeger et al. 2016), coarse to fine.

    Each flow starts from the one before, so that large motion is followed through time.

    Args:
      frames: uint8 [T,h,w,3].

    Returns:
      float32 [T,h,w,2], (x, y) in pixels; 0 for the first frame.

    Raises:
      DatasetError: OpenCV is not installed.
    """
    cv2 = libraries.load("cv2")
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    solver.setUseSpatialPropagation(True)
    solver.setFinestScale(0)  # flow at full resolution, not interpolated from a quarter of it
    greys = (frames @ _GREY).astype(np.uint8)
    flows = np.zeros((*frames.shape[:3], 2), np.float32)
    for time in range(1, len(frames)):
        before = flows[time - 1].copy() if time > 1 else None
        flows[time] = solver.calc(greys[0], greys[time], before)
    return flows


def check_pictures(frames: np.ndarray, filters: Filters) -> None:
    """Raises Refused for a window with a cut; before flow is computed."""
    small = (frames[:, ::2, ::2] @ _GREY).astype(np.float32)
    steps = np.abs(np.diff(small, axis=0)).mean((1, 2))
    place = int(steps.argmax())
    if steps[place] > filters.cut and steps[place] > 5 * np.median(steps):
        raise Refused("cut", f"frames {place} and {place + 1} differ by {steps[place]:.0f} of 255 on average")


def check_motion(flows: np.ndarray, filters: Filters) -> None:
    """Raises Refused for a window that is still, that moves too far, or whose camera moves."""
    width = flows.shape[2]
    lengths = np.linalg.norm(flows, axis=-1)
    moving = float((lengths.mean(0) >= filters.least_motion * width).mean())
    if moving < filters.moving_share:
        raise Refused("still", f"{moving:.1%} of the pixels move by {filters.least_motion * width:.2f} pixels or more")
    median = float(np.median(lengths))
    if median > filters.most_motion * width:
        raise Refused("too much motion", f"the median displacement is {median:.1f} pixels of {width}")
    for time in range(_STEP, len(flows), _STEP):
        moved, share = _camera(flows[time])
        if moved > filters.camera * width and share > filters.camera_share:
            raise Refused(
                "camera moves", f"frame {time}: {share:.0%} of the picture moves by {moved:.1f} pixels together"
            )


def _camera(flow: np.ndarray) -> tuple[float, float]:
    """Mean displacement by the similarity that most pixels follow, and their share."""
    cv2 = libraries.load("cv2")
    height, width = flow.shape[:2]
    step = max(2, min(height, width) // 20)
    rows, columns = np.mgrid[0:height:step, 0:width:step]
    before = np.stack([columns, rows], -1).reshape(-1, 2).astype(np.float32)
    after = before + flow[::step, ::step].reshape(-1, 2)
    cv2.setRNGSeed(0)
    matrix, inliers = cv2.estimateAffinePartial2D(before, after, method=cv2.RANSAC, ransacReprojThreshold=0.75)
    if matrix is None:
        return 0.0, 0.0
    moved = before @ matrix[:, :2].T + matrix[:, 2] - before
    return float(np.linalg.norm(moved, axis=-1).mean()), float(inliers.mean())
