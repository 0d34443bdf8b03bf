"""The `rahf` command: parses, calls, prints. No logic; nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Callable, Sequence

_DESCRIPTION = """\
Rich feedback on generated images: where a picture is implausible or misses its prompt, which words it
misses, and how good it is.

  rahf demo                                            everything below on synthetic scenes, in a quarter of an hour
  rahf prepare synthetic --out data/demo               make data
  rahf train configs/demo.py                           train; Ctrl-C saves, the same command resumes
  rahf evaluate runs/demo --data data/demo             metrics, intervals, HTML report
  rahf predict runs/demo IMAGE... --prompt "a red cat" overlays, JSON, summary
"""

#: Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 128 + n stopped by signal n.
FAILED = 1


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps examples as written and shows defaults."""


def _parser() -> argparse.ArgumentParser:
    import rahf

    parser = argparse.ArgumentParser("rahf", description=_DESCRIPTION, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"rahf {rahf.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_prepare(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_import(commands)
    return parser


def _command(commands, name: str, run: Callable, summary: str, description: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n{description}", formatter_class=_Formatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_demo(commands) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "prepare, train, evaluate and predict on synthetic scenes",
        "Scenes that are there are not drawn again, and training goes on where it was.",
    )
    parser.add_argument("--workdir", default="runs/demo", help="run directory")
    parser.add_argument("--data", default="data/demo", help="where the synthetic scenes go")
    parser.add_argument("--config", default="configs/demo.py", help="config file")
    parser.add_argument("--train-scenes", type=int, default=None, help="number of training scenes (default: as the config needs)")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: as in the config)")


def _add_prepare(commands) -> None:
    group = commands.add_parser("prepare", help="make a dataset from labels and images", formatter_class=_Formatter)
    kinds = group.add_subparsers(title="kinds of data", metavar="KIND", required=True)
    parser = _command(
        kinds,
        "synthetic",
        _prepare_synthetic,
        "draw scenes with planted faults, rated by three simulated annotators",
        "Every label follows exactly from the seed. Example: rahf prepare synthetic --out data/demo --train 20000",
    )
    parser.add_argument("--out", required=True, help="directory to make")
    for split, count in (("train", 20_000), ("dev", 256), ("test", 256)):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"number of {split} scenes")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser = _command(
        kinds,
        "richhf18k",
        _prepare_richhf18k,
        "join RichHF-18K's labels with the Pick-a-Pic pictures",
        "Labels: the folder of train.tfrecord, dev.tfrecord, test.tfrecord (google-research/richhf_18k).\n"
        "Pictures: Pick-a-Pic parquet shards, folders of shards, or folders of <uid>.jpg/png/webp with\n"
        "captions.jsonl, .csv or .tsv. An interrupted call goes on where it was.",
    )
    parser.add_argument("--labels", required=True, help="folder of the TFRecord files")
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="parquet shards or folders")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--captions", default=None, help="file of prompts by uid, for folders of images")
    parser.add_argument("--tokenizer", default=None, help="SentencePiece model to put beside the data (default: learn one)")


def _add_train(commands) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train the model of a config file, or resume",
        "Any field of the config is an option: --train.steps 10 --optimizer.learning-rate 1e-3 --data.path DIR.\n"
        "Give a config and --help to see them all: rahf train configs/demo.py --help",
    )
    parser.add_argument("config", help="a Python file, or the name of one that comes with rahf")
    parser.add_argument("fields", nargs=argparse.REMAINDER, help="config fields to override")


def _add_evaluate(commands) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "measure a model on a split, with intervals, baseline and an HTML report",
    )
    parser.add_argument("model", help="run directory or checkpoint directory")
    parser.add_argument("--data", default=None, help="prepared dataset (default: the one it was trained on)")
    parser.add_argument("--split", default="test", help="split to evaluate")
    parser.add_argument("--report", default=None, metavar="DIR", help="where the report goes (default: RUN/report/SPLIT)")
    parser.add_argument("--json", default=None, metavar="FILE", help="metrics as JSON (default: metrics.json in the report)")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many examples")
    parser.add_argument("--batch-size", type=int, default=None, help="default: as in the config")
    parser.add_argument("--no-generate", action="store_true", help="keywords by constrained scoring only")
    parser.add_argument("--examples", type=int, default=60, help="examples in the report's gallery")


def _add_predict(commands) -> None:
    parser = _command(
        commands,
        "predict",
        _predict,
        "give feedback on pictures: overlays, JSON, summary",
        'Example: rahf predict runs/demo picture.png --prompt "two red stars above a blue ring"',
    )
    parser.add_argument("model", help="run directory or checkpoint directory")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, WebP, … of any size")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", default=None, help="the prompt of all pictures (default: IMAGE's .txt file beside it)")
    given.add_argument("--prompts", default=None, metavar="FILE", help="text file with one prompt per line, as many as pictures")
    parser.add_argument("--out", default="predictions", metavar="DIR", help="where overlays go")
    parser.add_argument("--json", default=None, metavar="FILE", help="results as JSON (default: predictions.json in --out)")
    parser.add_argument("--generate", action="store_true", help="find keywords by generation, not constrained scoring")


def _add_import(commands) -> None:
    group = commands.add_parser("import", help="turn a published model into a model directory", formatter_class=_Formatter)
    kinds = group.add_subparsers(title="kinds of models", metavar="KIND", required=True)
    parser = _command(
        kinds,
        "richhf-torch",
        _import_richhf_torch,
        "the public PyTorch checkpoint of multi-head RichHF",
        "Needs PyTorch (pip install rahf[torch]), which reads the weights without running what is pickled there.",
    )
    parser.add_argument("file", metavar="FILE.pt", help="the published checkpoint")
    parser.add_argument("out", metavar="OUT", help="directory to make; evaluate and predict accept it")
    parser.add_argument("--license", default="unknown", help="of the weights, as you were told; kept in model.json")
    parser.add_argument("--tokenizer", default="google-t5/t5-base", help="SentencePiece file, T5 folder or hub id")


def _demo(args: argparse.Namespace) -> int:
    from rahf import demo

    return demo.run(args.workdir, args.data, args.config, args.train_scenes, args.steps)


def _prepare_synthetic(args: argparse.Namespace) -> int:
    from data_pipelines.synthetic import prepare

    counts = prepare.prepare(
        args.out, args.train, args.dev, args.test, args.seed, args.size, args.workers if args.workers > 1 else 0
    )
    print(f"{args.out}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    return 0


def _prepare_richhf18k(args: argparse.Namespace) -> int:
    from data_pipelines.richhf18k import prepare

    prepare.prepare(args.labels, args.images, args.out, captions=args.captions, tokenizer=args.tokenizer)
    return 0


def _train(args: argparse.Namespace) -> int:
    from rahf import overrides

    config = overrides.parse(args.config, args.fields)
    from rahf.train import loop  # JAX only now, so that a wrong command fails fast

    finished = loop.train(config)
    return 0 if finished.interrupted_by is None else 128 + finished.interrupted_by


def _evaluate(args: argparse.Namespace) -> int:
    from rahf import evaluation_report

    evaluation_report.run(
        args.model,
        data=args.data,
        split=args.split,
        report=args.report,
        json_file=args.json,
        limit=args.limit,
        batch_size=args.batch_size,
        generate=not args.no_generate,
        examples=args.examples,
    )
    return 0


def _predict(args: argparse.Namespace) -> int:
    from rahf import predict

    return predict.predict(
        args.model,
        args.images,
        args.prompt,
        out=args.out,
        json_file=args.json,
        generate=args.generate,
        prompts_file=args.prompts,
    )


def _import_richhf_torch(args: argparse.Namespace) -> int:
    from rahf.pretrained import richhf_torch

    made = richhf_torch.import_checkpoint(args.file, args.out, license=args.license, tokenizer=args.tokenizer)
    print(f"model directory {made}: try rahf predict {made} IMAGE --prompt TEXT")
    return 0


def _expected() -> tuple[type[BaseException], ...]:
    """Errors whose message is all that a user needs. Everything else is a bug and keeps its traceback."""
    found: list[type[BaseException]] = [OSError]
    for module, names in (
        ("rahf.config", ("ConfigError",)),
        ("rahf.images", ("ImageError",)),
        ("rahf.train.checkpoint", ("CheckpointError",)),
        ("rahf.train.loop", ("TrainError",)),
        ("rahf.pretrained.source", ("PretrainedError",)),
        ("data_pipelines.store", ("DatasetError",)),
        ("data_pipelines.examples", ("DataError",)),
    ):
        loaded = sys.modules.get(module)  # an error of a module that was never loaded cannot have been raised
        found += [getattr(loaded, n) for n in names if hasattr(loaded, n)]
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (None: this program's own) and returns its exit code."""
    if arguments is None:
        _restart_with_huge_pages()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as in `rahf … | head`: whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
        return 128 + signal.SIGPIPE


def _restart_with_huge_pages() -> None:
    """Lets glibc ask for huge pages, which it reads only when a program starts.

    On a CPU, XLA allocates a step's buffers anew each time. With small pages their page faults took 0.10 of the
    0.35 CPU seconds of a demo step (2 cores, 2026-11-20), with huge pages 0.03. A process id stays what it was.
    """
    heavy = sys.argv[1:2] in (["demo"], ["train"], ["evaluate"])
    if heavy and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _run(arguments: Sequence[str] | None) -> int:
    args = _parser().parse_args(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("RAHF_TRACEBACK") or not isinstance(error, (*_expected(), ValueError)):
            raise
        print(f"rahf: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
