"""rahf: rich feedback on generated images, in JAX.

Where a picture is implausible or misses its prompt, which words it misses, and how good it is.
"""

from rahf.core.lazy import attach
from rahf.core.version import __version__

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Config": "rahf.config.schema",
        "Critic": "rahf.critic.critic",
        "Feedback": "rahf.critic.feedback",
        "RahfError": "rahf.core.errors",
        "load": "rahf.critic.loading",
    },
)
__all__ += ["__version__"]
