"""Prompts and target sequences as SentencePiece ids.

Importable without JAX: data workers tokenize.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rahf.core.errors import TokenizerError
from rahf.text.words import SUFFIX, WORD, WordForms, align_forms, split_words, without_blanks

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # T5's convention, and that of `train_tokenizer`


class Encoded(NamedTuple):
    """A padded token sequence."""

    ids: np.ndarray  # int32 [length]
    mask: np.ndarray  # bool [length], False for padding
    words_lost: list[str]  # words that did not fit


class Tokenizer:
    """A SentencePiece model with T5's special ids (padding 0, end of sequence 1, unknown 2)."""

    eos_id = EOS_ID

    def __init__(self, model: bytes, source: str = "bytes"):
        """Builds from a serialized SentencePiece model.

        Raises:
          TokenizerError: not a SentencePiece model, or its special ids are not T5's.
        """
        import sentencepiece

        self.model, self.source = model, source
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"{source}: not a SentencePiece model ({error})") from error
        special = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        if special != (PAD_ID, EOS_ID, UNK_ID):
            raise TokenizerError(
                f"{source}: padding, end and unknown ids are {special}, expected (0, 1, 2) as in T5; "
                "use a T5 vocabulary or one made by `rahf prepare`"
            )

    def __reduce__(self):  # data workers receive the tokenizer by pickle
        return (Tokenizer, (self.model, self.source))

    @property
    def vocab_size(self) -> int:
        """Number of pieces. A network may have more rows (T5 pads 32,000 + 100 to 32,128)."""
        return self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Piece ids of a text, without end of sequence."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of piece ids, up to the first end of sequence; padding is skipped."""
        kept = []
        for value in ids:
            if value == EOS_ID:
                break
            if PAD_ID != value < self.vocab_size:
                kept.append(int(value))
        return self._text(kept)

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    @functools.cached_property
    def suffix_ids(self) -> list[int]:
        """Ids of ``_0`` behind a word (T5: 834, 632). Raises TokenizerError if the vocabulary cannot write it."""
        plain, suffixed = self.encode("cat"), self.encode("cat" + SUFFIX)
        if suffixed[: len(plain)] != plain or len(suffixed) == len(plain):
            raise TokenizerError(f"{self.source}: the vocabulary cannot write the suffix {SUFFIX!r}")
        return suffixed[len(plain) :]

    def encode_prompt(self, prompt: str, length: int) -> Encoded:
        """The encoder's input: pieces of the raw prompt, end of sequence, padding, cut to `length`.

        A word counts as lost if any part of it is cut off.
        """
        ids = self.encode(prompt)
        lost: list[str] = []
        if len(ids) > length - 1:
            ids = ids[: length - 1]
            lost = split_words(prompt)[self._words_kept(prompt, ids) :]
        return Encoded(*pad([*ids, EOS_ID], length), lost)

    def _words_kept(self, prompt: str, ids: Sequence[int]) -> int:
        # Both texts are decoded, because the vocabulary's normalisation changes the number of characters.
        kept = without_blanks(self.decode(ids))

        def lost(end: int) -> bool:
            return not kept.startswith(without_blanks(self.decode(self.encode(prompt[:end]))))

        return bisect.bisect_left([match.end() for match in WORD.finditer(prompt)], True, key=lost)

    def encode_target(
        self, words: Sequence[str], labels: Sequence[int] | None, length: int
    ) -> tuple[Encoded, list[int]]:
        """The decoder's target, encoded word by word, so that the end of every word is exact.

        Args:
          words: words of the prompt.
          labels: 1 aligned, 0 misaligned, one per word; None writes no suffix.
          length: number of tokens, end of sequence included; a word that does not fit is dropped with all later ones.

        Returns:
          The sequence, and for every word the index of its last piece before any suffix (-1 if dropped).

        Raises:
          TokenizerError: numbers of words and labels differ.
        """
        if labels is not None and len(labels) != len(words):
            raise TokenizerError(f"{len(words)} words but {len(labels)} labels")
        ids: list[int] = []
        ends: list[int] = []
        full = False
        for number, word in enumerate(words):
            pieces = self._word_ids(word)
            suffix = self.suffix_ids if labels is not None and not labels[number] else []
            full = full or len(ids) + len(pieces) + len(suffix) > length - 1
            if full:
                ends.append(-1)
                continue
            ids += pieces
            ends.append(len(ids) - 1)
            ids += suffix
        lost = [word for word, end in zip(words, ends) if end < 0]
        return Encoded(*pad([*ids, self.eos_id], length), lost), ends

    def target_labels(self, words: Sequence[str], ids: Sequence[int]) -> list[int]:
        """The labels that a target sequence gives to the words of a prompt; inverse of `encode_target`.

        Args:
          words: of the prompt.
          ids: generated pieces, up to the first end of sequence; they need not repeat the prompt exactly.

        Returns:
          One label per word: 1 aligned, 0 misaligned. A word that the sequence lacks counts as aligned.
        """
        forms = []
        for word in words:
            pieces = self._word_ids(word)
            forms.append(WordForms(self._text(pieces).split(), self._text([*pieces, *self.suffix_ids]).split()))
        return align_forms(forms, self.decode(ids).split())

    def _word_ids(self, word: str) -> list[int]:
        # A word that SentencePiece reads as blank (a lone newline) still needs a place of its own.
        return self.encode(word) or [UNK_ID]


def pad(ids: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids filled up with padding to int32 [length], and the mask of what is not padding."""
    padded = np.full(length, PAD_ID, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)
