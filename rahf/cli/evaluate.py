"""`rahf evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from rahf.cli.parsing import command


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands,
        "evaluate",
        run,
        "measure a model on a split, with intervals, baseline and an HTML report",
    )
    parser.add_argument("model", help="run directory, checkpoint directory, exported file or hub id")
    parser.add_argument(
        "--data",
        default=None,
        nargs="+",
        metavar="DIR",
        help="prepared datasets, each for itself (default: those that it was trained on)",
    )
    parser.add_argument("--split", default="test", help="split to evaluate")
    parser.add_argument(
        "--report", default=None, metavar="DIR", help="where the report goes (default: RUN/report/SPLIT)"
    )
    parser.add_argument(
        "--json", default=None, metavar="FILE", help="metrics as JSON (default: metrics.json in the report)"
    )
    parser.add_argument("--limit", type=int, default=None, help="evaluate only this many examples, the first ones")
    parser.add_argument("--batch-size", type=int, default=None, help="default: as in the config")
    parser.add_argument("--no-generate", action="store_true", help="keywords by constrained scoring only")
    parser.add_argument("--examples", type=int, default=60, help="examples in the report's gallery")
    saliency = parser.add_argument_group("saliency models (of Augsal: its saliency readout)")
    saliency.add_argument("--center-bias", default="learned", help="learned, or none: leave it out")
    saliency.add_argument(
        "--adapt", type=int, default=0, metavar="N", help="fit centre bias, scale and blur to N training pictures first"
    )
    saliency.add_argument("--viewers", action="store_true", help="also measure one viewer against the rest (slow)")
    saliency.add_argument("--emd", action="store_true", help="also the earth mover's distance (slow)")
    motion = parser.add_argument_group("motion models, and renderers of motion (--features only)")
    motion.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="a motion of each photograph")
    motion.add_argument("--steps", type=int, default=50, metavar="N", help="of DDIM")
    motion.add_argument("--guidance-scale", type=float, default=1.75, metavar="X", help="towards the photograph")
    motion.add_argument(
        "--loop-scales",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="X",
        help="self-guidance towards a loop: a row each",
    )
    motion.add_argument(
        "--features",
        default="lite",
        metavar="MODEL",
        help="network of the Fréchet distance, and of the renderer's difference of features: lite, or a VGG; none",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.training import distributed

    with distributed.joined():
        from rahf import registry

        family = registry.family_name(args.model)
        common: dict[str, Any] = dict(
            data=args.data, split=args.split, report=args.report, json_file=args.json, limit=args.limit
        )
        features = None if args.features == "none" else args.features
        if family == "motion":
            from rahf.motion import evaluate

            drawing = evaluate.Drawing(args.seeds, args.steps, args.guidance_scale, args.loop_scales)
            evaluate.evaluate(args.model, **common, drawing=drawing, features=features)
        elif family == "motion-renderer":
            from rahf.motion import evaluate_renderer

            evaluate_renderer.evaluate(args.model, **common, features=features)
        elif family in ("saliency", "augsal"):
            from rahf.saliency import report

            report.evaluate(
                args.model,
                **common,
                batch_size=args.batch_size,
                center_bias=args.center_bias,
                viewers=args.viewers,
                emd=args.emd,
                adapt=args.adapt,
            )
        else:
            from rahf.critic.evaluation import run as evaluation_report

            evaluation_report.run(
                args.model,
                **common,
                batch_size=args.batch_size,
                generate=not args.no_generate,
                examples=args.examples,
            )
    return 0
