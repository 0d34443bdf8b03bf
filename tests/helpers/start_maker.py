"""Published towers of next to no size, a config that starts from them, and a dataset's vocabulary beside the T5."""

import pathlib
import shutil

from rahf.text import load_tokenizer
from tests.helpers import pretrained_maker as maker

CARD = "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- vision\n---\n# Tower\nlicense: not this line\n"

#: The sizes of `pretrained_maker`'s towers, at 48 pixels instead of 32.
CONFIG = """
from rahf.config import *

def config():
    return Config(
        workdir="runs/started",
        data=DataConfig(
            path={data!r}, batch_size=8, eval_batch_size=8, tokenizer="start",
            max_prompt_tokens=24, max_target_tokens=28, max_words=20, augment=None,
        ),
        model=CriticConfig(
            image_size=48,
            vit=ViTConfig(patch_size=8, width=16, depth=2, heads=2, mlp_width=24, layer_norm_eps=1e-12),
            t5=T5Config(
                vocab_size={rows}, width=16, head_width=4, heads=2, mlp_width=24,
                encoder_layers=2, decoder_layers=2, ff="relu", tie_embeddings=True,
            ),
            heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=(8,)),
            score_head=ScoreHeadConfig(conv_widths=(), pool=2, dense_widths=(8,)),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant"),
        start=StartConfig(vision={vision!r}, text={text!r}),
        train=TrainConfig(
            steps=1, log_every=1, eval_every=0, eval_examples=8, checkpoint_every=1,
            best_metric="loss/total", best_mode="min",
        ),
    )
"""


def towers(folder: pathlib.Path, data: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, int]:
    """Saves a ViT with a model card and a T5 with a vocabulary; returns their folders and the T5's rows."""
    rows = load_tokenizer(data / "tokenizer.model").vocab_size
    vision = maker.save(folder / "vit", maker.VIT, maker.vit_state())
    (vision / "README.md").write_text(CARD)
    state = maker.t5_state() | {"shared.weight": maker.draw({"x": (rows, 16)}, seed=3)["x"]}
    text = maker.save(folder / "t5", maker.T5 | {"vocab_size": rows}, state, parts=2)
    shutil.copy(data / "tokenizer.model", text / "spiece.model")
    return vision, text, rows
