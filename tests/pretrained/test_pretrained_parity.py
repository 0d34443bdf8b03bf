"""PyTorch networks of `transformers`, saved as the hub would, loaded here and compared layer by layer."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")
pytest.importorskip("transformers", reason="parity needs the transformers package")

from transformers.models.dinov2 import configuration_dinov2, modeling_dinov2  # noqa: E402
from transformers.models.siglip import configuration_siglip, modeling_siglip  # noqa: E402
from transformers.models.t5 import configuration_t5, modeling_t5  # noqa: E402
from transformers.models.vit import configuration_vit, modeling_vit  # noqa: E402

from rahf.config import CriticConfig, HeatmapHeadConfig, ScoreHeadConfig  # noqa: E402
from rahf.core import errors  # noqa: E402
from rahf.critic import towers  # noqa: E402
from rahf.critic.networks.build import build  # noqa: E402
from rahf.nn import functional, t5  # noqa: E402
from rahf.pretrained.t5 import load_t5, published_t5  # noqa: E402
from rahf.pretrained.vision import load_vision, published_vision  # noqa: E402
from rahf.training.start import shares  # noqa: E402
from tests.helpers.parity import DTYPE, T5_SMALL, agree, compare_tower, disturb, make_t5, run_t5, token_ids  # noqa: E402

SMALL = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=32, patch_size=8)


@pytest.mark.parametrize(
    "variant", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_pytorch_tanh"}, {"layer_norm_eps": 1e-3}]
)
def test_vit(tmp_path, monkeypatch, variant):
    config = configuration_vit.ViTConfig(**SMALL, intermediate_size=80, **variant)
    module = disturb(modeling_vit.ViTModel(config))
    module.save_pretrained(tmp_path)
    published = published_vision(tmp_path)
    assert published.image_size == 32 and (published.vit.width, published.vit.depth, published.vit.heads) == (48, 3, 3)
    params = load_vision(tmp_path, published.vit, 32)
    compare_tower(module, published.vit, 32, params, monkeypatch)


@pytest.mark.parametrize("size", [48, 24])
def test_vit_at_another_size(tmp_path, monkeypatch, size):
    config = configuration_vit.ViTConfig(**SMALL, intermediate_size=80)
    classifier = disturb(modeling_vit.ViTForImageClassification(config))
    classifier.save_pretrained(tmp_path)  # the layout of google/vit-large-patch16-384: a prefix, and a classifier
    published = published_vision(tmp_path)
    params = load_vision(tmp_path, published.vit, size)
    compare_tower(classifier.vit, published.vit, size, params, monkeypatch, interpolate_pos_encoding=True)


@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("complete", [False, True])
def test_siglip(tmp_path, monkeypatch, complete, size):
    tower = dict(SMALL, intermediate_size=80)
    if complete:
        text = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=80, vocab_size=49500)
        config = configuration_siglip.SiglipConfig(vision_config=tower, text_config=text)
        saved = disturb(modeling_siglip.SiglipModel(config))
        module = saved.vision_model
    else:
        saved = module = disturb(modeling_siglip.SiglipVisionModel(configuration_siglip.SiglipVisionConfig(**tower)))
    saved.save_pretrained(tmp_path)
    published = published_vision(tmp_path)
    assert published.vit.activation == "gelu-tanh" and not published.vit.class_token
    params = load_vision(tmp_path, published.vit, size)
    compare_tower(module, published.vit, size, params, monkeypatch, interpolate_pos_encoding=True)


@pytest.mark.parametrize("size", [32, 56])
def test_dinov2(tmp_path, monkeypatch, size):
    module = disturb(modeling_dinov2.Dinov2Model(configuration_dinov2.Dinov2Config(**SMALL, mlp_ratio=2)))
    module.save_pretrained(tmp_path)
    published = published_vision(tmp_path)
    assert published.vit.layer_scale and published.vit.mlp_width == 96
    params = load_vision(tmp_path, published.vit, size)
    compare_tower(module, published.vit, size, params, monkeypatch)


def test_any_family_is_found_by_its_config(tmp_path):
    module = modeling_dinov2.Dinov2Model(configuration_dinov2.Dinov2Config(**SMALL))
    module.save_pretrained(tmp_path)
    published = published_vision(tmp_path)
    colours = dict(image_mean=published.image_mean, image_std=published.image_std)
    network = CriticConfig(image_size=32, vit=published.vit, **colours)
    params = towers.load_image_tower(tmp_path, network)
    np.testing.assert_array_equal(params["norm"]["scale"], module.layernorm.weight.detach().numpy())
    with pytest.raises(errors.PretrainedError, match="image_mean"):
        towers.load_image_tower(tmp_path, CriticConfig(image_size=32, vit=published.vit))


V1_0 = dict(feed_forward_proj="relu")
V1_1 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


VARIANTS = {"v1.0": (V1_0, False), "v1.1": (V1_1, True), "v1.1 tied": (V1_1, False)}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("length, targets", [(7, 5), (12, 8)])
def test_t5(tmp_path, monkeypatch, kind, length, targets):
    variant, untie = VARIANTS[kind]
    module = make_t5(tmp_path, variant, untie)
    config = published_t5(tmp_path)
    assert config.tie_embeddings == (kind == "v1.0") and config.decoder_layers == 3
    params = load_t5(tmp_path, config)
    ids, mask = token_ids(length)
    labels = token_ids(targets, seed=1)[0]
    hidden = {"encoder": [], "decoder": []}
    for stack, blocks in (("encoder", module.encoder.block), ("decoder", module.decoder.block)):
        for block in blocks:
            keep = hidden[stack].append
            block.register_forward_hook(lambda m, i, o, keep=keep: keep(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        theirs = module(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            labels=torch.from_numpy(labels),
        )
    encoded, logits, layers = run_t5(config, params, ids, mask, labels, monkeypatch)
    agree(encoded[mask], theirs.encoder_last_hidden_state[torch.from_numpy(mask)])
    for ours, expected in zip(layers["encoder"], hidden["encoder"], strict=True):
        agree(ours[mask], expected[torch.from_numpy(mask)])
    for ours, expected in zip(layers["decoder"], hidden["decoder"], strict=True):
        agree(ours, expected)
    agree(logits, theirs.logits)


def test_t5_encoder_alone_beyond_the_last_bucket(tmp_path):
    config = configuration_t5.T5Config(**(T5_SMALL | dict(num_layers=1)), **V1_1)
    module = disturb(modeling_t5.T5EncoderModel(config))
    module.save_pretrained(tmp_path)
    ids, _ = token_ids(301, count=1)
    with torch.no_grad():
        theirs = module(input_ids=torch.from_numpy(ids)).last_hidden_state
    published = published_t5(tmp_path)
    with pytest.raises(errors.PretrainedError, match="decoder=False"):
        load_t5(tmp_path)
    params = load_t5(tmp_path, decoder=False)
    assert sorted(params) == ["embedding", "encoder"]
    graphdef, _ = functional.abstract(lambda: t5.Encoder(published, dtype=DTYPE))
    encoder = functional.merge(graphdef, jax.device_put(params["encoder"]))
    agree(jax.jit(encoder)(params["embedding"][ids], np.ones(ids.shape, bool)), theirs)


@pytest.mark.parametrize("distance", [128, 100, 37])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_to_the_digit(bidirectional, distance):
    """Borders between buckets fall on whole distances (16, 32, 64), where one rounding would move them."""
    positions = np.arange(1500)
    theirs = modeling_t5.T5Attention._relative_position_bucket(
        torch.from_numpy(positions[None, :] - positions[:, None]),
        bidirectional=bidirectional,
        num_buckets=32,
        max_distance=distance,
    )
    ours = t5.relative_buckets(positions, positions, bidirectional=bidirectional, buckets=32, max_distance=distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_towers_start_a_network(tmp_path):
    """Both towers go into fresh parameters of a whole network; heads stay as they were initialised."""
    modeling_vit.ViTModel(configuration_vit.ViTConfig(**SMALL, intermediate_size=80)).save_pretrained(tmp_path / "vit")
    make_t5(tmp_path / "t5", V1_0, False)
    published = published_vision(tmp_path / "vit")
    config = CriticConfig(
        image_size=32,
        vit=published.vit,
        t5=published_t5(tmp_path / "t5"),
        heatmap_head=HeatmapHeadConfig(conv_widths=(8,), up_widths=(8,)),
        score_head=ScoreHeadConfig(conv_widths=(8,), dense_widths=(8,)),
    )
    fresh = functional.abstract(build(config))[1]
    params, record = towers.load_towers(config, vision=tmp_path / "vit", text=tmp_path / "t5")
    assert {kind: (record[kind]["name"], record[kind]["parts"]) for kind in ("vision", "text")} == {
        "vision": (str(tmp_path / "vit"), ["vit"]),
        "text": (str(tmp_path / "t5"), ["decoder", "embedding", "encoder"]),
    }
    assert record["vision"]["positions"] is None and record["text"]["license"] == "unknown"
    taken, paths = shares(fresh, params), set(functional.flatten(fresh))
    heads = {path for path in paths if not path.startswith(("vit/", "encoder/", "decoder/", "embedding"))}
    assert heads == set(taken["random"]) and paths - heads == set(taken["taken"]) == set(functional.flatten(params))
