"""A short run of everything that rests on other packages: `.ci/versions` starts it in an environment of its own.

Usage: python smoke.py [DATA [--only-read]], where DATA is a folder with what version 0 wrote (`golden/v0`); without it
that part is left out. Works in the current folder, which should be empty. The last line is "smoke run: …".
"""

import importlib
import json
import pathlib
import pkgutil
import sys

import numpy as np

#: Options of a network that trains in seconds.
TINY = (
    "--data.path data --data.batch-size 8 --data.eval-batch-size 8 --model.image-size 32 --model.vit.width 32 "
    "--model.vit.heads 2 --model.vit.mlp-width 64 --model.vit.stem 8 16 --model.vit.patch-size 8 --model.vit.depth 1 "
    "--model.t5.width 32 --model.t5.head-width 16 --model.t5.heads 2 --model.t5.mlp-width 64 "
    "--model.t5.encoder-layers 1 --model.t5.decoder-layers 1 --model.heatmap-head.conv-widths 16 "
    "--model.heatmap-head.up-widths 8 --model.score-head.conv-widths 16 --model.score-head.dense-widths 16 "
    "--optimizer.ema-decay 0.9 --train.log-every 1 --train.eval-every 0 "
    "--train.checkpoint-every 1"
).split()
PROMPT = "a red star left of two blue rings"


def import_all() -> tuple[int, list[str]]:
    """Imports every module of ours; the number of modules, and the packages that say which extra they lack."""
    import data_pipelines
    import rahf
    from rahf.core.errors import ExtraMissing

    names = [
        module.name
        for package in (rahf, data_pipelines)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.startswith("rahf.configs") and not module.name.endswith("__main__")
    ]
    lacking = []
    for name in names:
        try:
            importlib.import_module(name)
        except ExtraMissing:
            lacking.append(name)
    return len(names) - len(lacking), lacking


def rahf_command(*arguments: str) -> None:
    """Runs a command line; its exit code must be 0."""
    from rahf.cli import main as cli

    code = cli.main(list(arguments))
    assert code == 0, f"rahf {' '.join(arguments)}: exit code {code}"


def read_version_0(golden: pathlib.Path) -> None:
    """The exported file of version 0 gives the numbers of version 0."""
    import rahf

    prompts = json.loads((golden / "pictures" / "prompts.json").read_text())
    pictures = [golden / "pictures" / f"{i}.png" for i in range(len(prompts))]
    prediction = rahf.load(golden / "demo.rahf")(pictures, prompts)
    with np.load(golden / "predictions.npz") as expected:
        for name, array in zip(("heatmaps", "scores", "words"), prediction):
            # Other versions of XLA round otherwise.
            np.testing.assert_allclose(array, expected[f"export/{name}"], rtol=0, atol=1e-4, err_msg=name)


def train_and_read() -> None:
    """Draws scenes, trains two steps, goes on for a third, evaluates, exports, and reads run and export."""
    import rahf

    rahf_command(*"prepare synthetic --out data --train 16 --dev 8 --test 8 --size 64 --workers 1".split())
    for steps in ("2", "3"):
        rahf_command("train", "configs/critic/demo.py", "--workdir", "run", *TINY, "--train.steps", steps)
    rahf_command("evaluate", "run", "--examples", "2", "--no-generate")
    rahf_command("export", "run", "tiny.rahf", "--scores-only")
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    run, exported = (np.asarray(rahf.load(path)(picture, PROMPT).scores) for path in ("run", "tiny.rahf"))
    np.testing.assert_allclose(exported, run, rtol=0, atol=1e-5)


def main() -> None:
    if "--only-read" in sys.argv:
        read_version_0(pathlib.Path(sys.argv[1]))
        print("smoke run: read what version 0 wrote", flush=True)
        return
    modules, lacking = import_all()
    rahf_command("doctor")
    golden = pathlib.Path(sys.argv[1]) if sys.argv[1:] else None
    if golden is not None:
        read_version_0(golden)
    train_and_read()
    read = "read what version 0 wrote" if golden else "had nothing of version 0 to read"
    without = f" but {', '.join(lacking)}" if lacking else ""
    print(f"smoke run: imported {modules} modules{without}, {read}, trained, evaluated, exported and read", flush=True)


if __name__ == "__main__":
    main()
