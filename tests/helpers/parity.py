"""Helpers to compare our towers with the PyTorch ones of `transformers`, layer by layer. Needs PyTorch."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.t5 import configuration_t5, modeling_t5

from rahf.nn import functional, t5, vit

TOLERANCE = 1e-5  # relative to the largest value, float32
DTYPE = jnp.dtype("float32")


def disturb(module, matrices=0.1, seed=0):
    """Adds noise to norms and biases, which start as ones and zeros, and of size `matrices` to kernels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            size = 0.1 if parameter.ndim == 1 else matrices
            if size:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def agree(ours, theirs):
    """Asserts agreement of an array and a tensor."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if os.environ.get("RAHF_SHOW_PARITY"):
        print(f"{os.environ['PYTEST_CURRENT_TEST']}: {error:.2e}")
    assert error <= TOLERANCE


def record_calls(monkeypatch, cls):
    """A list that receives the output of every call of a module class, in order."""
    outputs, plain = [], cls.__call__

    def call(self, *args, **kwargs):
        outputs.append(plain(self, *args, **kwargs))
        return outputs[-1]

    monkeypatch.setattr(cls, "__call__", call)
    return outputs


def pictures(side, count=2):
    """Normalised pictures [count, side, side, 3]."""
    return np.random.default_rng(3).standard_normal((count, side, side, 3)).astype(np.float32)


def run_tower(config, size, params, image, monkeypatch):
    """Layer outputs and final tokens of our tower."""
    graphdef, _ = functional.abstract(lambda: vit.ViT(config, size, dtype=DTYPE))
    layers = record_calls(monkeypatch, vit.ViTBlock)

    def run(params):
        final = functional.merge(graphdef, params)(jnp.asarray(image))
        return list(layers), final

    return jax.jit(run)(params)


def compare_tower(module, config, size, params, monkeypatch, **options):
    """Asserts that every layer and the final tokens agree."""
    image = pictures(size)
    with torch.no_grad():
        theirs = module(torch.from_numpy(image).permute(0, 3, 1, 2), output_hidden_states=True, **options)
    layers, final = run_tower(config, size, params, image, monkeypatch)
    assert len(layers) == config.depth
    for number, ours in enumerate(layers):
        agree(ours, theirs.hidden_states[number + 1])
    agree(final, theirs.last_hidden_state)


T5_SMALL = dict(vocab_size=96, d_model=40, d_kv=8, d_ff=56, num_layers=2, num_decoder_layers=3, num_heads=3)
T5_SMALL |= dict(decoder_start_token_id=0, dropout_rate=0.1)


def make_t5(folder, variant, untie):
    """A small T5 saved in a folder; `untie` gives its output a matrix of its own."""
    config = configuration_t5.T5Config(**T5_SMALL, **variant)
    module = modeling_t5.T5ForConditionalGeneration(config)
    if untie:
        module.lm_head.weight = torch.nn.Parameter(torch.zeros_like(module.shared.weight))
    disturb(module)
    module.save_pretrained(folder)
    return module


def token_ids(length, count=3, seed=0):
    """Random ids [count, length] and a mask: full, half and all but one."""
    rng = np.random.default_rng(seed)
    lengths = [length, max(length // 2, 1), max(length - 1, 1)][:count]
    mask = np.arange(length) < np.asarray(lengths)[:, None]
    return np.where(mask, rng.integers(2, 96, (count, length)), 0), mask


def run_t5(config, params, ids, mask, labels, monkeypatch):
    """Encoder output, logits under teacher forcing, and every layer's output of ours."""
    layers = {
        "encoder": record_calls(monkeypatch, t5.EncoderBlock),
        "decoder": record_calls(monkeypatch, t5.DecoderBlock),
    }
    encoder, _ = functional.abstract(lambda: t5.Encoder(config, dtype=DTYPE))
    decoder, _ = functional.abstract(lambda: t5.Decoder(config, dtype=DTYPE))
    inputs = np.pad(labels[:, :-1], ((0, 0), (1, 0)))

    def run(params):
        embedding = params["embedding"]
        encoded = functional.merge(encoder, params["encoder"])(embedding[ids], jnp.asarray(mask))
        hidden = functional.merge(decoder, params["decoder"])(embedding[inputs], encoded, jnp.asarray(mask))
        if config.tie_embeddings:
            logits = (hidden * config.width**-0.5) @ embedding.T
        else:
            logits = hidden @ params["output"]
        return encoded, logits, {name: list(found) for name, found in layers.items()}

    return jax.device_get(jax.jit(run)(jax.device_put(params)))
