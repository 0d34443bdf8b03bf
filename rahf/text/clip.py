"""CLIP's byte-pair vocabulary, through the `tokenizers` library: prompt → ids between its start and end tokens.

Where that library is not installed, as where only exported files are read, `rahf.text.byte_pairs` replaces it.
Importable without JAX: data workers tokenize.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from rahf.core.errors import TokenizerError
from rahf.text.byte_pairs import END, START, WORD_END, BytePairs
from rahf.text.tokenizer import Encoded, Tokenizer, pad
from rahf.text.words import split_words


class ClipTokenizer(Tokenizer):
    """CLIP's vocabulary with the interface of `rahf.text.Tokenizer`; `model` is the content of a `tokenizer.json`.

    CLIP writes no target sequence. The targets of a batch nevertheless consist of its pieces, so that every field is
    well-formed.
    """

    def __init__(self, model: bytes, source: str = "bytes"):
        """Builds from the content of a `tokenizer.json`.

        Raises:
          TokenizerError: not such a file, or one without CLIP's start and end tokens; or, without the `tokenizers`
            library, one that cuts texts otherwise than CLIP.
        """
        self.model, self.source = model, source
        self._tokenizer = _opened(model, source)
        ids = [self._tokenizer.token_to_id(token) for token in (START, END)]
        if None in ids:
            raise TokenizerError(f"{source}: lacks {START} or {END}; expected the vocabulary of a CLIP")
        self.start_id, self.eos_id = ids

    def __reduce__(self):  # data workers receive the tokenizer by pickle
        return (ClipTokenizer, (self.model, self.source))

    def with_special(self, number: int) -> ClipTokenizer:
        """A tokenizer that takes the piece of this id out of any text, as published ones do with their padding.

        Stable Diffusion 2 and XL pad with "!". An exclamation mark in a prompt then is the padding's piece, not the
        last letter of a word.
        """
        tree = json.loads(self.model)
        if any(token["id"] == number for token in tree["added_tokens"]):
            return self
        pieces = [piece for piece, of_piece in tree["model"]["vocab"].items() if of_piece == number]
        flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        tree["added_tokens"] = [{"id": number, "content": pieces[0], **flags}, *tree["added_tokens"]]
        return ClipTokenizer(json.dumps(tree).encode(), self.source)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return self._tokenizer.vocab_size

    def token_id(self, token: str) -> int | None:
        """The id of one piece, such as the end token; None if there is no such piece."""
        return self._tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Piece ids of a text, without start and end."""
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of piece ids, in lower case, up to the first end token; start tokens are skipped."""
        kept = []
        for value in map(int, ids):
            if value == self.eos_id:
                break
            if value != self.start_id:
                kept.append(value)
        return self._tokenizer.decode(kept).replace(WORD_END, " ").strip()

    def _text(self, ids: list[int]) -> str:
        return self.decode(ids)

    def encode_prompt(self, prompt: str, length: int) -> Encoded:
        """Start, pieces of the raw prompt, end, padding; pieces that do not fit are cut off.

        A word counts as lost if any part of it is cut off.
        """
        ids = self.encode(prompt)
        lost: list[str] = []
        if len(ids) > length - 2:
            ids = ids[: max(length - 2, 0)]
            lost = split_words(prompt)[self._words_kept(prompt, ids) :]
        return Encoded(*pad([self.start_id, *ids, self.eos_id], length), lost)


class _Library:
    """The tokenizer of the `tokenizers` library with the interface of `BytePairs`."""

    def __init__(self, model: bytes):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library raises no narrower class
            raise TokenizerError(str(error)) from error
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
        raise TokenizerError(f"{source}: not the JSON of a tokenizer ({error})") from error
    try:
        return BytePairs(model)
    except ValueError as error:
        raise TokenizerError(
            f"{source}: {error}. It can only be read with the tokenizers library; pip install tokenizers"
        ) from error
