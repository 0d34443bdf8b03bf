"""DINOv3 and SigLIP 2 for varying sizes, saved as the hub would, loaded here and compared with `transformers`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.models.dinov3_vit import configuration_dinov3_vit, modeling_dinov3_vit  # noqa: E402
from transformers.models.siglip2 import configuration_siglip2, modeling_siglip2  # noqa: E402

from rahf.core.errors import PretrainedError  # noqa: E402
from rahf.pretrained.positions import resize_antialiased  # noqa: E402
from rahf.pretrained.vision import load_vision, published_vision  # noqa: E402
from tests.helpers.parity import agree, compare_tower, disturb, pictures, run_tower  # noqa: E402

DINOV3 = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)
SIGLIP2 = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, patch_size=8, num_patches=16)


@pytest.mark.parametrize("size, variant", [
    (32, dict(num_register_tokens=4, key_bias=False)),
    (48, dict(num_register_tokens=1, use_gated_mlp=True, hidden_act="silu", mlp_bias=False, proj_bias=False)),
])  # fmt: skip
@pytest.mark.parametrize("prefix", ["model.layer.", "layer."])
def test_dinov3(tmp_path, monkeypatch, size, variant, prefix):
    config = configuration_dinov3_vit.DINOv3ViTConfig(**DINOV3, intermediate_size=80, **variant)
    module = disturb(modeling_dinov3_vit.DINOv3ViTModel(config))
    module.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix("model."): value for name, value in load_file(file).items()}
    names = {name: prefix + name.removeprefix("layer.") if name.startswith("layer.") else name for name in bare}
    save_file({names[name]: value for name, value in bare.items()}, file)
    published = published_vision(tmp_path)
    assert published.vit.registers == variant["num_register_tokens"] and published.vit.rope_theta == 100
    params = load_vision(tmp_path, published.vit, size)
    assert "position" not in params
    compare_tower(module, published.vit, size, params, monkeypatch)


@pytest.mark.parametrize("size", [32, 48, 24])
@pytest.mark.parametrize("complete", [False, True])
def test_siglip2_for_varying_sizes(tmp_path, monkeypatch, size, complete):
    tower = dict(SIGLIP2, intermediate_size=80)
    if complete:
        text = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=80, vocab_size=99)
        config = configuration_siglip2.Siglip2Config(vision_config=tower, text_config=text)
        saved = disturb(modeling_siglip2.Siglip2Model(config))
        module = saved.vision_model
    else:
        saved = module = disturb(
            modeling_siglip2.Siglip2VisionModel(configuration_siglip2.Siglip2VisionConfig(**tower))
        )
    saved.save_pretrained(tmp_path)
    published = published_vision(tmp_path)
    assert published.image_size == 32 and published.linear_patches
    params = load_vision(tmp_path, published.vit, size)
    image, grid = pictures(size), size // 8
    patches = image.reshape(2, grid, 8, grid, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, grid**2, -1)
    shapes = torch.tensor([[grid, grid]] * 2)
    with torch.no_grad():
        theirs = module(torch.from_numpy(patches), torch.ones(2, grid**2, dtype=torch.long), shapes)
    agree(run_tower(published.vit, size, params, image, monkeypatch)[1], theirs.last_hidden_state)


def test_a_number_of_patches_that_is_no_square_is_refused(tmp_path):
    configuration_siglip2.Siglip2VisionConfig(**dict(SIGLIP2, num_patches=15)).save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="num_patches is 15, expected a square number"):
        published_vision(tmp_path)


@pytest.mark.parametrize("grid", [2, 3, 5, 9])
def test_antialiased_positions_are_those_of_pytorch(grid):
    position = np.random.default_rng(0).standard_normal((25, 3)).astype(np.float32)
    square = torch.from_numpy(position).reshape(1, 5, 5, 3).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(square, (grid, grid), mode="bilinear", antialias=True, align_corners=False)
    ours = resize_antialiased(position, 5, grid)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), atol=1e-5)
