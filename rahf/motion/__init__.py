"""Pictures that move: Generative Image Dynamics (Li et al. 2024).

volume = rahf.motion.load_volume("tree.npz")                      # or a dataset of `rahf prepare motion`
rahf.motion.animate_photo("photo.jpg", volume, "photo.mp4", rahf.motion.AnimateOptions(loop=True))
"""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AnimateOptions": "rahf.motion.animate",
        "Renderer": "rahf.motion.render",
        "Report": "rahf.motion.critique",
        "animate_photo": "rahf.motion.animate",
        "average_splat": "rahf.motion.splat",
        "close": "rahf.motion.loops",
        "displacement": "rahf.motion.modal",
        "drag_force": "rahf.motion.modal",
        "load_volume": "rahf.motion.animate",
        "loop_error": "rahf.motion.loops",
        "modes_of": "rahf.motion.modal",
        "simulate": "rahf.motion.modal",
        "softmax_splat": "rahf.motion.splat",
        "to_spectrum": "rahf.motion.spectrum",
        "to_texture": "rahf.motion.spectrum",
    },
)
