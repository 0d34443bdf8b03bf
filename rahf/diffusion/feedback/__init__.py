"""A generator learns from rewards of its own pictures: `draft`, `ddpo`, and when to stop, `held_out`."""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Chain": "rahf.diffusion.feedback.chain",
        "Reward": "rahf.diffusion.feedback.rewards",
        "Trajectory": "rahf.diffusion.feedback.ddpo",
        "find_hacking": "rahf.diffusion.feedback.held_out",
        "of_energy": "rahf.diffusion.feedback.rewards",
        "of_reward": "rahf.diffusion.feedback.rewards",
        "total": "rahf.diffusion.feedback.rewards",
    },
)
