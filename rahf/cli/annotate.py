"""`rahf annotate`: the page on which people give feedback, and what is done with it."""

from __future__ import annotations

import argparse
import itertools
import time

from rahf.cli.parsing import Formatter, command
from rahf.core import exit_codes, terminal

_SAID_EVERY = 10.0  # seconds between lines about the progress of a critic


def add(commands) -> None:
    """Adds the command, its options and its sub-commands."""
    parser = command(
        commands,
        "annotate",
        serve,
        "let people mark pictures in the browser, and make a feedback file of it",
        "  rahf annotate --images pictures --prompts prompts.jsonl --db feedback.sqlite\n"
        "prints the address, and the first time a link for the administrator, who adds people. It needs nothing but\n"
        "this machine. `rahf annotate export` writes the file that `rahf prepare feedback` reads. docs/annotate.md\n"
        "describes the page, the rules and the security. Needs: pip install rahf[annotate]",
    )
    _add_database(parser, required=False)
    parser.add_argument("--images", default=None, metavar="DIR", help="folder of pictures; the first time")
    parser.add_argument(
        "--prompts",
        default=None,
        metavar="FILE",
        help="feedback or captions file with the prompts (default: captions in the folder, or a.txt beside a.png)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8600, help="0 takes a free one")
    parser.add_argument(
        "--host-name", action="append", default=[], metavar="NAME", help="name by which browsers call this server"
    )
    parser.add_argument("--tls-certificate", default=None, metavar="FILE")
    parser.add_argument("--tls-key", default=None, metavar="FILE")
    parser.add_argument(
        "--model",
        default=None,
        metavar="MODEL",
        help="critic whose marks a person is shown after their own: run directory, exported file, or name as in rahf "
        "predict",
    )
    parser.add_argument(
        "--premark-threshold", type=float, default=0.5, metavar="P", help="of --model: from this value of a heatmap on"
    )
    parser.add_argument(
        "--order",
        default=None,
        choices=("random", "uncertainty"),
        help="pictures of which --model is least sure first (default: random)",
    )
    parser.add_argument("--title", default=None, help="shown on the page (default: Rich feedback)")
    for name, kind, text in (
        ("people-per-picture", int, "number of different people who answer each picture (default: 3)"),
        ("lease-seconds", float, "after that a picture not answered goes to somebody else (default: 3600)"),
        ("ahead", int, "pictures that a person holds at once, for work without a network (default: 4)"),
        ("gold-every", int, "a hidden gold picture after so many others; 0: never (default: 10)"),
        ("training", int, "training pictures that a person does first, if there are any (default: 3)"),
        ("most-pictures", int, "a person is finished after so many; 0: no limit (default: 0)"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=None, metavar="N", help=text)
    actions = parser.add_subparsers(title="instead of serving", metavar="ACTION", required=False)
    _add_people(actions)
    _add_gold(actions)
    _add_agreement(actions)
    _add_export(actions)
    parser = _action(actions, "import", import_answers, "add answers of a feedback file to pictures that are there")
    parser.add_argument("--annotations", required=True, metavar="FILE", help="feedback file, such as an export")
    parser = actions.add_parser(
        "from-label-studio",
        help="turn an export of Label Studio into a feedback file",
        description="Turn an export of Label Studio (“JSON”) into a feedback file. Nothing is fetched.",
        formatter_class=Formatter,
    )
    parser.set_defaults(run=from_label_studio)
    parser.add_argument("--tasks", required=True, metavar="FILE", help="JSON")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder in which the pictures are")
    parser.add_argument("--out", required=True, metavar="FILE", help="feedback file to write")


def _add_database(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--db", required=required, metavar="FILE", help="SQLite file, or postgresql://USER:PASSWORD@HOST/NAME"
    )


def _action(actions, name: str, run, text: str, description: str = "") -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=description or text, formatter_class=Formatter)
    parser.set_defaults(run=run)
    _add_database(parser)
    return parser


def _add_people(actions) -> None:
    parser = _action(actions, "people", people, "list people, add some, or keep one out")
    parser.add_argument("--add", action="append", default=[], metavar="LABEL", help="a person; prints the link")
    parser.add_argument("--role", default="annotator", choices=("annotator", "administrator"), help="of --add")
    parser.add_argument("--renew", default=None, metavar="PSEUDONYM", help="a new link; the old one ends")
    parser.add_argument("--deactivate", default=None, metavar="PSEUDONYM", help="keep out; the answers stay")
    parser.add_argument(
        "--study", type=int, default=None, metavar="N", help="a link by which N people of a platform can join"
    )


def _add_gold(actions) -> None:
    parser = _action(actions, "gold", gold, "add pictures with their right answers")
    parser.add_argument("--answers", required=True, metavar="FILE", help="feedback file, one annotator in each line")
    parser.add_argument(
        "--training", action="store_true", help="people do them first and are told (default: hidden among the others)"
    )


def _add_agreement(actions) -> None:
    parser = _action(actions, "agreement", agreement, "how far people agree, by score, by words, by marks, by person")
    parser.add_argument("--json", default=None, metavar="FILE", help="also write the numbers as JSON")


def _add_export(actions) -> None:
    parser = _action(actions, "export", export, "write the finished answers to a file")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument(
        "--format",
        default="feedback",
        choices=("feedback", "label-studio", "coco"),
        help="feedback file, Label Studio's tasks (with the project's configuration beside them), or COCO of the marks",
    )
    parser.add_argument("--prefix", default="", help="before the paths of pictures in Label Studio's tasks")
    parser.add_argument(
        "--marks", default=None, choices=("implausibility", "misalignment"), help="of COCO, one kind (default: both)"
    )
    parser.add_argument(
        "--adjudicated", action="store_true", help="where an administrator has decided, only that decision"
    )


def serve(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.core.errors import AnnotateError

    if args.db is None:
        raise AnnotateError("give the database: --db feedback.sqlite")
    if (args.tls_certificate is None) != (args.tls_key is None):
        raise AnnotateError("--tls-certificate and --tls-key belong together")
    from rahf.annotate import importing, premarks
    from rahf.annotate import serve as serving
    from rahf.annotate.database import open_database

    if args.images is not None:
        importing.check_sources(args.images, args.prompts)
    database = open_database(args.db, create=args.images is not None)
    rules = ("people_per_picture", "lease_seconds", "ahead", "gold_every", "training", "most_pictures", "title")
    changes = {name: getattr(args, name) for name in rules if getattr(args, name) is not None}
    if changes:
        database.set_project(**changes)
    if args.images is not None:
        _print_imported(importing.import_pictures(database, args.images, args.prompts))
    if args.model is not None:
        _mark_by_critic(database, args.model, args.premark_threshold)
    if args.order is not None or (args.model is not None and database.project.order == "uncertainty"):
        premarks.set_order(database, args.order or "uncertainty")
    tls = (args.tls_certificate, args.tls_key) if args.tls_key else None
    try:
        serving.serve(database, args.host, args.port, args.host_name, tls)
    finally:
        database.close()
    return 0


def _mark_by_critic(database, model: str, threshold: float) -> None:
    from rahf.annotate import critic_marks
    from rahf.critic import loading

    said = [time.monotonic()]

    def progress(done: int, total: int) -> None:
        if time.monotonic() - said[0] >= _SAID_EVERY:
            said[0] = time.monotonic()
            terminal.say(f"{model}: {done} of {total} pictures marked", stderr=True)

    made = critic_marks.make(database, loading.load(model), threshold, progress)
    terminal.say(
        f"marks of {model}: {made.new} pictures new, {made.already} already there, {len(made.refused)} refused"
    )
    _print_refused(made.refused)


def _print_imported(imported) -> None:
    terminal.say(f"pictures: {imported.new} new, {imported.already} already there, {len(imported.refused)} refused")
    _print_refused(imported.refused)


def _print_refused(reasons: list[str]) -> None:
    for reason in reasons[:20]:
        terminal.say(f"  refused: {reason}", stderr=True)
    if len(reasons) > 20:
        terminal.say(f"  … and {len(reasons) - 20} more", stderr=True)


def people(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.annotate import people as people_lib
    from rahf.annotate import quality
    from rahf.annotate.database import open_database

    database = open_database(args.db)
    address = database.setting("address") or "SERVER/"  # of the last `rahf annotate`; it has not served yet
    for label in args.add:
        token = people_lib.add(database, label, args.role)
        page = "admin" if args.role == "administrator" else ""
        terminal.say(f"{label}: {address}{page}#token={token}")
    if args.renew is not None:
        terminal.say(f"{args.renew}: {address}#token={people_lib.renew(database, args.renew)}")
    if args.deactivate is not None:
        people_lib.deactivate(database, args.deactivate)
    if args.study is not None:
        key = people_lib.add_study(database, args.study)
        terminal.say(f"link of the study: {address}?study={key}&PROLIFIC_PID={{{{%PROLIFIC_PID%}}}}")
    if not (args.add or args.renew or args.deactivate or args.study is not None):
        for one in quality.overview(database)["people"]:
            state = "" if one["active"] else ", kept out"
            terminal.say(f"{one['pseudonym']}  {one['role']:<13} {one['answers']:>6} answers  {one['label']}{state}")
    database.close()
    return 0


def gold(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.annotate import importing
    from rahf.annotate.database import open_database

    database = open_database(args.db)
    purpose = "training" if args.training else "gold"
    importing.check_sources(database.folder, args.answers, "--answers")
    imported = importing.import_pictures(database, database.folder, args.answers, purpose)
    _print_imported(imported)
    database.close()
    return exit_codes.of_counts(imported.new + imported.already, len(imported.refused))


def agreement(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    import json

    from rahf.annotate import agreement as agreement_lib
    from rahf.annotate import quality
    from rahf.annotate.database import open_database
    from rahf.core.files import write_atomically

    database = open_database(args.db)
    tree = agreement_lib.measure(list(agreement_lib.judgements(database)))
    database.close()
    for line in quality.table(tree):
        print(line)
    if args.json is not None:
        write_atomically(args.json, json.dumps(tree, indent=2, allow_nan=False) + "\n")
    return 0


def export(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.annotate import exporting
    from rahf.annotate.database import open_database
    from rahf.core.errors import AnnotateError

    database = open_database(args.db)
    pictures_with_answers = exporting.collect(database, adjudicated=args.adjudicated)
    first = next(pictures_with_answers, None)
    if first is None:
        raise AnnotateError(f"--db {args.db}: nobody has finished a picture yet; there is nothing to export")
    pictures_with_answers = itertools.chain([first], pictures_with_answers)
    what = "answers"
    if args.format == "label-studio":
        from rahf.annotate import label_studio

        pictures, count = label_studio.write(pictures_with_answers, args.out, args.prefix)
    elif args.format == "coco":
        from rahf.annotate import coco

        pictures, count = coco.write(pictures_with_answers, args.out, (args.marks,) if args.marks else None)
        what = "marks"
    else:
        pictures, count = exporting.write_feedback(pictures_with_answers, args.out)
    database.close()
    terminal.say(f"{args.out}: {count} {what} of {pictures} pictures")
    return exit_codes.of_counts(pictures, 0)


def from_label_studio(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.annotate import label_studio

    converted = label_studio.read(args.tasks, args.images, args.out)
    terminal.say(f"{args.out}: {converted.annotations} annotations of {converted.pictures} pictures")
    for name, count in converted.unread.items():
        terminal.say(f"not read: {count} results, {name}", stderr=True)
    for reason in converted.refused[:20]:
        terminal.say(f"refused: {reason}", stderr=True)
    if len(converted.refused) > 20:
        terminal.say(f"refused: {len(converted.refused) - 20} more", stderr=True)
    return exit_codes.of_counts(converted.pictures, len(converted.refused))


def import_answers(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.annotate import import_answers as import_lib
    from rahf.annotate.database import open_database

    database = open_database(args.db)
    imported = import_lib.import_answers(database, args.annotations)
    database.close()
    terminal.say(f"answers: {imported.new} new, {imported.already} already there, {len(imported.refused)} refused")
    for reason in imported.refused[:20]:
        terminal.say(f"refused: {reason}", stderr=True)
    return exit_codes.of_counts(imported.new + imported.already, len(imported.refused))
