"""HPS v2: OpenCLIP's layout read strictly, and the numbers of a PyTorch module that is written from it."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs PyTorch: pip install rahf[torch]")

import rahf  # noqa: E402
from rahf.cli import main as cli  # noqa: E402
from rahf.config import from_json  # noqa: E402
from rahf.core.batch import SCORES  # noqa: E402
from rahf.core.errors import PretrainedError  # noqa: E402
from rahf.critic.published import baselines  # noqa: E402
from rahf.pretrained import open_clip  # noqa: E402
from rahf.pretrained.files import StoredTensor  # noqa: E402
from tests.helpers.baseline_maker import save_vocabulary  # noqa: E402
from tests.helpers.parity import agree, disturb  # noqa: E402

SIDE, PATCH, WIDTH, TEXT, JOINT, POSITIONS = 16, 8, 32, 64, 12, 10


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = torch.nn.ModuleDict(
            {"c_fc": torch.nn.Linear(width, 2 * width), "c_proj": torch.nn.Linear(2 * width, width)}
        )

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](torch.nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


def blocks(width, heads):
    return torch.nn.ModuleDict({"resblocks": torch.nn.ModuleList([Block(width, heads) for _ in range(2)])})


class OpenClip(torch.nn.Module):
    """The layout with two blocks a tower: parameters that stand alone are parameters of the module itself."""

    def __init__(self, vocab_size):
        super().__init__()
        free = lambda *shape: torch.nn.Parameter(0.3 * torch.randn(shape))
        self.visual = torch.nn.Module()
        self.visual.class_embedding = free(WIDTH)
        self.visual.positional_embedding = free((SIDE // PATCH) ** 2 + 1, WIDTH)
        self.visual.proj = free(WIDTH, JOINT)
        self.visual.conv1 = torch.nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.visual.ln_pre, self.visual.ln_post = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.visual.transformer = blocks(WIDTH, 4)
        self.positional_embedding, self.text_projection = free(POSITIONS, TEXT), free(TEXT, JOINT)
        self.logit_scale = free()
        self.token_embedding = torch.nn.Embedding(vocab_size, TEXT)
        self.transformer, self.ln_final = blocks(TEXT, 1), torch.nn.LayerNorm(TEXT)

    def encode_image(self, pixels):
        x = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.visual.class_embedding.expand(len(x), 1, -1), x], 1) + self.visual.positional_embedding
        x = self.visual.ln_pre(x)
        for block in self.visual.transformer["resblocks"]:
            x = block(x)
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((POSITIONS, POSITIONS), -torch.inf).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        return self.ln_final(x)[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with the file of version 2.1, as training has saved it, and the vocabulary; and the module."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    module = disturb(OpenClip(save_vocabulary(folder / "words")))
    state = {"state_dict": module.state_dict(), "epoch": 3, "name": "hps"}
    torch.save(state, folder / "HPS_v2.1_compressed.pt")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder, module


def test_import_and_parity(published, tmp_path, capsys):
    folder, module = published
    out = tmp_path / "hpsv2"
    arguments = ["import", "hpsv2", str(folder), str(out), "--tokenizer", str(folder / "words"), "--vit-heads", "4"]
    assert cli.main(arguments) == 0
    record = json.loads((out / "model.json").read_text())
    assert record["format"] == "hpsv2" and record["license"] == "apache-2.0"
    assert list(record["sha256"]) == ["HPS_v2.1_compressed.pt"]
    assert record["parameters"] == sum(p.numel() for p in module.parameters()) + WIDTH  # our patches have a bias
    model = from_json((out / "config.json").read_text()).model
    assert model.clip.cosine_scores == SCORES and (model.vit.depth, model.clip.text.depth) == (2, 2)
    critic, prompts = rahf.load(out), ["two red stars", "a blue ring"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    mean, std = torch.tensor(model.image_mean), torch.tensor(model.image_std)
    normalised = (torch.from_numpy(pixels / np.float32(255)) - mean) / std
    image = torch.nn.functional.normalize(module.encode_image(normalised.permute(0, 3, 1, 2)), dim=-1)
    ids = torch.from_numpy(np.asarray(critic.tokens(prompts)[0])).long()
    text = torch.nn.functional.normalize(module.encode_text(ids), dim=-1)
    scores = np.asarray(critic.scores(pixels, critic.tokens(prompts)))
    agree(scores, ((1 + (image * text).sum(-1)) / 2)[:, None].repeat(1, 4))
    assert np.ptp(scores[:, 0]) > 1e-3


def test_sizes_of_the_published_model():
    """ViT-H/14 by its shapes: 224 pixels, 32 and 24 layers, 16 heads of 80 and of 64 channels."""
    shape = lambda *sizes: StoredTensor(sizes, "F16", "x", lambda: np.zeros(sizes))
    tensors = {
        "visual.conv1.weight": shape(1280, 3, 14, 14),
        "visual.positional_embedding": shape(257, 1280),
        "visual.proj": shape(1280, 1024),
        "token_embedding.weight": shape(49408, 1024),
        "positional_embedding": shape(77, 1024),
    }
    for tower, depth, width in (("visual.", 32, 1280), ("", 24, 1024)):
        for number in range(depth):
            tensors[f"{tower}transformer.resblocks.{number}.ln_1.weight"] = shape(width)
        tensors[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"] = shape(4 * width, width)
    sizes = open_clip._published(tensors, "x", None)
    vit, text = sizes.vision.vit, sizes.text
    assert (vit.width, vit.depth, vit.heads, vit.mlp_width, vit.patch_size) == (1280, 32, 16, 5120, 14)
    assert (text.width, text.depth, text.heads, text.mlp_width, text.eos_token_id) == (1024, 24, 16, 4096, 49407)
    assert sizes.vision.image_size == 224 and sizes.width == 1024 and vit.activation == text.activation == "gelu"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"visual.proj": None}, "visual.proj missing"),
        ({"ln_final.bias": None}, "ln_final.bias: missing"),
        ({"visual.transformer.resblocks.1.attn.in_proj_bias": torch.zeros(90)}, r"in_proj_query.bias: shape \(30,\)"),
        ({"visual.ln_pre.weight": torch.full((WIDTH,), torch.nan)}, "visual.ln_pre.weight: 32 of 32 values are NaN"),
        ({"extra": torch.zeros(2)}, "extra: not part of this network"),
        ({"visual.positional_embedding": torch.zeros(4, WIDTH)}, "has 4 rows, expected a square and 1"),
    ],
)
def test_what_does_not_fit_is_named(published, changed, message, tmp_path):
    folder, module = published
    state = module.state_dict() | changed
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "weights.pt")
    with pytest.raises(PretrainedError, match=message):
        baselines.import_hpsv2(tmp_path / "weights.pt", tmp_path / "out", tokenizer=folder / "words", vit_heads=4)
    assert not (tmp_path / "out" / "config.json").exists()


def test_places(published, tmp_path):
    folder, _ = published
    with pytest.raises(PretrainedError, match="no file HPS_v2_compressed.pt"):
        baselines.import_hpsv2(folder, tmp_path / "out", version="2.0")
    with pytest.raises(PretrainedError, match="expected one of 2.0, 2.1"):
        baselines.import_hpsv2(folder, tmp_path / "out", version="3")
    with pytest.raises(PretrainedError, match="5 heads do not divide"):
        baselines.import_hpsv2(folder, tmp_path / "out", vit_heads=5)


def test_code_in_the_file_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"state_dict": {"logit_scale": Harmful()}}, tmp_path / "weights.pt")
    with pytest.raises(PretrainedError, match="refused by the weights-only reader"):
        baselines.import_hpsv2(tmp_path / "weights.pt", tmp_path / "out")
    assert not (tmp_path / "harm").exists()
