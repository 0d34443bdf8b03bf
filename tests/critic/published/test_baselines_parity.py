"""CLIP and ResNet of `transformers`, with random weights, saved as the hub would, loaded here and compared."""

import dataclasses
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")
pytest.importorskip("transformers", reason="parity needs the transformers package")

from transformers.models.clip import configuration_clip, modeling_clip  # noqa: E402
from transformers.models.resnet import configuration_resnet, modeling_resnet  # noqa: E402

from rahf.config import (  # noqa: E402
    CriticConfig,
    HeatmapHeadConfig,
    ResNetBaselineConfig,
    ResNetConfig,
    ScoreHeadConfig,
)
from rahf.core import errors  # noqa: E402
from rahf.critic import towers  # noqa: E402
from rahf.critic.networks.build import build  # noqa: E402
from rahf.critic.published.baselines import clip_model  # noqa: E402
from rahf.nn import functional, vit  # noqa: E402
from rahf.nn.resnet import Bottleneck, ResNet, grid  # noqa: E402
from rahf.pretrained.clip import load_clip, published_clip  # noqa: E402
from rahf.pretrained.resnet import load_resnet, published_resnet  # noqa: E402
from rahf.pretrained.vision import published_vision  # noqa: E402
from tests.helpers.parity import DTYPE, agree, disturb, pictures, record_calls  # noqa: E402

TOWER = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=80)
END = 95


def make_clip(folder, act, eos):
    """A small CLIP saved in a folder."""
    text = dict(TOWER, hidden_size=32, num_attention_heads=4, vocab_size=96, max_position_embeddings=20)
    config = configuration_clip.CLIPConfig(
        vision_config=dict(TOWER, image_size=32, patch_size=8, hidden_act=act),
        text_config=dict(text, hidden_act=act, eos_token_id=eos, bos_token_id=94, pad_token_id=1),
        projection_dim=24,
    )
    module = disturb(modeling_clip.CLIPModel(config))
    module.save_pretrained(folder)
    return module


def texts(eos):
    """Ids [3,20]: a full one; one with its end in the middle; for a given end also a higher id in front of it."""
    ids = np.random.default_rng(0).integers(3, 90, (3, 20)).astype(np.int32)
    ids[0, -1], ids[1, 7], ids[2, 11] = END, END, END
    ids[1, 8:] = 0  # ours pads with 0
    ids[2, 12:] = END  # as OpenAI's vocabulary
    if eos != 2:
        ids[:] = np.where(ids == END, eos, ids)
        ids[:, 3] = END
    return ids


@pytest.mark.parametrize("act, eos", [("quick_gelu", 2), ("gelu", END), ("gelu", 91)])
def test_clip(tmp_path, monkeypatch, act, eos):
    module = make_clip(tmp_path, act, eos)
    published = published_clip(tmp_path)
    config = clip_model(published, heatmap="gradient")
    assert config.clip.text.eos_token_id == eos and config.clip.width == 24 and config.image_size == 32
    params = load_clip(tmp_path, config.vit, config.clip.text, config.clip.width, config.image_size)
    image, ids = pictures(32, 3), texts(eos)
    inputs = torch.from_numpy(image).permute(0, 3, 1, 2).requires_grad_()
    theirs = module(input_ids=torch.from_numpy(ids).long(), pixel_values=inputs, output_hidden_states=True)
    graphdef, _ = functional.abstract(build(config))
    layers = record_calls(monkeypatch, vit.ViTBlock)

    def run(params):
        model = functional.merge(graphdef, params)
        image_embedding = model.image_embedding(image)
        text_embedding = model.text_embedding(ids)
        kept = list(layers)  # not those of the gradient
        gradient = jax.grad(lambda x: (model.image_embedding(x) * text_embedding).sum())(image)
        similarity = np.e ** model.logit_scale[...] * image_embedding @ text_embedding.T
        fused = model.fuse(image, ids, None)
        scores = model.score_logits(fused)
        return kept, image_embedding, text_embedding, similarity, gradient, model.cosine(fused), scores

    kept, image_embedding, text_embedding, similarity, gradient, cosine, logits = jax.device_get(jax.jit(run)(params))
    hidden = theirs.vision_model_output.hidden_states[1:] + theirs.text_model_output.hidden_states[1:]
    for ours, expected in zip(kept, hidden, strict=True):
        agree(ours, expected)
    agree(image_embedding, theirs.image_embeds)
    agree(text_embedding, theirs.text_embeds)
    agree(similarity, theirs.logits_per_image)
    pairs = (theirs.image_embeds * theirs.text_embeds).sum(-1)
    pairs.sum().backward()
    agree(gradient, inputs.grad.permute(0, 2, 3, 1))
    agree(cosine, pairs)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 1])), (1 + cosine) / 2, rtol=1e-5)
    assert np.isnan(logits[:, [0, 2, 3]]).all()


def test_clip_text_config_as_old_files_hold_it(tmp_path):
    """`text_config_dict`, completed by defaults, overrides `text_config`, as in transformers."""
    make_clip(tmp_path, "quick_gelu", 2)
    file = tmp_path / "config.json"
    tree = json.loads(file.read_text())
    older = {n: v for n, v in tree["text_config"].items() if n in ("hidden_size", "vocab_size", "num_attention_heads")}
    file.write_text(json.dumps(tree | {"text_config_dict": older}))
    theirs = configuration_clip.CLIPConfig.from_pretrained(tmp_path).text_config
    ours = published_clip(tmp_path).text
    assert theirs.eos_token_id == ours.eos_token_id == 49407
    assert theirs.max_position_embeddings == ours.positions == 77
    assert theirs.hidden_size == ours.width == 32


@pytest.mark.parametrize("size", [32, 48])
def test_image_tower_of_clip_serves_the_paper_network(tmp_path, size):
    module = make_clip(tmp_path, "quick_gelu", 2)
    published = published_vision(tmp_path)
    colours = dict(image_mean=published.image_mean, image_std=published.image_std)
    network = CriticConfig(image_size=size, vit=published.vit, **colours)
    params = towers.load_image_tower(tmp_path, network)
    # Transformers normalises the class token only; here every token goes through the same norm.
    image = pictures(size)
    with torch.no_grad():
        theirs = module.vision_model(
            torch.from_numpy(image).permute(0, 3, 1, 2), output_hidden_states=True, interpolate_pos_encoding=True
        )
        final = module.vision_model.post_layernorm(theirs.last_hidden_state)
    graphdef, _ = functional.abstract(lambda: vit.ViT(published.vit, size, dtype=DTYPE))
    ours = jax.jit(lambda p: functional.merge(graphdef, p)(image))(params)
    agree(ours, final)


def small_resnet(folder, classifier=True):
    config = configuration_resnet.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64], depths=[2, 1, 2], num_labels=5
    )
    network = modeling_resnet.ResNetForImageClassification if classifier else modeling_resnet.ResNetModel
    module = disturb(network(config))
    generator = torch.Generator().manual_seed(1)
    for name, buffer in module.named_buffers():  # statistics as after training
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    if folder is not None:
        module.save_pretrained(folder)
    return module.eval()


def run_resnet(config, params, image, monkeypatch):
    blocks = record_calls(monkeypatch, Bottleneck)
    graphdef, _ = functional.abstract(lambda: ResNet(config, dtype=DTYPE))

    def run(params):
        final = functional.merge(graphdef, params)(image)
        return list(blocks), final

    return jax.device_get(jax.jit(run)(params))


@pytest.mark.parametrize("size, classifier", [(64, True), (49, False)])
def test_resnet(tmp_path, monkeypatch, size, classifier):
    module = small_resnet(tmp_path, classifier)
    published = published_resnet(tmp_path)
    assert published.resnet == ResNetConfig(8, (16, 32, 64), (2, 1, 2))
    params = load_resnet(tmp_path, published.resnet)
    image = pictures(size)
    base = module.resnet if classifier else module
    seen = []
    for stage in base.encoder.stages:
        for layer in stage.layers:
            layer.register_forward_hook(lambda m, i, o: seen.append(o.permute(0, 2, 3, 1)))
    with torch.no_grad():
        theirs = base(torch.from_numpy(image).permute(0, 3, 1, 2)).last_hidden_state.permute(0, 2, 3, 1)
    blocks, final = run_resnet(published.resnet, params, image, monkeypatch)
    for ours, expected in zip(blocks, seen, strict=True):
        agree(ours, expected)
    agree(final, theirs)
    assert final.shape[1] == grid(size, published.resnet)


def torchvision_state(module):
    """The weights of a Hugging Face ResNet under torchvision's names."""
    renamed = {}
    for name, value in module.state_dict().items():
        name = name.removeprefix("resnet.")
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        parts = name.split(".")
        if parts[0] == "encoder":
            stage, number, rest = int(parts[2]) + 1, parts[4], parts[5:]
            if rest[0] == "shortcut":
                kind = {"convolution": "downsample.0", "normalization": "downsample.1"}[rest[1]]
                tail = rest[2:]
            else:
                kind = {"convolution": "conv", "normalization": "bn"}[rest[2]] + str(int(rest[1]) + 1)
                tail = rest[3:]
            name = ".".join([f"layer{stage}", number, kind, *tail])
        renamed[name.replace("classifier.1", "fc")] = value
    return renamed


def test_resnet_of_torchvision(tmp_path, monkeypatch):
    module = small_resnet(tmp_path / "folder")
    file = tmp_path / "resnet.pth"
    state = torchvision_state(module)
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.1.bias", "layer3.1.bn3.weight"} <= set(state)
    torch.save(state, file)
    published = published_resnet(file)
    assert published.resnet == ResNetConfig(8, (16, 32, 64), (2, 1, 2))
    ours, same = (functional.flatten(load_resnet(p, published.resnet)) for p in (file, tmp_path / "folder"))
    assert ours.keys() == same.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], same[path])


def test_resnet_starts_a_network(tmp_path):
    small_resnet(tmp_path)
    published = published_resnet(tmp_path)
    config = ResNetBaselineConfig(
        image_size=64,
        resnet=published.resnet,
        heatmap_head=HeatmapHeadConfig(conv_widths=(8,), up_widths=(8,)),
        score_head=ScoreHeadConfig(conv_widths=(8,), dense_widths=(8,)),
        image_mean=published.image_mean,
        image_std=published.image_std,
    )
    params, record = towers.load_towers(config, vision=tmp_path)
    assert sorted(params) == ["resnet"] and record["vision"]["name"] == str(tmp_path)
    with pytest.raises(errors.PretrainedError, match="depths"):
        smaller = dataclasses.replace(published.resnet, depths=(1, 1, 1))
        towers.load_towers(dataclasses.replace(config, resnet=smaller), vision=tmp_path)
    with pytest.raises(errors.PretrainedError, match="image_mean"):
        towers.load_towers(dataclasses.replace(config, image_mean=(0.5, 0.5, 0.5)), vision=tmp_path)


def test_clip_starts_a_network(tmp_path):
    make_clip(tmp_path, "gelu", END)
    config = clip_model(published_clip(tmp_path), scores="trained")
    params, record = towers.load_towers(config, vision=tmp_path)
    assert sorted(params) == ["image_projection", "logit_scale", "text", "text_projection", "vit"]
    _, expected = functional.abstract(build(config))
    assert {n for n in expected if n not in params} == {"score_dense_0", "score_out"}
    with pytest.raises(errors.PretrainedError, match="start.vision"):
        towers.load_towers(config, vision=tmp_path, text=tmp_path)
    with pytest.raises(errors.PretrainedError, match="model.clip.width is 7, the checkpoint has 24"):
        other = dataclasses.replace(config, clip=dataclasses.replace(config.clip, width=7))
        towers.load_towers(other, vision=tmp_path)
