"""Text-to-image diffusion models: Stable Diffusion 1.x, 2.x, inpainting and XL, and a small one of our own in pixels.

    pipe = rahf.diffusion.load("models/sd15")                      # of `rahf import stable-diffusion`
    pipe(["a red cat"], seeds=[0], num_inference_steps=30).images  # float32 [B,H,W,3] in [0,1]

`rahf train configs/diffusion/demo.py` trains the small one; guidance, repair and selection are shown with it.

    generator = rahf.diffusion.load("runs/demo_diffusion")
    generated = generator(["a red circle left of a blue square"], seeds=[0], reward=my_reward)
"""

from rahf.core import renamed
from rahf.core.lazy import attach

_lazy, __dir__, __all__ = attach(
    __name__,
    {
        "ControlNet": "rahf.diffusion.controlnet",
        "GeneratedImages": "rahf.diffusion.generated",
        "Generator": "rahf.diffusion.pixel_generator",
        "GuidanceOptions": "rahf.diffusion.sample.options",
        "Pipeline": "rahf.diffusion.pipeline",
        "export_diffusers": "rahf.diffusion.published.export_folder",
        "import_stable_diffusion": "rahf.diffusion.published.import_folder",
        "load": "rahf.diffusion.loading",
        "load_controlnet": "rahf.diffusion.published.controlnet_folder",
        "save_controlnet": "rahf.diffusion.published.controlnet_folder",
        "save_untrained": "rahf.diffusion.untrained",
    },
)
__getattr__ = renamed.moved(__name__, {"painter": "rahf.steer:painter"}, otherwise=_lazy)
