"""rahf: rich feedback on generated images, in JAX.

Where a picture is implausible or misses its prompt, which words it misses, and how good it is.

    critic = rahf.load("runs/demo")
    critic.score(["a.png", "b.png"], "a red cat", "overall")
"""

from rahf.core import former_names
from rahf.core.lazy import attach
from rahf.core.version import __version__

_current, __dir__, __all__ = attach(
    __name__,
    {
        "Config": "rahf.config.schema",
        "Critic": "rahf.critic.critic",
        "Feedback": "rahf.critic.feedback",
        "RahfError": "rahf.core.errors",
        "load": "rahf.registry",
        "train": "rahf.registry",
    },
    packages=("critic", "diffusion", "interop", "scoring", "steer"),
)
__all__ += ["__version__"]
__getattr__ = former_names.attributes(__name__, _current)
former_names.install()
