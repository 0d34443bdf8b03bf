"""Published lists of prompts, in the layouts that they are published in."""

import pytest

from rahf.core.errors import ArgumentError
from rahf.text import prompt_lists

DRAWBENCH = 'Prompts,Category\r\nA red colored car.,Colors\r\n"One car, on the street.",Counting\r\n\r\n'
PARTI = 'Prompt\tCategory\tChallenge\tNote\na "bond" in 1,2\tAbstract\tBasic\tBIG-bench\nbond\tArts\tBasic\t\n'


@pytest.mark.parametrize(
    "name, text, layout, rows, unread",
    [
        (
            "drawbench.csv",
            DRAWBENCH,
            "CSV",
            [("A red colored car.", "Colors"), ("One car, on the street.", "Counting")],
            (),
        ),
        (
            "PartiPrompts.tsv",
            PARTI,
            "TSV",
            [('a "bond" in 1,2', "Abstract"), ("bond", "Arts")],
            ("Challenge", "Note"),
        ),
        ("parti.txt", PARTI, "TSV", [('a "bond" in 1,2', "Abstract"), ("bond", "Arts")], ("Challenge", "Note")),
        (
            "csp.csv",
            "phenomenon,prompt\npassives,The vase was broken\n",
            "CSV",
            [("The vase was broken", "passives")],
            (),
        ),
        ("dailydalle.csv", "text\nplush toys in a ball pit\n", "CSV", [("plush toys in a ball pit", "")], ()),
        (
            "dailydalle.txt",
            "\ufeffa prompt, text\n\n  two cats\u2028one mat \n",
            "text",
            [("a prompt, text", ""), ("two cats\u2028one mat", "")],
            (),
        ),
    ],
)
def test_layouts(name, text, layout, rows, unread, tmp_path):
    (tmp_path / name).write_text(text, newline="")
    listed = prompt_lists.read(tmp_path / name)
    assert listed.name == name.split(".")[0] and listed.layout == layout and listed.unread == unread
    assert [(one.prompt, one.category, one.number) for one in listed.prompts] == [(*r, n) for n, r in enumerate(rows)]
    assert listed.categories == {category: 1 for _, category in rows if category} and not listed.refused


def test_another_column_and_refused_rows(tmp_path):
    (tmp_path / "list.tsv").write_text(PARTI + "\tArts\tBasic\t\nx\ty\tz\tn\tmore\n")
    listed = prompt_lists.read(tmp_path / "list.tsv", "challenge")
    assert listed.categories == {"Basic": 2} and listed.unread == ("Category", "Note")
    assert [reason.split(":")[0] for reason in listed.refused] == ["line 4", "line 5"]
    assert "prompt is empty" in listed.refused[0] and "5 cells, the first line names 4" in listed.refused[1]


@pytest.mark.parametrize(
    "name, text, column, message",
    [
        ("a.csv", "a cat,a dog\n", None, "no column of prompts.*found 'a cat', 'a dog'"),
        ("a.csv", "", None, "no column of prompts.*found none"),
        ("a.csv", "Prompts,Category\n,x\n", None, "has no prompts.*line 2: its prompt is empty"),
        ("a.txt", "\n \n", None, "has no prompts"),
        ("a.txt", "a cat\n", "Challenge", "plain text.*'Challenge'"),
        ("a.csv", "Prompts,Category\na,b\n", "Challenge", "no column 'Challenge'; its columns: 'Prompts', 'Category'"),
        ("a.csv", "Prompts\n" + "a" * 200_000, None, "line 2 is no CSV"),
        ("none.txt", None, None, "cannot be read"),
    ],
)
def test_what_is_refused(name, text, column, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ArgumentError, match=message):
        prompt_lists.read(tmp_path / name, column)
