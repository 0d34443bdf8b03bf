"""CLIP's byte pairs from the JSON of a tokenizer, with the standard library alone.

Kept by hand: an exported model must be readable without the `tokenizers` library, which `rahf.text.clip` prefers.

The ids are those of `tokenizers` for the one way in which CLIP cuts texts; any other way is refused. Only letters that
are newer than this Python's Unicode (`unicodedata.unidata_version`) may be cut otherwise.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from rahf.core import json_text
from rahf.core.errors import TokenizerError

#: Ends the last piece of every word in the vocabulary.
WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
#: Pieces of a text before byte pairs are merged (Radford et al. 2021): contractions, letters, single digits, the rest.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Patterns of CLIP vocabularies, and the tokens that each matches first: `transformers` adds its special tokens.
_PATTERNS = {PIECES: (), rf"<\|startoftext\|>|<\|endoftext\|>|{PIECES}": (START, END)}
_BLANKS = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
_NORMALIZERS = [{"type": "NFC"}, _BLANKS, {"type": "Lowercase"}]
_CACHED_WORDS = 1 << 16


class BytePairs:
    """The `encode` and `decode` of a CLIP's `tokenizer.json`.

    Attributes:
      vocab_size: one more than the highest id.
    """

    def __init__(self, model: bytes):
        """Builds from the content of a `tokenizer.json`.

        Raises:
          TokenizerError: no JSON, or a tokenizer that cuts texts otherwise than CLIP; the message names the difference.
        """
        try:
            tree = json_text.parse(model)
            self._ids = dict(tree["model"]["vocab"])
            merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in tree["model"]["merges"]]
            self._literals = _PATTERNS.get(_check(tree), ())
            added = [(str(t["content"]), int(t["id"]), bool(t["normalized"])) for t in tree["added_tokens"]]
        except TokenizerError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise TokenizerError(f"not the JSON of a byte-pair tokenizer ({error!r})") from error
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._bytes = byte_letters()
        pieces = [letter + end for letter in self._bytes.values() for end in ("", WORD_END)]
        pieces += [a + b for a, b in merges]
        missing = [piece for piece in pieces if piece not in self._ids]
        if missing:
            raise TokenizerError(f"its vocabulary lacks {missing[0]!r}")
        self._raw = {text: number for text, number, normalized in added if not normalized}
        self._lower = {_normalized(text): number for text, number, normalized in added if normalized}
        self._all_ids = self._ids | {text: number for text, number, _ in added}
        self._pieces = {number: piece for piece, number in self._all_ids.items()}
        self.vocab_size = max(self._pieces) + 1
        self._word = functools.lru_cache(_CACHED_WORDS)(self._merged)

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece, None if there is no such piece."""
        return self._all_ids.get(token)

    def encode(self, text: str) -> list[int]:
        """Piece ids of a text, without start and end."""
        ids: list[int] = []
        for raw, number in _cut(text, self._raw):
            if number is not None:
                ids.append(number)
                continue
            for part, special in _cut(_normalized(raw), self._lower):
                if special is not None:
                    ids.append(special)
                    continue
                for word in _words(part, self._literals):
                    ids += self._word(word)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of piece ids; unknown ids are skipped, bytes that are not UTF-8 become U+FFFD."""
        values = {letter: value for value, letter in self._bytes.items()}
        text = bytearray()
        for piece in (self._pieces[number] for number in ids if number in self._pieces):
            is_bytes = all(letter in values for letter in piece)
            text += bytes(values[letter] for letter in piece) if is_bytes else piece.encode()
        return text.decode(errors="replace")

    def _merged(self, word: str) -> tuple[int, ...]:
        """Ids of a word: the neighbours of lowest rank are joined, leftmost first, until no pair has a rank."""
        pieces: list[str | None] = [self._bytes[value] for value in word.encode("utf-8", "replace")]
        pieces[-1] += WORD_END
        after, before = list(range(1, len(pieces) + 1)), list(range(-1, len(pieces) - 1))

        def candidates(at: int) -> Iterator[tuple[int, int, tuple[str, str]]]:
            if 0 <= at and after[at] < len(pieces):
                pair = pieces[at], pieces[after[at]]
                if pair in self._ranks:
                    yield self._ranks[pair], at, pair

        queue = [candidate for at in range(len(pieces)) for candidate in candidates(at)]
        heapq.heapify(queue)
        while queue:
            _, at, pair = heapq.heappop(queue)
            right = after[at]
            if right >= len(pieces) or (pieces[at], pieces[right]) != pair:
                continue  # one of the two has been joined with another piece
            pieces[at], pieces[right], after[at] = "".join(pair), None, after[right]
            if after[at] < len(pieces):
                before[after[at]] = at
            for neighbour in (before[at], at):
                for candidate in candidates(neighbour):
                    heapq.heappush(queue, candidate)
        return tuple(self._ids[piece] for piece in pieces if piece is not None)


def _check(tree: dict[str, Any]) -> str:
    """The pattern of pieces. Raises TokenizerError if the tokenizer differs from CLIP's in anything else."""
    model, normalizer, cutter = tree["model"], tree["normalizer"], tree["pre_tokenizer"]
    plain = ("dropout", "continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges")
    if model.get("type", "BPE") != "BPE" or model["end_of_word_suffix"] != WORD_END or any(map(model.get, plain)):
        raise TokenizerError("its model is not of byte pairs with words that end in </w>")
    if normalizer["type"] != "Sequence" or normalizer["normalizers"] != _NORMALIZERS:
        raise TokenizerError("it normalizes texts otherwise than CLIP (NFC, blanks, lower case)")
    split, level = cutter["pretokenizers"]
    fixed = {"type": "Split", "behavior": "Removed", "invert": True}
    if any(split[k] != v for k, v in fixed.items()) or level["type"] != "ByteLevel" or level["add_prefix_space"]:
        raise TokenizerError("it cuts texts into words otherwise than CLIP")
    if split["pattern"].get("Regex") not in _PATTERNS:
        raise TokenizerError(f"it cuts texts into words otherwise than CLIP, by {split['pattern']}")
    for token in tree["added_tokens"]:
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            raise TokenizerError(f"its added token {token['content']!r} takes blanks or word borders into account")
    return split["pattern"]["Regex"]


def byte_letters() -> dict[int, str]:
    """A letter for each byte: itself if it is printable Latin-1, else the next from U+0100 on (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (value for value in range(256) if value not in printable)
    return {v: chr(v) for v in printable} | {value: chr(0x100 + at) for at, value in enumerate(others)}


def _normalized(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    # Letter by letter, because Python's `lower` of a text changes a Greek sigma at the end of a word.
    lower = (letter.lower() for letter in composed)
    return "".join(" " if _blank(letter) else letter for letter in itertools.chain.from_iterable(lower))


def _blank(letter: str) -> bool:
    # To the regex, the separators of files, groups, records and units are not blank.
    return letter.isspace() and not "\x1c" <= letter <= "\x1f"


def _kind(letter: str) -> str:
    """L(etter), N(umber), blank or other."""
    if _blank(letter):
        return "blank"
    kind = unicodedata.category(letter)[0]
    return kind if kind in "LN" else "other"


def _cut(text: str, tokens: dict[str, int]) -> list[tuple[str, int | None]]:
    """The parts of a text: those between `tokens` with None, each of the `tokens` with its id."""
    if not tokens:
        return [(text, None)]
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    parts = re.split(f"({pattern})", text)
    return [(part, tokens[part] if at % 2 else None) for at, part in enumerate(parts) if part]


def _words(text: str, literals: tuple[str, ...]) -> Iterator[str]:
    """The matches of `PIECES` between literals; ByteLevel cuts a literal by `PIECES` again, and so does this."""
    at = 0
    while at < len(text):
        special = next((token for token in literals if text.startswith(token, at)), None)
        if special:
            yield from _words(special, ())
            at += len(special)
            continue
        kind = _kind(text[at])
        end = at + 1
        short = next((c for c in _CONTRACTIONS if text.startswith(c, at)), None)
        if short:
            end = at + len(short)
        elif kind in ("L", "other"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "blank":
            yield text[at:end]
        at = end
