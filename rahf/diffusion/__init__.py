"""A small text-to-image diffusion model of our own, in pixels: guidance, repair and selection are shown with it.

`rahf train configs/diffusion/demo.py` trains one.

    generator = rahf.diffusion.load("runs/demo_diffusion")
    generated = generator(["a red circle left of a blue square"], seeds=[0], reward=my_reward)
"""

from rahf.core import renamed
from rahf.core.lazy import attach

_lazy, __dir__, __all__ = attach(
    __name__,
    {
        "GeneratedImages": "rahf.diffusion.pixel_generator",
        "Generator": "rahf.diffusion.pixel_generator",
        "GuidanceOptions": "rahf.diffusion.sample.options",
        "load": "rahf.diffusion.pixel_generator",
    },
)
__getattr__ = renamed.moved(__name__, {"painter": "rahf.steer:painter"}, otherwise=_lazy)
