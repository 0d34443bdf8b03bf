"""The critic: what it sees, what it says, how it learns and how it is handed on."""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Critic": "rahf.critic.critic",
        "Feedback": "rahf.critic.feedback",
        "PromptWarning": "rahf.text.prompts",
        "load": "rahf.critic.loading",
    },
)
