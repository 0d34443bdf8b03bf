"""Prompts, words, vocabularies and token sequences. Importable without JAX: data workers tokenize."""

from rahf.text.clip import ClipTokenizer
from rahf.text.prompts import PromptWarning, Tokens
from rahf.text.tokenizer import EOS_ID, PAD_ID, UNK_ID, Encoded, Tokenizer, pad
from rahf.text.vocabulary import load_tokenizer, tokenizer_from_bytes, train_tokenizer
from rahf.text.words import SUFFIX, WORD_RULE, align_labels, parse_target, split_words

__all__ = [
    "EOS_ID",
    "PAD_ID",
    "SUFFIX",
    "UNK_ID",
    "WORD_RULE",
    "ClipTokenizer",
    "Encoded",
    "PromptWarning",
    "Tokenizer",
    "Tokens",
    "align_labels",
    "load_tokenizer",
    "pad",
    "parse_target",
    "split_words",
    "tokenizer_from_bytes",
    "train_tokenizer",
]
