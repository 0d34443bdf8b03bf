"""rahf: rich feedback on generated images, in JAX.

Where a picture is implausible or misses its prompt, which words it misses, and how good it is.
"""

__version__ = "0.1.0"


def load(path, **options):
    """Loads a run directory or checkpoint directory as a `rahf.critic.Critic`; see there."""
    from rahf import critic

    return critic.load(path, **options)
