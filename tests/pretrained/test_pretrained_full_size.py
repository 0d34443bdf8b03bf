"""Published networks at full size against PyTorch, once: `pytest -m slow`."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")

from transformers.models.t5 import configuration_t5, modeling_t5  # noqa: E402
from transformers.models.vit import configuration_vit, modeling_vit  # noqa: E402

from rahf.nn import functional  # noqa: E402
from rahf.pretrained.t5 import load_t5, published_t5  # noqa: E402
from rahf.pretrained.vision import load_vision, published_vision  # noqa: E402
from tests.helpers.parity import agree, compare_tower, disturb, run_t5  # noqa: E402


@pytest.mark.slow
def test_vit_large(tmp_path, monkeypatch):
    size = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    config = configuration_vit.ViTConfig(**size, image_size=384, patch_size=16)
    module = disturb(modeling_vit.ViTModel(config), matrices=0)
    module.save_pretrained(tmp_path, max_shard_size="300MB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    published = published_vision(tmp_path)
    params = load_vision(tmp_path, published.vit, 384)
    assert functional.count(params) == 303_690_752  # ViT-L/16 at 384 without pooler and classifier
    compare_tower(module, published.vit, 384, params, monkeypatch)


@pytest.mark.slow
def test_t5_base(tmp_path, monkeypatch):
    size = dict(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    config = configuration_t5.T5Config(**size, decoder_start_token_id=0)
    module = disturb(modeling_t5.T5ForConditionalGeneration(config), matrices=0)
    module.save_pretrained(tmp_path, max_shard_size="300MB")
    config = published_t5(tmp_path)
    params = load_t5(tmp_path, config)
    assert functional.count(params) == 222_903_552
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(2, 32000, (2, 37)), rng.integers(2, 32000, (2, 21))
    mask = np.arange(37) < np.array([[37], [22]])
    with torch.no_grad():
        theirs = module(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            labels=torch.from_numpy(labels),
        )
    encoded, logits, _ = jax.device_get(run_t5(config, params, ids, mask, labels, monkeypatch))
    agree(encoded[mask], theirs.encoder_last_hidden_state[torch.from_numpy(mask)])
    agree(logits, theirs.logits)
