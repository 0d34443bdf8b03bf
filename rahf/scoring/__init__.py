"""Scores of very many pictures: blocks that are finished or not, in one process or on a cluster."""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ReadOptions": "rahf.scoring.fields",
        "ScoringSummary": "rahf.scoring.job",
        "score": "rahf.scoring.run",
    },
)
