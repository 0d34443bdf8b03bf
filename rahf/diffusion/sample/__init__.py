"""Sampling with guidance: any denoiser, any schedule, any energy."""

from rahf.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "GuidanceOptions": "rahf.diffusion.sample.options",
        "GuidedSamples": "rahf.diffusion.sample.universal_guidance",
        "classifier_free": "rahf.diffusion.sample.denoisers",
        "epsilon": "rahf.diffusion.sample.denoisers",
        "inpainting": "rahf.diffusion.sample.denoisers",
        "noise": "rahf.diffusion.sample.universal_guidance",
        "unit_pixels": "rahf.diffusion.sample.universal_guidance",
    },
)
