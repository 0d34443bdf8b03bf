"""Takes the undamaged pictures of the rehearsal set's training split for `rahf prepare planted`.

    python benchmarks/clean_pictures.py REHEARSAL data/rehearsal OUT

A picture goes to OUT as <uid>.jpg. Its prompt goes beside it as <uid>.txt where the set's truth says that all of it is
true. Nothing of the splits dev and test is read.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from data_pipelines import store


def main(arguments: list[str] | None = None) -> int:
    """Writes the files; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rehearsal", type=pathlib.Path, help="folder of the rehearsal set, with truth/truth.jsonl")
    parser.add_argument("data", help="the set as prepared by `rahf prepare richhf18k`")
    parser.add_argument("out", type=pathlib.Path, help="folder to make")
    options = parser.parse_args(arguments)
    with open(options.rehearsal / "truth" / "truth.jsonl", encoding="utf-8") as file:
        truth = {line["uid"]: line for line in map(json.loads, file)}
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = prompts = 0
    train = store.open_split(options.data, "train")
    for record in (train[number] for number in range(len(train))):
        name = pathlib.PurePosixPath(record.uid).stem
        if truth[name]["damage"]:
            continue
        (options.out / f"{name}.jpg").write_bytes(record.image)
        pictures += 1
        if all(truth[name]["word_ok"]):
            (options.out / f"{name}.txt").write_text(record.prompt, encoding="utf-8")
            prompts += 1
    print(f"{options.out}: {pictures} undamaged pictures, {prompts} with a true prompt")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
