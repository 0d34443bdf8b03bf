"""Vocabularies in CLIP's byte-pair layout, built of pieces or learnt from prompts; needs the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rahf.core.errors import TokenizerError
from rahf.text.byte_pairs import END, PIECES, START, WORD_END, byte_letters
from rahf.text.clip import ClipTokenizer


def with_clip_rules(model: Any) -> Any:
    """The `tokenizers.Tokenizer` that cuts texts as CLIP does before its `tokenizers.models.BPE` joins bytes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END)])
    return tokenizer


def clip_vocabulary(pieces: Sequence[str], merges: Sequence[tuple[str, str]], vocab_size: int, source: str) -> bytes:
    """The `tokenizer.json` of a vocabulary in CLIP's layout, whose last two ids are its start and its end token.

    Args:
      pieces: in the order of their ids, with the results of the merges.
      merges: pairs of pieces that are joined, the first ones first.
      vocab_size: pieces that no text has fill it up, so that the id of the end token is known: ``vocab_size - 1``.
      source: what the vocabulary is of, for messages.

    Raises:
      TokenizerError: `pieces` and the two tokens are more than `vocab_size`.
    """
    from tokenizers import models

    if vocab_size < len(pieces) + 2:
        raise TokenizerError(f"{source}: vocab_size is {vocab_size}; expected at least {len(pieces) + 2}")
    unused = [f"unused{number}" for number in range(vocab_size - 2 - len(pieces))]
    numbers = {piece: number for number, piece in enumerate([*pieces, *unused, START, END])}
    return (
        with_clip_rules(models.BPE(numbers, list(merges), unk_token=END, end_of_word_suffix=WORD_END)).to_str().encode()
    )


def train_clip_tokenizer(prompts: Iterable[str], vocab_size: int, source: str = "prompts") -> ClipTokenizer:
    """Learns a vocabulary in CLIP's layout (Sennrich et al. 2016; Radford et al. 2021) from prompts.

    Every text can be written: each byte is a piece, inside and at the end of a word. The pair of pieces that is most
    frequent in the prompts is joined first; pairs that occur once are not joined. Equal prompts in equal numbers give
    the same model, whatever their order.

    Args:
      prompts: texts to learn from.
      vocab_size: number of pieces, exactly; those that the prompts do not yield have names that no text contains. The
        start token has the id ``vocab_size - 2``, the end token ``vocab_size - 1``.
      source: where the prompts are from, for messages.

    Raises:
      TokenizerError: `vocab_size` is below 514, the letters and the two tokens; or no prompt has any text.
    """
    from tokenizers import models, trainers

    letters = [letter + end for end in ("", WORD_END) for letter in byte_letters().values()]
    if vocab_size < len(letters) + 2:
        raise TokenizerError(
            f"{source}: cannot learn a vocabulary of {vocab_size} pieces in CLIP's layout; set vocab_size to at least "
            f"{len(letters) + 2}: every byte inside and at the end of a word, and the start and end tokens"
        )
    texts = sorted(prompt for prompt in prompts if prompt.strip())
    if not texts:
        raise TokenizerError(f"{source}: cannot learn a vocabulary: no prompt has any text")
    learner = with_clip_rules(models.BPE(end_of_word_suffix=WORD_END))
    # Letters that the trainer meets in the texts get their ids in the order of a hash table, and ids decide between
    # pairs of the same frequency. As special tokens the letters have their ids before it reads.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=letters,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    merges = [tuple(merge) for merge in learnt["merges"]]
    return ClipTokenizer(clip_vocabulary(pieces, merges, vocab_size, source), source)
