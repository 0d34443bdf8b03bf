"""Vocabularies on disk: SentencePiece models and CLIP's byte pairs, loaded or trained."""

from __future__ import annotations

import io
import os
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from rahf.core.errors import TokenizerError, VocabularyMissing
from rahf.core.files import read_regular
from rahf.core.names import one_line
from rahf.text.byte_pairs import END, WORD_END, BytePairs
from rahf.text.clip import ClipTokenizer
from rahf.text.clip_vocabulary import with_clip_rules
from rahf.text.tokenizer import EOS_ID, PAD_ID, UNK_ID, Tokenizer
from rahf.text.words import split_words


def train_tokenizer(prompts: Sequence[str], vocab_size: int = 1024) -> bytes:
    """Trains a small byte-pair SentencePiece model for data that bring no vocabulary of their own.

    The same prompts give the same model. Characters that the prompts lack, and the rarest ones where there are more
    than pieces, are encoded as bytes. ``_`` and the digits are pieces of their own, so that the suffix can always be
    written.

    Args:
      prompts: texts to learn from; at least one.
      vocab_size: upper limit; fewer pieces result if the texts do not yield as many.

    Returns:
      The serialized model, for `Tokenizer`.

    Raises:
      TokenizerError: no prompt has any text, or SentencePiece cannot learn from it.
    """
    import sentencepiece

    vocab_size = max(vocab_size, _BYTES + 64)
    words = [" ".join(split_words(prompt)) for prompt in prompts]
    lines = [line for line in {*prompts, *words} if line.strip()]
    if not lines:
        raise TokenizerError("cannot train a vocabulary: no prompt has any text")
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sentences(sorted(lines), vocab_size - _BYTES - _RESERVED)),
            model_writer=writer,
            vocab_size=vocab_size,
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
    except RuntimeError as error:
        raise TokenizerError(
            f"cannot train a vocabulary of {vocab_size} pieces on {len(prompts)} prompts ({one_line(error, 300)}); "
            "name one with --tokenizer, such as T5's spiece.model"
        ) from error
    return writer.getvalue()


_BYTES = 256  # pieces of the bytes
_RESERVED = 8  # padding, end, unknown, "_", the blank's piece, and some room
_LONGEST = 4000  # bytes of a line; SentencePiece leaves lines of more than 4,192 out


def _parts(line: str) -> list[str]:
    """A line, cut at blanks into parts that SentencePiece takes; a word that is too long is cut anywhere."""
    if len(line.encode()) <= _LONGEST:
        return [line]
    parts, part, size = [], "", 0
    for word in re.findall(r"\s*\S+", line):
        for piece in [word] if len(word.encode()) <= _LONGEST else _chunks(word, _LONGEST // 4):
            length = len(piece.encode())
            if size + length > _LONGEST:
                parts.append(part)
                part, size = "", 0
            part, size = part + piece, size + length
    return [*parts, part]


def _chunks(text: str, size: int) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def _sentences(lines: Sequence[str], room: int) -> list[str]:
    """What a vocabulary with room for so many different characters is trained on.

    SentencePiece refuses texts with more of them (and to leave out more than 2% of all characters). The rarest are
    replaced by blanks, so that the vocabulary writes them as bytes.
    """
    counts = Counter(char for line in lines for char in unicodedata.normalize("NFKC", line) if not char.isspace())
    if len(counts) > room:
        kept = {char for char, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:room]}
        normalized = (unicodedata.normalize("NFKC", line) for line in lines)
        lines = ["".join(char if char in kept else " " for char in line) for line in normalized]
    return [part for line in lines for part in _parts(line) if part.strip()]


#: Texts with digits, contractions, punctuation, letters of other scripts, and everything that CLIP normalises.
_SAMPLES = (
    "A  photo\tof 12 red STARS, it's    left-of the dog's ring!! (they'll, we'd)...",
    "na\u00efve nai\u0308ve \u0130STANBUL \u039f\u03a3 \u65e5\u672c \u0915\u093f \u2603\ufe0f",
    "\u00bd\u00b2 \u00a0\u3000\U0001f600",
    "don't<|endoftext|>DON'T _snake_case_ a1b2 'sun' <|STARTOFTEXT|>",
)


def standalone_problem(tokenizer: Tokenizer) -> str | None:
    """Why a reader of exported files, which has no `tokenizers`, cannot use a vocabulary; None if it can."""
    if not isinstance(tokenizer, ClipTokenizer):
        return None
    try:
        byte_pairs = BytePairs(tokenizer.model)
    except ValueError as error:
        return str(error)
    differing = [text for text in _SAMPLES if byte_pairs.encode(text) != tokenizer.encode(text)]
    return f"it cuts {differing[0]!r} into other pieces than CLIP's rules do" if differing else None


def load_clip_tokenizer(folder: str | os.PathLike) -> ClipTokenizer:
    """Loads `tokenizer.json`, or else `vocab.json` and `merges.txt`, from a folder.

    Raises:
      VocabularyMissing: neither is in the folder.
      TokenizerError: they are not a vocabulary of CLIP.
    """
    folder = pathlib.Path(folder)
    tokenizer, vocabulary, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if tokenizer.is_file():
        return ClipTokenizer(read_regular(tokenizer), str(tokenizer))
    if vocabulary.is_file() and merges.is_file():
        return ClipTokenizer(_assembled(vocabulary, merges), str(vocabulary))
    raise VocabularyMissing(f"{folder}: no vocabulary; expected tokenizer.json, or vocab.json and merges.txt, in it")


def _assembled(vocabulary: pathlib.Path, merges: pathlib.Path) -> bytes:
    """The `tokenizer.json` of a CLIP that has only the two older files."""
    from tokenizers import models

    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), unk_token=END, end_of_word_suffix=WORD_END)
    except Exception as error:  # the library raises no narrower class
        raise TokenizerError(f"{vocabulary}, {merges.name}: not a byte-pair vocabulary ({error})") from error
    return with_clip_rules(model).to_str().encode()


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Loads a vocabulary: a SentencePiece ``.model`` file, or the folder or JSON file of a CLIP vocabulary.

    Raises:
      VocabularyMissing: no such file.
      TokenizerError: not a vocabulary.
      OSError: the file cannot be read.
    """
    if os.path.isdir(path):
        return load_clip_tokenizer(path)
    if not os.path.exists(path):
        raise VocabularyMissing(f"{os.fspath(path)}: no such vocabulary; expected a SentencePiece model or CLIP's JSON")
    return tokenizer_from_bytes(read_regular(path), str(path))


def tokenizer_from_bytes(model: bytes, source: str = "bytes") -> Tokenizer:
    """The tokenizer of a serialized SentencePiece model, or of the JSON of a CLIP vocabulary.

    Args:
      model: the bytes, as in the attribute `model` of a tokenizer.
      source: their origin, for messages.

    Raises:
      TokenizerError: neither of the two.
    """
    return ClipTokenizer(model, source) if model[:1] == b"{" else Tokenizer(model, source)


def too_many_pieces(tokenizer: Tokenizer, rows: int, field: str) -> str | None:
    """Why a vocabulary does not fit an embedding of so many rows, in words that name both sizes; None if it fits."""
    if tokenizer.vocab_size <= rows:
        return None
    return (
        f"the vocabulary {tokenizer.source} has {tokenizer.vocab_size} pieces, model.{field}.vocab_size is only "
        f"{rows}; set it to at least that"
    )
