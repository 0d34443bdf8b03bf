"""Which `Task` trains Stable Diffusion, by `feedback.method`; without one it learns prepared pictures."""

from __future__ import annotations

from rahf.config import Config
from rahf.diffusion.task import TextToImageTask
from rahf.steer.chosen_task import ChosenTask
from rahf.steer.feedback_task import FeedbackTask


def task(config: Config) -> FeedbackTask | TextToImageTask:
    """The task of a run. Raises TrainError and others: as the `from_config` of the tasks."""
    if not config.feedback.method:
        return TextToImageTask.from_config(config)
    return (ChosenTask if config.feedback.method == "chosen" else FeedbackTask).from_config(config)
