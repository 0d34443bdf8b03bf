"""Going back from a picture to its noise (`inversion`, `edict`), and optimising noise: `doodl.doodl`, `sgool.sgool`."""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "DoodlOptions": "rahf.diffusion.latents.doodl",
        "DoodlResult": "rahf.diffusion.latents.doodl",
        "Inversion": "rahf.diffusion.latents.inversion",
        "Pair": "rahf.diffusion.latents.edict",
        "SaliencyOptions": "rahf.diffusion.latents.sgool",
        "coefficients": "rahf.diffusion.latents.edict",
        "denoise": "rahf.diffusion.latents.edict",
        "invert": "rahf.diffusion.latents.edict",
        "of_heatmap": "rahf.diffusion.latents.sgool",
        "salient_boxes": "rahf.diffusion.latents.sgool",
    },
)
