"""Pictures that move: Generative Image Dynamics (Li et al. 2024)."""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "average_splat": "rahf.motion.splat",
        "close": "rahf.motion.loops",
        "loop_error": "rahf.motion.loops",
        "modes_of": "rahf.motion.modal",
        "simulate": "rahf.motion.modal",
        "softmax_splat": "rahf.motion.splat",
        "to_spectrum": "rahf.motion.spectrum",
        "to_texture": "rahf.motion.spectrum",
    },
)
