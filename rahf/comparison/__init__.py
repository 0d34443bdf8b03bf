"""Models and generators side by side: predictions of any program on one data set, and a report of them as one file.

Functions:

    comparison, sources = rahf.comparison.run.run(["runs/a"], ["other.jsonl"], data="data/mine")
"""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Comparison": "rahf.comparison.measure",
        "Predicted": "rahf.comparison.predictions",
        "compare": "rahf.comparison.measure",
        "read_predictions": "rahf.comparison.predictions",
    },
)
