"""Every command line of ours in README, documents and configs is one that the program accepts."""

import pathlib
import re
import shlex

import pytest

from rahf.cli import main as cli
from rahf.config import overrides

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A command within a sentence that leaves something out.
SHORTENED = re.compile("…|\\.\\.\\.")
#: A command that is only named, as in "`rahf score` goes on".
NAME = re.compile("[a-z]+|(prepare|import|annotate|gazefusion) [a-z0-9-]+")


def commands(text: str) -> list[list[str]]:
    """The arguments of each `rahf …` in the blocks and the inline code of a Markdown text."""
    lines = []
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
        lines += block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += re.findall(r"`([^`]*)`", prose.replace("\n", " "))
    found = []
    for line in lines:
        for part in re.split(r"&&|\|\|", line.split(" #")[0]):
            match = re.match(r"\s*(?:(?:[A-Z_]+=\S+|time|srun|exec|\$)\s+)*rahf\s+(.+?)\s*&?\s*$", part)
            if match and not SHORTENED.search(match[1]):
                found.append(shlex.split(match[1]))
    return found


def accepts(arguments: list[str]) -> None:
    """Parses a command line as the program does, without running it."""
    try:
        parsed = cli._parser().parse_args(arguments)
        if arguments[0] == "train" and "/" in parsed.config:
            overrides.parse(parsed.config, parsed.fields)
    except SystemExit as error:
        assert error.code == 0, f"rahf {shlex.join(arguments)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_commands(document, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for arguments in commands(document.read_text()):
        if not NAME.fullmatch(" ".join(arguments)):
            accepts(arguments)


def test_they_are_noticed():
    text = "Do `rahf mask RUN a.png --out m.png`:\n```\nrahf export a b && rahf evaluate \\\n  a  # both\nls\n```\n"
    assert commands(text) == [["export", "a", "b"], ["evaluate", "a"], ["mask", "RUN", "a.png", "--out", "m.png"]]
    with pytest.raises(AssertionError, match="rahf export a --nothing"):
        accepts(["export", "a", "--nothing"])
