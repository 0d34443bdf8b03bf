"""Prompt → words → SentencePiece ids, and words ↔ target sequence.

The target sequence repeats the words of the prompt; a misaligned word carries the suffix ``_0``
("a yellow cat", black cat pictured: ``a yellow_0 cat``; RAHF paper, section 4.1). Words come from the
split rule of the released dataset, so punctuation is lost in the target.

Importable without JAX: data workers tokenize.
"""

from __future__ import annotations

import bisect
import functools
import io
import os
import re
from typing import NamedTuple, Sequence

import numpy as np

#: Suffix of a misaligned word in the target sequence.
SUFFIX = "_0"
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # T5's convention, and that of `train_tokenizer`

# The eight separators of google-research/richhf_18k and the blank. Newline, tab, hyphen,
# parentheses and apostrophe do not separate words.
WORD_RULE = r'[^,.?!":; ]+'
_WORD = re.compile(WORD_RULE)


def split_words(prompt: str) -> list[str]:
    """Splits a prompt by the dataset's rule: at any of ``, . ? ! " : ;`` and blank, empties dropped."""
    return _WORD.findall(prompt)


class Encoded(NamedTuple):
    """A padded token sequence. `ids` int32 [length], `mask` bool [length], `words_lost` cut-off words."""

    ids: np.ndarray
    mask: np.ndarray
    words_lost: list[str]


class Tokenizer:
    """A SentencePiece model with T5's special ids (padding 0, end of sequence 1, unknown 2)."""

    eos_id = EOS_ID

    def __init__(self, model: bytes, source: str = "bytes"):
        """Builds from a serialized SentencePiece model.

        Raises:
          ValueError: not a SentencePiece model, or its special ids are not T5's.
        """
        import sentencepiece

        self.model, self.source = model, source
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{source}: not a SentencePiece model ({error})") from error
        found = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(
                f"{source}: padding, end and unknown ids are {found}, expected (0, 1, 2) as in T5; "
                "use a T5 vocabulary or one made by `rahf prepare`"
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Loads a ``.model`` file, or a folder or JSON file of CLIP's (`rahf.text_clip`).

        Raises FileNotFoundError or ValueError naming the file.
        """
        if os.path.isdir(path):
            from rahf import text_clip

            return text_clip.load(path)
        with open(path, "rb") as file:
            return cls.from_bytes(file.read(), str(path))

    @staticmethod
    def from_bytes(model: bytes, source: str = "bytes") -> "Tokenizer":
        """The tokenizer whose attribute `model` is given: SentencePiece, or CLIP's, which is JSON."""
        if model[:1] != b"{":
            return Tokenizer(model, source)
        from rahf import text_clip

        return text_clip.ClipTokenizer(model, source)

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
        return self._processor.decode(kept)

    @functools.cached_property
    def suffix_ids(self) -> list[int]:
        """Ids of ``_0`` behind a word (T5: 834, 632)."""
        plain, suffixed = self.encode("cat"), self.encode("cat" + SUFFIX)
        if suffixed[: len(plain)] != plain or len(suffixed) == len(plain):
            raise ValueError(f"{self.source}: the vocabulary cannot write the suffix {SUFFIX!r}")
        return suffixed[len(plain) :]

    def encode_prompt(self, prompt: str, length: int) -> Encoded:
        """The encoder's input: pieces of the raw prompt, end of sequence, padding, cut to `length`.

        A word is lost if any part of it is cut off.
        """
        ids = self.encode(prompt)
        lost: list[str] = []
        if len(ids) > length - 1:
            ids = ids[: length - 1]
            lost = split_words(prompt)[self._words_kept(prompt, ids) :]
        return Encoded(*pad([*ids, EOS_ID], length), lost)

    def _words_kept(self, prompt: str, ids: Sequence[int]) -> int:
        # Both sides went through the vocabulary's normalisation, which changes the number of characters.
        kept = _without_blanks(self.decode(ids))

        def lost(end: int) -> bool:
            return not kept.startswith(_without_blanks(self.decode(self.encode(prompt[:end]))))

        return bisect.bisect_left([match.end() for match in _WORD.finditer(prompt)], True, key=lost)

    def encode_target(
        self, words: Sequence[str], labels: Sequence[int] | None, length: int
    ) -> tuple[Encoded, list[int]]:
        """The decoder's target, word by word, so that word borders are known exactly.

        Args:
          words: words of the prompt.
          labels: 1 aligned, 0 misaligned, one per word; None writes no suffix.
          length: number of tokens with end of sequence; whole words that do not fit are dropped.

        Returns:
          The sequence, and for every word the index of its last piece before any suffix (-1 if dropped).

        Raises:
          ValueError: numbers of words and labels differ.
        """
        if labels is not None and len(labels) != len(words):
            raise ValueError(f"{len(words)} words but {len(labels)} labels")
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

    def _word_ids(self, word: str) -> list[int]:
        # A word of nothing but blanks to SentencePiece (a lone newline) still needs a place of its own.
        return self.encode(word) or [UNK_ID]


def pad(ids: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids filled up with padding to int32 [length], and the mask of what is not padding."""
    padded = np.full(length, PAD_ID, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)


def parse_target(text: str) -> list[tuple[str, int]]:
    """Splits a decoded target into (word, label): ``"a yellow_0 cat"`` → [("a",1),("yellow",0),("cat",1)]."""
    parsed = []
    for piece in text.split():
        misaligned = piece.endswith(SUFFIX) and piece != SUFFIX
        parsed.append((piece[: -len(SUFFIX)] if misaligned else piece, 0 if misaligned else 1))
    return parsed


def align_labels(words: Sequence[str], decoded: Sequence[tuple[str, int]]) -> list[int]:
    """Carries labels of generated words over to the prompt's words.

    Minimum edit distance over word strings (spec 2.5); a substitution does not match, so its prompt word
    counts as aligned, like a deleted one. Generated words without a counterpart are ignored.

    Returns:
      One label per prompt word: 1 aligned, 0 misaligned.
    """
    n, m = len(words), len(decoded)
    cost = np.zeros((n + 1, m + 1), np.int32)
    cost[:, 0], cost[0, :] = np.arange(n + 1), np.arange(m + 1)
    same = [[_same(word, other) for other, _ in decoded] for word in words]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            swap = cost[i - 1, j - 1] + (0 if same[i - 1][j - 1] else 1)
            cost[i, j] = min(swap, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    labels = [1] * n
    i, j = n, m
    while i and j:
        if same[i - 1][j - 1] and cost[i, j] == cost[i - 1, j - 1]:
            labels[i - 1] = decoded[j - 1][1]
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return labels


def _same(word: str, other: str) -> bool:
    # SentencePiece normalises (NFKC) and collapses white space, so compare without it.
    return word == other or _without_blanks(word).casefold() == _without_blanks(other).casefold()


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def train_tokenizer(prompts: Sequence[str], vocab_size: int = 1024) -> bytes:
    """Trains a small byte-pair SentencePiece model for data that bring no vocabulary of their own.

    Deterministic for the same prompts. Bytes stand in for characters that the prompts lack, and ``_``
    and the digits stay pieces of their own, so that the suffix can always be written.

    Args:
      prompts: texts to learn from; at least one.
      vocab_size: upper limit; fewer pieces result if the texts do not yield as many.

    Returns:
      The serialized model, for `Tokenizer`.
    """
    import sentencepiece

    words = [" ".join(split_words(prompt)) for prompt in prompts]
    lines = [line for line in {*prompts, *words} if line.strip()]
    if not lines:
        raise ValueError("cannot train a vocabulary: no prompt has any text")
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sorted(lines)),
        model_writer=writer,
        vocab_size=max(vocab_size, 256 + 64),
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        user_defined_symbols=["_"],
        character_coverage=1.0,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return writer.getvalue()
