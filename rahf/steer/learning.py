"""Which `Task` fine-tunes Stable Diffusion, by `feedback.method`."""

from __future__ import annotations

from rahf.config import Config
from rahf.steer.chosen_task import ChosenTask
from rahf.steer.feedback_task import FeedbackTask


def task(config: Config) -> FeedbackTask:
    """The task of a run. Raises TrainError and others: as `FeedbackTask.from_config`."""
    return (ChosenTask if config.feedback.method == "chosen" else FeedbackTask).from_config(config)
