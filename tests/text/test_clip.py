"""CLIP's vocabulary: against transformers, cut to length, and how it is told from SentencePiece."""

import json
import pickle
import sys

import numpy as np
import pytest

from rahf.config import ClipBaselineConfig, ClipConfig, ClipTextConfig, CriticConfig, ResNetBaselineConfig
from rahf.core.errors import VocabularyMissing
from rahf.critic import families
from rahf.text import Tokenizer, load_tokenizer, train_tokenizer
from rahf.text.byte_pairs import BytePairs
from rahf.text.clip import ClipTokenizer
from rahf.text.vocabulary import load_clip_tokenizer, standalone_problem
from tests.helpers.baseline_maker import END, START, save_vocabulary, vocabulary

PROMPTS = (
    "a red star left of two blue rings",
    "  A  RED\tStar,\nabove—one ring!!  it's 2024 ",
    "naïve café \N{SNOWMAN} 日本",
    "it'll don't we've you're I'm he'd 12345",
    "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    save_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_clip_tokenizer(folder)


def test_ids_by_hand(tokenizer):
    ids, _ = vocabulary()
    assert tokenizer.encode("Red ring, s") == [ids["red</w>"], ids["ring</w>"], ids[",</w>"], ids["s</w>"]]
    assert tokenizer.encode("reds") == [ids["re"], ids["d"], ids["s</w>"]]
    assert (tokenizer.start_id, tokenizer.eos_id) == (ids[START], ids[END])
    assert tokenizer.vocab_size == len(ids)
    assert tokenizer.decode([ids[START], ids["red</w>"], ids["s</w>"], ids[END], ids["a</w>"]]) == "red s"


def test_same_ids_as_transformers(folder, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(str(folder))
    for prompt in PROMPTS:
        encoded = tokenizer.encode_prompt(prompt, 77)
        assert encoded.ids[encoded.mask].tolist() == theirs(prompt, truncation=True, max_length=77)["input_ids"]
        short = tokenizer.encode_prompt(prompt, 9)
        assert short.ids[short.mask].tolist() == theirs(prompt, truncation=True, max_length=9)["input_ids"]
    theirs.save_pretrained(folder / "saved")
    assert (folder / "saved" / "tokenizer.json").is_file()
    again = load_clip_tokenizer(folder / "saved")
    for prompt in PROMPTS:
        assert again.encode(prompt) == tokenizer.encode(prompt)


def test_prompts_are_cut_and_say_what_is_lost(tokenizer):
    prompt = "two red stars above a blue ring"
    complete = tokenizer.encode_prompt(prompt, 77)
    assert complete.ids.dtype == np.int32 and complete.ids.shape == (77,) and not complete.words_lost
    assert complete.ids[0] == tokenizer.start_id and complete.ids[complete.mask][-1] == tokenizer.eos_id
    assert (complete.ids[~complete.mask] == 0).all()
    pieces = tokenizer.encode("two red")
    cut = tokenizer.encode_prompt(prompt, len(pieces) + 3)  # and one piece of "stars"
    assert cut.words_lost == ["stars", "above", "a", "blue", "ring"]
    assert cut.mask.all() and cut.ids[-1] == tokenizer.eos_id
    exact = tokenizer.encode_prompt(prompt, len(tokenizer.encode(prompt)) + 2)
    assert not exact.words_lost and exact.mask.all()


def test_fields_of_a_target_are_well_formed(tokenizer):
    encoded, ends = tokenizer.encode_target(["two", "red", "stars"], [1, 0, 1], 20)
    assert ends[0] == 0 and ends[1] == 1 and encoded.ids[encoded.mask][-1] == tokenizer.eos_id
    assert tokenizer.decode(encoded.ids[encoded.mask]) == "two red _ 0 stars"


def test_told_from_sentencepiece_by_content(folder, tokenizer, tmp_path):
    sentences = Tokenizer(train_tokenizer(["a red cat"], 320))
    for original in (sentences, tokenizer):
        (tmp_path / "tokenizer.model").write_bytes(original.model)
        for again in (load_tokenizer(tmp_path / "tokenizer.model"), pickle.loads(pickle.dumps(original))):
            assert type(again) is type(original) and again.model == original.model
            assert again.encode("a red star") == original.encode("a red star")
    assert isinstance(load_tokenizer(folder), ClipTokenizer)


def test_what_is_no_vocabulary(folder, tmp_path):
    with pytest.raises(VocabularyMissing, match="no vocabulary; expected tokenizer.json"):
        load_clip_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="tokenizer.model: not the JSON of a tokenizer"):
        (tmp_path / "tokenizer.model").write_text("{}")
        load_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "vocab.json").write_text("[1]")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="vocab.json, merges.txt: not a byte-pair vocabulary"):
        load_clip_tokenizer(tmp_path)
    tree = json.loads(load_clip_tokenizer(folder).model)
    tree["added_tokens"] = []
    tree["model"]["vocab"].pop(START)
    with pytest.raises(ValueError, match="lacks <.startoftext.>"):
        ClipTokenizer(json.dumps(tree).encode(), "here")


def test_which_vocabulary_fits_which_network(tokenizer):
    size = tokenizer.vocab_size

    def clip(rows, end):
        return ClipBaselineConfig(clip=ClipConfig(text=ClipTextConfig(vocab_size=rows, eos_token_id=end)))

    assert families.vocabulary_problem(clip(size, size - 1), tokenizer) is None
    assert families.vocabulary_problem(clip(size, 2), tokenizer) is None
    assert f"{size} pieces, model.clip.text.vocab_size is only {size - 1}" in families.vocabulary_problem(
        clip(size - 1, 2), tokenizer
    )
    sentences = Tokenizer(train_tokenizer(["a red cat"], 320))
    assert "ends a text with id 1, but this CLIP reads it at 49407" in families.vocabulary_problem(
        clip(49408, 49407), sentences
    )
    assert families.vocabulary_problem(ResNetBaselineConfig(), tokenizer) is None
    assert families.vocabulary_problem(CriticConfig(), sentences) is None


def test_without_its_library(folder, tokenizer, monkeypatch):
    """As in a reader of exported files: the same ids, by the rules of CLIP alone."""
    transformers = pytest.importorskip("transformers")
    transformers.CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(folder / "again")
    stream = np.random.default_rng(0)
    letters = [*"redstarRINGblu'slvm 12!?,._-\t\n\x1c<|>", START, END]
    letters += [*"\u00a0é\u0308ΣΟς\u0130☃日½²\u0939\u093f\U0001f600\u200d"]
    texts = ["".join(stream.choice(letters, stream.integers(1, 25))) for _ in range(400)] + list(PROMPTS)
    texts += ["red" * 2000, END.upper() + "!!", "x" + "".join(map(chr, range(1, 0x250))) + "'LL"]
    for library in (tokenizer, load_clip_tokenizer(folder / "again")):
        assert standalone_problem(library) is None
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "tokenizers", None)
            alone = ClipTokenizer(library.model, "here")
        assert isinstance(alone._tokenizer, BytePairs)
        for name in ("vocab_size", "start_id", "eos_id"):
            assert getattr(alone, name) == getattr(library, name)
        for text in texts:
            ids = library.encode(text)
            assert alone.encode(text) == ids, text
            assert alone.decode(ids[1:-1]) == library.decode(ids[1:-1]), text
        prompt = "two red stars above a blue ring"
        assert alone.encode_prompt(prompt, 9).words_lost == library.encode_prompt(prompt, 9).words_lost != []


def test_byte_pairs_are_joined_by_rank(tokenizer):
    """Not from left to right: in "abc" the pair "bc" comes first."""
    tree = json.loads(tokenizer.model)
    size = tokenizer.vocab_size
    tree["model"]["merges"] = [["b", "c</w>"], ["a", "b"], ["a", "a"], ["aa", "aa"], ["a", "bc</w>"], ["ab", "ab"]]
    merged = ["".join(pair) for pair in tree["model"]["merges"]]
    tree["model"]["vocab"] |= {piece: size + at for at, piece in enumerate(merged)}
    library = ClipTokenizer(json.dumps(tree).encode(), "here")
    alone, ids = BytePairs(library.model), tree["model"]["vocab"]
    assert alone.encode("abc") == [ids["abc</w>"]] and alone.encode("abcc") == [ids["ab"], ids["c"], ids["c</w>"]]
    assert alone.encode("aaaaa abab") == [ids["aaaa"], ids["a</w>"], ids["ab"], ids["a"], ids["b</w>"]]
    stream = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(stream.choice([*"abc"], stream.integers(1, 12)))
        assert alone.encode(text) == library.encode(text), text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t["normalizer"]["normalizers"].pop(), "normalizes texts otherwise than CLIP"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="."), "into words otherwise"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "into words otherwise"),
        (lambda t: t["model"].update(end_of_word_suffix=""), "not of byte pairs with words that end in </w>"),
        (lambda t: t["model"]["merges"].append(["r", "z"]), "lacks 'rz'"),
        (lambda t: t["added_tokens"][0].update(lstrip=True), "takes blanks or word borders into account"),
        (lambda t: t.pop("pre_tokenizer"), "not the JSON of a byte-pair tokenizer"),
    ],
)
def test_other_rules_need_the_library(tokenizer, monkeypatch, change, message):
    tree = json.loads(tokenizer.model)
    change(tree)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=f"^here: .*{message}.*pip install tokenizers"):
        ClipTokenizer(json.dumps(tree).encode(), "here")
