"""The demo's critic, fine-tuned on the rehearsal set: other pictures, four times as many pixels, its own vocabulary.

Command:   rahf prepare richhf18k --labels REHEARSAL --images REHEARSAL/pickapic --out data/rehearsal
           rahf train configs/critic/rehearsal_finetune.py         # starts from runs/demo, which `rahf demo` makes
           rahf evaluate runs/rehearsal_finetune
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

import dataclasses
import pathlib

from rahf import config as config_lib


def config() -> config_lib.Config:
    """What the demo has learnt of damage and of shapes is kept; words are new, so what reads and writes them is too."""
    here = pathlib.Path(__file__)
    demo, scratch = (config_lib.load(str(here.with_name(name))) for name in ("demo.py", "rehearsal.py"))
    t5 = dataclasses.replace(demo.model.t5, vocab_size=scratch.model.t5.vocab_size)
    return dataclasses.replace(
        demo,
        workdir="runs/rehearsal_finetune",
        start=config_lib.StartConfig(model="runs/demo", fresh=("embedding", "decoder", "tags")),
        data=scratch.data,
        model=dataclasses.replace(demo.model, image_size=128, t5=t5),
        loss=dataclasses.replace(scratch.loss, keyword_warmup_steps=200, tag_weight=20.0),
        optimizer=config_lib.OptimizerConfig(
            learning_rate=5e-4, schedule="cosine", warmup_steps=50, b2=0.98, weight_decay=0.05, ema_decay=0.99
        ),
        train=dataclasses.replace(scratch.train, steps=800, eval_every=400, checkpoint_every=400),
    )
