"""`rahf select`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import add_images_from, command
from rahf.core import exit_codes, terminal

_DESCRIPTION = """\
CANDIDATES.jsonl has one JSON object per line: {"image": "a.png", "prompt": "a red cat", "group": 17}. Paths are
relative to the file's folder. Candidates without a group are grouped by their prompt. Other fields are kept; if they
have names that the manifest adds (scores, model, rank, …), the added ones begin with rahf_.

Candidates are chosen in this order: constraints (--require), best of each group, --min-gap, then --threshold or
--quantile. Of equal scores the earlier line wins. For a generator that the model was not trained on, scores may be
shifted as a whole: prefer --quantile, which ranks, to --threshold.

The manifest has every candidate with its scores and the reason why it was chosen or not. Scores are kept in
MANIFEST.scores: an interrupted call resumes there, and another choice does not score again.

Example: keep the best of each prompt, if it is clearly better than the second and fits its prompt
  rahf select runs/demo candidates.jsonl --out manifest.jsonl --require "alignment>=0.6" --min-gap 0.02"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(commands, "select", run, "choose the best of many candidates, with reasons", _DESCRIPTION)
    parser.add_argument(
        "model", help="run directory, checkpoint directory, exported file, name of a shipped model, or hub id"
    )
    parser.add_argument("candidates", metavar="CANDIDATES.jsonl", help="images, prompts and groups")
    parser.add_argument("--out", required=True, metavar="MANIFEST.jsonl", help="all candidates, scores and reasons")
    parser.add_argument("--chosen", default=None, metavar="FILE.jsonl", help="also write the chosen lines, unchanged")
    parser.add_argument("--by", default="plausibility", metavar="SCORE", help="score that decides")
    parser.add_argument(
        "--all", action="store_true", help="keep all candidates that pass, not only the best of each group"
    )
    parser.add_argument("--min-gap", type=float, default=None, help="of the best to the second of its group")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--threshold", type=float, default=None, help="keep candidates with at least this score")
    cut.add_argument("--quantile", type=float, default=None, help="keep the upper part of the rest: 0.75 keeps 1/4")
    parser.add_argument(
        "--require", action="append", default=[], metavar="CONSTRAINT", help='such as "alignment>=0.6"; may be repeated'
    )
    add_images_from(parser)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures per step of the network")
    parser.add_argument("--restart", action="store_true", help="score again, for instance after pictures changed")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.steer import best_of_n_files

    options = best_of_n_files.SelectionOptions(
        args.by, args.threshold, args.quantile, not args.all, args.min_gap, tuple(args.require)
    )
    kept = best_of_n_files.select_files(
        args.model,
        args.candidates,
        args.out,
        options,
        chosen=args.chosen,
        batch_size=args.batch_size,
        restart=args.restart,
        progress=True,
        images_from=args.images_from,
    )
    scoring = kept.scoring
    if kept.prefix:
        note = (
            f"candidates have fields of these names already, so ours begin with {kept.prefix}: {kept.prefix}scores, …"
        )
        terminal.say(note, stderr=True)
    if scoring.refused:
        terminal.say(f"{scoring.refused} of {scoring.rows} candidates refused; why: {kept.refused}", stderr=True)
    if scoring.prompts_cut:
        terminal.say(f"of {scoring.prompts_cut} the model did not read the whole prompt (prompt_cut)", stderr=True)
    limit = "" if kept.threshold is None else f", {args.by} at least {kept.threshold:.4f}"
    terminal.say(
        f"{kept.selected} of {kept.candidates} candidates chosen from {kept.groups} groups{limit}: {kept.manifest}"
    )
    return exit_codes.of_counts(kept.candidates, scoring.refused)
