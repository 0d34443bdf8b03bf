"""Vocabularies in CLIP's layout that are learnt from prompts: which pairs, which ids, what is refused."""

import json
import subprocess
import sys

import pytest

from rahf.core.errors import TokenizerError
from rahf.text import tokenizer_from_bytes
from rahf.text.byte_pairs import END, START, BytePairs
from rahf.text.clip_vocabulary import clip_vocabulary, train_clip_tokenizer
from rahf.text.vocabulary import standalone_problem

PROMPTS = ["RED red rod", "a rod", "red  ring"]


def test_the_most_frequent_pairs_are_joined_first():
    """Words: red 3, rod 2, a 1, ring 1. Pairs: r+e 3, e+d</w> 3, r+o 2, o+d</w> 2; i+n and others once."""
    tokenizer = train_clip_tokenizer(PROMPTS, 600)
    model = json.loads(tokenizer.model)["model"]
    merges = {tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]}
    assert (
        len(model["merges"]) == 4
    )  # two for red</w>, two for rod</w>; pairs of a word that occurs once are not joined
    assert {"".join(merge) for merge in merges} > {"red</w>", "rod</w>"}
    assert [tokenizer.decode([number]) for number in tokenizer.encode("rod Red ring")] == [
        *("rod", "red", "r", "i", "n", "g")
    ]


def test_size_and_ids_are_those_of_the_request():
    tokenizer = train_clip_tokenizer(PROMPTS, 600)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.eos_id) == (600, 598, 599)
    assert sorted(json.loads(tokenizer.model)["model"]["vocab"].values()) == list(range(600))
    full = train_clip_tokenizer(PROMPTS, 516)  # room for two joined pairs
    assert (full.vocab_size, full.eos_id) == (516, 515)
    assert len(json.loads(full.model)["model"]["merges"]) == 2
    assert tokenizer.token_id(START) == 598 and tokenizer.encode(f"red{END}")[-1] == 599


def test_every_text_can_be_written():
    tokenizer = tokenizer_from_bytes(train_clip_tokenizer(PROMPTS, 600).model)
    assert tokenizer.decode(tokenizer.encode("na\u00efve \u65e5\u672c \u2603")) == "na\u00efve \u65e5\u672c \u2603"
    assert standalone_problem(tokenizer) is None
    assert BytePairs(tokenizer.model).encode("a red rod's ring") == tokenizer.encode("a red rod's ring")


def test_the_same_prompts_give_the_same_model_in_any_order_and_process():
    # Many pairs of the same frequency, whose order a hash table must not decide.
    prompts = [f"{first}{second} {second}{first}" for first in "abcdefgh" for second in "ijklmnop"]
    model = train_clip_tokenizer(prompts, 560).model
    assert train_clip_tokenizer(prompts[::-1], 560).model == model
    program = (
        "import sys; from rahf.text.clip_vocabulary import train_clip_tokenizer as train;"
        f"sys.stdout.buffer.write(train({prompts!r}, 560).model)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == model


@pytest.mark.parametrize(
    "prompts, size, message",
    [
        (PROMPTS, 513, "data/x: .* 513 pieces .* at least 514"),
        ([], 600, "data/x: .* no prompt has any text"),
        (["", " \t"], 600, "data/x: .* no prompt has any text"),
    ],
)
def test_what_cannot_be_learnt(prompts, size, message):
    with pytest.raises(TokenizerError, match=message):
        train_clip_tokenizer(prompts, size, "data/x")


def test_pieces_need_room():
    assert tokenizer_from_bytes(clip_vocabulary(["a", "a</w>"], [], 4, "one letter")).eos_id == 3
    with pytest.raises(TokenizerError, match="one letter: vocab_size is 3; expected at least 4"):
        clip_vocabulary(["a", "a</w>"], [], 3, "one letter")
