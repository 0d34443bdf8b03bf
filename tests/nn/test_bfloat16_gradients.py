"""Gradients of networks that compute in bfloat16: sums over batch and positions are accumulated in float32.

With 8 bits of precision a bfloat16 sum of equal terms stops growing at 256 of them: the gradient of a bias over 64 x
577 rows is then a third of what it should be.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from rahf.config import (
    ClipBaselineConfig,
    ClipConfig,
    ClipTextConfig,
    ConvNextConfig,
    EfficientNetConfig,
    LossConfig,
    PixelDiffusionConfig,
    ResNetBaselineConfig,
    ResNetConfig,
    ViTConfig,
)
from rahf.critic import losses
from rahf.critic.networks import build, heads, word_tags
from rahf.diffusion.networks import blocks, pixel_unet
from rahf.nn import convnext, efficientnet, functional, gradients, layers, resnet
from tests.helpers import model_maker
from tests.helpers.straight_through import straight_through

BF16, F32 = jnp.dtype("bfloat16"), jnp.dtype("float32")


# Each kind of layer


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


ROWS, MAP = (16, 577, 8), (8, 48, 48, 4)
VIT = ViTConfig(
    patch_size=1, width=8, depth=1, heads=2, mlp_width=16, class_token=True, layer_scale=True, pre_norm=True
)
T5 = dataclasses.replace(model_maker.PLAIN.t5, width=8, head_width=4, mlp_width=16, encoder_layers=1, decoder_layers=1)
HEAD = dataclasses.replace(model_maker.PLAIN.heatmap_head, conv_widths=(4,), up_widths=(4,), prior=0.3)
#: Norms subtract nearly all of the gradient that a constant change in front of them has; what is left is rounding.
BEHIND_THE_NORMS = ("last/kernel", "last/bias", "out/kernel", "out/bias")
#: dtype → module, how it is called, and the shape of its input.
KINDS = {
    "linear": (lambda d: layers.Linear(8, 8, bias=True, std=0.3, dtype=d), lambda m, x: m(x), ROWS),
    "rms norm": (lambda d: layers.RMSNorm(8, dtype=d), lambda m, x: m(x), ROWS),
    "layer norm": (lambda d: layers.LayerNorm(8, dtype=d), lambda m, x: m(x), ROWS),
    "group norm": (lambda d: blocks.GroupNorm(4, 2, dtype=d), lambda m, x: m(x), MAP),
    "convolution": (lambda d: layers.Conv3x3(4, 4, dtype=d), lambda m, x: m(x), MAP),
    "transposed convolution": (lambda d: layers.UpConv3x3(4, 4, dtype=d), lambda m, x: m(x), MAP),
    "depthwise convolution": (lambda d: efficientnet.DepthwiseAffine(4, 3, 1, dtype=d), lambda m, x: m(x), MAP),
    "patches": (lambda d: convnext.Patches(4, 4, 2, dtype=d), lambda m, x: m(x), MAP),
    "convolution and affine": (lambda d: resnet.ConvAffine(4, 4, 3, dtype=d), lambda m, x: m(x), MAP),
    "tag head": (lambda d: word_tags.TagHead(8, 4, dtype=d), lambda m, x: m(x), ROWS),
    "heatmap head": (lambda d: heads.HeatmapHead(4, 64, HEAD, grid=32, dtype=d), lambda m, x: m(x), (4, 32, 32, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_layer(kind):
    """Each parameter's gradient in bfloat16 is that in float32 but for 2%, in training and otherwise.

    The loss is a mean that all positions move the same way: terms of one sign, of which a sum in bfloat16 loses most.
    """
    make, call, shape = KINDS[kind]
    x = 1 + 0.3 * normal(1, *shape)
    found = {}
    for dtype in (F32, BF16):
        graphdef, _ = functional.abstract(functools.partial(make, dtype))
        params = functional.init(functools.partial(make, dtype), 0)
        params = jax.tree.map(lambda p: p + 0.1 * normal(2, *p.shape), params)

        def loss(params, graphdef=graphdef):
            with gradients.of_training():
                y = call(functional.merge(graphdef, params), x).astype(F32)
            return jnp.mean(0.5 * y + 0.1 * jnp.square(y))

        found[dtype] = functional.flatten(jax.jit(jax.grad(loss))(params))
    parts = found[F32] if kind != "heatmap head" else BEHIND_THE_NORMS
    for path in parts:
        expected = found[F32][path]
        assert found[BF16][path].dtype == F32
        assert error(found[BF16][path], expected) < 0.02, path


def error(found, expected) -> float:
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


# Whole networks


def sums_in_bfloat16(jaxpr) -> list[str]:
    """Sums of more than 16 bfloat16 numbers into one, in a program and in all that it calls; not those of products."""
    found = []
    for equation in jaxpr.eqns:
        name, operand = equation.primitive.name, equation.invars[0].aval if equation.invars else None
        if getattr(operand, "dtype", None) == BF16:
            terms = operand.size / max(equation.outvars[0].aval.size, 1)
            # Taking each row at most once adds nothing up; an embedding is looked up more often than it has rows.
            collides = name == "scatter-add" and equation.invars[-1].aval.size > operand.size
            if name == "reduce_sum" and terms > 16 or collides or name == "cumsum":
                found.append(f"{name} of {operand.str_short()}")
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                    found += sums_in_bfloat16(getattr(inner, "jaxpr", inner))
    return found


def critic_gradient(config):
    config = dataclasses.replace(config, compute_dtype="bfloat16")
    graphdef, params = functional.abstract(build.build(config))
    side, batch = config.image_size, model_maker.fake(8)
    batch = batch._replace(
        image=np.zeros((8, side, side, 3), np.uint8), heatmaps=np.zeros((8, side, side, 2), np.uint8)
    )

    def loss(params):
        model = functional.merge(graphdef, params)
        with gradients.of_training():
            if getattr(config, "variant", "") == "augmented-prompt":
                return losses.sampled(LossConfig(), model.sample(batch, jax.random.key(0)), batch)[0]
            return losses.total(LossConfig(), model(batch), batch)[0]

    return jax.make_jaxpr(jax.grad(loss))(params)


def denoiser_gradient():
    config = PixelDiffusionConfig(
        image_size=16, t5=T5, block_out_channels=(8, 16), attention_from=0, num_attention_heads=2, norm_num_groups=2,
        compute_dtype="bfloat16",
    )  # fmt: skip
    graphdef, params = functional.abstract(lambda: pixel_unet.TextToImage(config))
    ids = np.ones((8, 6), np.int32)

    def loss(params):
        model = functional.merge(graphdef, params)
        with gradients.of_training():
            prompt = model.encode(ids, ids > 0)
            return jnp.square(model(jnp.zeros((8, 16, 16, 3)), np.zeros(8, np.int32), prompt)).mean()

    return jax.make_jaxpr(jax.grad(loss))(params)


RESNET = ResNetBaselineConfig(
    image_size=64, resnet=ResNetConfig(stem_width=4, widths=(8, 16), depths=(1, 1)),
    heatmap_head=HEAD, score_head=model_maker.PLAIN.score_head,
)  # fmt: skip
CLIP = ClipBaselineConfig(
    image_size=16, vit=dataclasses.replace(VIT, patch_size=4),
    clip=ClipConfig(
        text=ClipTextConfig(vocab_size=48, positions=12, width=8, depth=1, heads=2, mlp_width=16, eos_token_id=47),
        width=8, scores="trained", dense_widths=(8,), cosine_scores=(),
    ),
)  # fmt: skip
CONVOLVING = dataclasses.replace(
    model_maker.PLAIN, image_size=64, tower="efficientnet", finest_skip=16,
    efficientnet=EfficientNetConfig(4, (4, 4, 6, 6, 8, 8, 10), (1,) * 7),
    convnext=ConvNextConfig(4, (4, 6, 8, 12), (1,) * 4), heatmap_head=HEAD,
)  # fmt: skip
NETWORKS = {
    "multi-head": model_maker.PLAIN,
    "multi-head, other options": dataclasses.replace(model_maker.OTHER, vit=dataclasses.replace(VIT, patch_size=4)),
    "multi-head, scanned and recomputed": dataclasses.replace(model_maker.PLAIN, scan_layers=True, remat="block"),
    "augmented prompt": model_maker.AUGMENTED,
    "EfficientNet": CONVOLVING,
    "ConvNeXt": dataclasses.replace(CONVOLVING, tower="convnext"),
    "ResNet": RESNET,
    "CLIP": CLIP,
}


@pytest.mark.parametrize("name", [*NETWORKS, "denoiser"])
def test_no_network_sums_in_bfloat16(name):
    program = denoiser_gradient() if name == "denoiser" else critic_gradient(NETWORKS[name])
    assert sums_in_bfloat16(program.jaxpr) == []


@pytest.mark.parametrize("name, config", [("multi-head", model_maker.SMALLEST), ("CLIP", CLIP)])
def test_gradients_of_a_whole_network(name, config):
    """Each parameter's gradient in bfloat16 is the one without rounding, at the same values, but for 2%.

    A network in float32 has other values, and where it has norms, quite other gradients. So the reference rounds each
    value of the network as bfloat16 does, and computes the gradient in float32.
    """
    config = dataclasses.replace(config, compute_dtype="bfloat16")
    graphdef, side, batch = functional.abstract(build.build(config))[0], config.image_size, model_maker.fake(8)
    image = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), np.uint8)
    # Labels that pull all outputs the same way: terms of one sign, as in `test_gradients_of_a_layer`.
    batch = batch._replace(
        image=image, heatmaps=np.full((8, side, side, 2), 255, np.uint8), scores=np.ones_like(batch.scores)
    )
    params = functional.init(build.build(config), 0)

    def loss(params):
        with gradients.of_training():
            return losses.total(LossConfig(), functional.merge(graphdef, params)(batch), batch)[0]

    # By default XLA leaves roundings out where that is faster: the values would be others than the reference's.
    options = {"xla_allow_excess_precision": False, "xla_backend_optimization_level": 0}
    found, expected = (
        functional.flatten(jax.jit(jax.grad(f)).lower(params).compile(compiler_options=options)(params))
        for f in (loss, straight_through(loss, params))
    )
    # Softmax does not change with the bias of the keys: the true gradient is zero, what is left is rounding.
    compared = [path for path in expected if not path.endswith("key/bias")]
    assert len(compared) > 50
    for path in compared:
        assert found[path].dtype == F32
        difference = jnp.linalg.norm(found[path] - expected[path])
        assert difference <= 0.02 * jnp.linalg.norm(expected[path]), path  # both are 0 where nothing is learnt


def test_the_search_finds_such_sums():
    x = jnp.zeros((64, 8), BF16)
    bad = jax.make_jaxpr(jax.jit(jax.grad(lambda b: (x + b.astype(BF16)).astype(F32).sum())))(jnp.zeros(8))
    assert sums_in_bfloat16(bad.jaxpr) == ["reduce_sum of bfloat16[64,8]"]
