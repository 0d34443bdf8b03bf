"""The networks of Stable Diffusion against the PyTorch modules of `diffusers` and `transformers`, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")
pytest.importorskip("diffusers", reason="needs diffusers: pip install rahf[torch]")

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

from rahf.diffusion import weights  # noqa: E402
from rahf.diffusion.networks import autoencoder, unet  # noqa: E402
from rahf.diffusion.published import configs  # noqa: E402
from rahf.nn import clip_text, functional  # noqa: E402
from rahf.pretrained import files, strict  # noqa: E402
from tests.helpers.parity import disturb, record_calls  # noqa: E402
from tests.helpers.stable_diffusion_torch import TINY_UNET, TINY_VAE, UNETS  # noqa: E402

FLOAT32 = jnp.dtype("float32")
TOLERANCE = 1e-4


def taker(module):
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    return strict.Taker(files.from_arrays(state), "module")


def converted(module, build, is_pointwise):
    """Graph and parameters of our network with the module's weights."""
    graphdef, shapes = functional.abstract(build)
    tensors = taker(module)
    params = weights.take(tensors, shapes, is_pointwise)
    tensors.finish()
    return graphdef, jax.device_put(params)


def agree(ours, theirs, channels_last=True):
    theirs = theirs.detach().numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if channels_last and theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, np.abs(theirs).max()))


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("kind", UNETS)
def test_unet(kind, monkeypatch):
    """Odd, not square: 9 x 6 latents become 5 x 3 and 3 x 2 on the way down."""
    torch.manual_seed(0)
    module = disturb(UNet2DConditionModel(**TINY_UNET, **UNETS[kind]))
    config = configs.unet(dict(module.config), "unet/config.json")
    build = lambda: unet.UNet2DConditionModel(config, dtype=FLOAT32)
    graphdef, params = converted(module, build, weights.pointwise(config.use_linear_projection))
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 9, 6, config.in_channels)).astype(np.float32)
    text = rng.standard_normal((2, 5, config.cross_attention_dim)).astype(np.float32)
    steps = np.array([7, 981])
    pooled, sizes, added = None, None, {}
    if kind == "xl":
        pooled = rng.standard_normal((2, 8)).astype(np.float32)
        sizes = np.array([[72, 48, 0, 0, 72, 48], [100, 80, 3, 4, 72, 48]], np.float32)
        added = {"added_cond_kwargs": {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}}
    theirs = {}
    names = ["mid_block", *(f"{way}_blocks.{number}" for way in ("down", "up") for number in range(3))]
    for name in names:
        keep = lambda m, i, o, name=name: theirs.__setitem__(name, o[0] if isinstance(o, tuple) else o)
        module.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        expected = module(nchw(latents), torch.from_numpy(steps), torch.from_numpy(text), **added).sample
    blocks = {cls: record_calls(monkeypatch, getattr(unet, cls)) for cls in ("DownBlock", "MiddleBlock", "UpBlock")}

    @jax.jit
    def run(params, *inputs):
        return functional.merge(graphdef, params)(*inputs), blocks

    out, ours = run(params, latents, steps, unet.Conditions(text, pooled, sizes))
    for number in range(3):
        agree(ours["DownBlock"][number][0], theirs[f"down_blocks.{number}"])
        agree(ours["UpBlock"][number], theirs[f"up_blocks.{number}"])
    agree(ours["MiddleBlock"][0], theirs["mid_block"])
    agree(out, expected)


def there_and_back(graphdef, params, pictures):
    @jax.jit
    def run(params, pictures):
        network = functional.merge(graphdef, params)
        distribution = network.encode(pictures)
        return distribution, network.decode(distribution.mean)

    return run(params, pictures)


def test_autoencoder():
    torch.manual_seed(1)
    module = disturb(AutoencoderKL(**TINY_VAE))
    config = configs.vae(dict(module.config), "vae/config.json")
    graphdef, params = converted(
        module, lambda: autoencoder.AutoencoderKL(config, dtype=FLOAT32), weights.pointwise(False)
    )
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module.encode(nchw(pictures)).latent_dist
        decoded = module.decode(expected.mean).sample
    distribution, ours = there_and_back(graphdef, params, pictures)
    agree(distribution.mean, expected.mean)
    agree(distribution.std, expected.std)
    agree(ours, decoded)


def test_autoencoder_of_older_files():
    """Attention was called query, key, value, proj_attn, and was stored as 1x1 convolutions for a while."""
    module = AutoencoderKL(**TINY_VAE)
    new = taker(module)
    state = {}
    for name, value in module.state_dict().items():
        former = weights.former_name(name)
        value = value.numpy()
        state[former] = value[..., None, None] if former != name and value.ndim == 2 else value
    assert any(".proj_attn." in name for name in state)
    config = configs.vae(dict(module.config), "vae/config.json")
    _, shapes = functional.abstract(lambda: autoencoder.AutoencoderKL(config, dtype=FLOAT32))
    old = strict.Taker(files.from_arrays(state), "module")
    jax.tree.map(
        np.testing.assert_array_equal, *(weights.take(t, shapes, weights.pointwise(False)) for t in (old, new))
    )
    old.finish()


def test_tiny_autoencoder():
    torch.manual_seed(2)
    sizes = dict(encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8))
    module = disturb(AutoencoderTiny(**sizes, num_encoder_blocks=(1, 2, 1), num_decoder_blocks=(2, 1, 1)))
    config = configs.tiny_vae(dict(module.config), "vae/config.json")
    graphdef, params = converted(
        module, lambda: autoencoder.AutoencoderTiny(config, dtype=FLOAT32), weights.pointwise(False)
    )
    pictures = np.random.default_rng(0).uniform(-1, 1, (1, 16, 12, 3)).astype(np.float32)
    with torch.no_grad():
        latents = module.encode(nchw(pictures)).latents
        decoded = module.decode(latents).sample
    distribution, ours = there_and_back(graphdef, params, pictures)
    agree(distribution.mean, latents)
    agree(ours, decoded)


@pytest.mark.parametrize("act, eos, projection", [("quick_gelu", 59, 0), ("gelu", 2, 0), ("gelu", 59, 12)])
def test_text_towers(act, eos, projection):
    """CLIP-L, OpenCLIP-H, bigG: padded prompts; the old name 2 of the end; hidden states, end and projection."""
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=9, hidden_act=act, eos_token_id=eos, projection_dim=projection or 16,
    )  # fmt: skip
    module = disturb((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))
    ours_config = configs.text_encoder(config.to_dict(), "text_encoder/config.json")
    tensors = taker(module)
    params, head = weights.take_text(tensors, ours_config, projection)
    tensors.finish()
    pad = 0 if act == "gelu" else 59
    ids = np.array([[58, 3, 4, 5, 59, pad, pad, pad, pad], [58, 9, 59, pad, pad, pad, pad, pad, pad]])
    with torch.no_grad():
        theirs = module(torch.from_numpy(ids), output_hidden_states=True)
    graphdef, _ = functional.abstract(lambda: clip_text.TextTower(ours_config, dtype=FLOAT32))
    states = jax.jit(lambda params, ids: functional.merge(graphdef, params).states(ids))(params, ids)
    agree(states.penultimate, theirs.hidden_states[-2])
    agree(states.last, theirs.last_hidden_state)
    if projection:
        agree(states.end @ head["kernel"], theirs.text_embeds)
    else:
        agree(states.end, theirs.pooler_output)
    back = weights.text_to_stored(params, ours_config, head)
    state = {name.removeprefix("text_model."): value for name, value in module.state_dict().items()}
    assert {name.removeprefix("text_model.") for name in back} == set(state)
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name.removeprefix("text_model.")].numpy())
