"""The critic: scores, heatmaps and misaligned words of images; its networks, training task, evaluation and export."""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Critic": "rahf.critic.critic",
        "Feedback": "rahf.critic.feedback",
        "PromptWarning": "rahf.text.prompts",
        "Ranking": "rahf.critic.critic",
        "Tokens": "rahf.text.prompts",
        "load": "rahf.critic.loading",
    },
)
