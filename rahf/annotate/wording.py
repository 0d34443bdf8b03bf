"""The questions of the page, with what each step of a scale means."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """A score: its name, the question, and a phrase for each of the steps 1 to 5."""

    name: str
    question: str
    anchors: tuple[str, str, str, str, str]


SCALES = (
    Scale(
        "plausibility",
        "Could everything in the picture exist like this?",
        (
            "Broken nearly everywhere",
            "Serious faults, noticed at once",
            "Clear faults, but the picture can be used",
            "Small faults, found only by looking closely",
            "Nothing is wrong",
        ),
    ),
    Scale(
        "alignment",
        "Does the picture show what the prompt says?",
        (
            "It shows something else",
            "Most of the prompt is missing or wrong",
            "About half of it is right",
            "One detail is missing or wrong",
            "Everything is there",
        ),
    ),
    Scale(
        "aesthetics",
        "How pleasing is it to look at?",
        ("Ugly", "Rather unpleasant", "Neither", "Pleasing", "Beautiful"),
    ),
    Scale(
        "overall",
        "All in all, how good is this picture for this prompt?",
        ("Useless", "Poor", "Fair", "Good", "Excellent"),
    ),
)
