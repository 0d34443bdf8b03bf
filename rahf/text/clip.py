"""CLIP's byte-pair vocabulary, through the `tokenizers` library: prompt → ids between its start and end tokens.

Where that library is missing, as beside a reader of exported files, `rahf.text_byte_pairs` stands in.
Importable without JAX: data workers tokenize.
"""

from __future__ import annotations

import os
import pathlib
from typing import Sequence

from rahf.text import Encoded, Tokenizer, pad, split_words
from rahf.text_byte_pairs import END, PIECES, START, WORD_END, BytePairs

#: Pieces, digits, contractions, signs, letters of other scripts, and all that is normalised.
_SAMPLES = (
    "A  photo\tof 12 red STARS, it's    left-of the dog's ring!! (they'll, we'd)...",
    "na\u00efve nai\u0308ve \u0130STANBUL \u039f\u03a3 \u65e5\u672c \u0915\u093f \u2603\ufe0f",
    "\u00bd\u00b2 \u00a0\u3000\U0001f600",
    "don't<|endoftext|>DON'T _snake_case_ a1b2 'sun' <|STARTOFTEXT|>",
)


class ClipTokenizer(Tokenizer):
    """CLIP's vocabulary behind the interface of `rahf.text.Tokenizer`.

    `model` is the content of a `tokenizer.json`. CLIP writes no target sequence; those of a batch are made of
    its own pieces all the same, so that every field is well-formed.
    """

    def __init__(self, model: bytes, source: str = "bytes"):
        """Builds from the content of a `tokenizer.json`.

        Raises:
          ValueError: not such a file, or one without CLIP's start and end tokens; or, without the `tokenizers`
            library, one that cuts texts otherwise than CLIP.
        """
        self.model, self.source = model, source
        self._tokenizer = _opened(model, source)
        ids = [self._tokenizer.token_to_id(token) for token in (START, END)]
        if None in ids:
            raise ValueError(f"{source}: lacks {START} or {END}; expected the vocabulary of a CLIP")
        self.start_id, self.eos_id = ids

    def __reduce__(self):  # data workers receive the tokenizer by pickle
        return (ClipTokenizer, (self.model, self.source))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return self._tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Piece ids of a text, without start and end."""
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of piece ids, in lower case, up to the first end; the start is skipped."""
        kept = []
        for value in map(int, ids):
            if value == self.eos_id:
                break
            if value != self.start_id:
                kept.append(value)
        return self._tokenizer.decode(kept).replace(WORD_END, " ").strip()

    def encode_prompt(self, prompt: str, length: int) -> Encoded:
        """Start, pieces of the raw prompt, end, padding; pieces that do not fit are cut off.

        A word is lost if any part of it is cut off.
        """
        ids = self.encode(prompt)
        lost: list[str] = []
        if len(ids) > length - 2:
            ids = ids[: max(length - 2, 0)]
            lost = split_words(prompt)[self._words_kept(prompt, ids) :]
        return Encoded(*pad([self.start_id, *ids, self.eos_id], length), lost)


class _Library:
    """The tokenizer of the `tokenizers` library behind the interface of `BytePairs`."""

    def __init__(self, model: bytes):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library raises no narrower class
            raise ValueError(str(error)) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.token_to_id = self._tokenizer.token_to_id
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _opened(model: bytes, source: str) -> _Library | BytePairs:
    try:
        return _Library(model)
    except ImportError:
        pass
    except ValueError as error:
        raise ValueError(f"{source}: not the JSON of a tokenizer ({error})") from error
    try:
        return BytePairs(model)
    except ValueError as error:
        raise ValueError(
            f"{source}: {error}. It can only be read with the tokenizers library; pip install tokenizers"
        ) from error


def standalone_problem(tokenizer: Tokenizer) -> str | None:
    """Why a vocabulary could not be read by an exported file's reader, which has no `tokenizers`; None if it can."""
    if not isinstance(tokenizer, ClipTokenizer):
        return None
    try:
        alone = BytePairs(tokenizer.model)
    except ValueError as error:
        return str(error)
    differing = [text for text in _SAMPLES if alone.encode(text) != tokenizer.encode(text)]
    return f"it cuts {differing[0]!r} into other pieces than CLIP's rules do" if differing else None


def load(folder: str | os.PathLike) -> ClipTokenizer:
    """Loads `tokenizer.json`, or else `vocab.json` and `merges.txt`, from a folder.

    Raises:
      FileNotFoundError: neither is there; names the folder.
      ValueError: they are not a vocabulary of CLIP.
    """
    folder = pathlib.Path(folder)
    whole, vocabulary, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        return ClipTokenizer(whole.read_bytes(), str(whole))
    if vocabulary.is_file() and merges.is_file():
        return ClipTokenizer(_assembled(vocabulary, merges), str(vocabulary))
    raise FileNotFoundError(f"{folder}: no vocabulary; expected tokenizer.json, or vocab.json and merges.txt, in it")


def _assembled(vocabulary: pathlib.Path, merges: pathlib.Path) -> bytes:
    """The tokenizer of CLIP around its two files, as JSON."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), unk_token=END, end_of_word_suffix=WORD_END)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{vocabulary}, {merges.name}: not a byte-pair vocabulary ({error})") from error
    made = Tokenizer(model)
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END)])
    return made.to_str().encode()
