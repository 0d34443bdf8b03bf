"""From a config to the denoiser that it describes, and the vocabulary that the denoiser can read."""

from __future__ import annotations

from collections.abc import Callable

from rahf.config import ModelConfig
from rahf.diffusion.networks.pixel_unet import TextToImage
from rahf.text import Tokenizer


def build(config: ModelConfig) -> Callable[[], TextToImage]:
    """A function that builds the configured denoiser; for `rahf.nn.functional.init` and `abstract`."""
    return lambda: TextToImage(config)


def vocabulary_problem(config: ModelConfig, tokenizer: Tokenizer) -> str | None:
    """Why a vocabulary does not fit the denoiser, in words that name both sizes; None if it fits."""
    rows = config.t5.vocab_size
    if tokenizer.vocab_size <= rows:
        return None
    return (
        f"the vocabulary {tokenizer.source} has {tokenizer.vocab_size} pieces, model.t5.vocab_size is only "
        f"{rows}; set it to at least that"
    )
