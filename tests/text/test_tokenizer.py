"""Words, pieces and the target sequence."""

import functools
import itertools
import pickle
import random

import numpy as np
import pytest

from rahf.core.errors import TokenizerError, VocabularyMissing
from rahf.text import (
    EOS_ID,
    PAD_ID,
    Tokenizer,
    align_labels,
    load_tokenizer,
    parse_target,
    split_words,
    train_tokenizer,
)

PROMPTS = [
    "a red cat on a blue mat",
    "two dogs, and one green bird!",
    "the 3 yellow circles: under a (small) roof",
]


@pytest.fixture(scope="module")
def own():
    """A vocabulary made from a few prompts."""
    return Tokenizer(train_tokenizer(PROMPTS, 400), "own")


@pytest.fixture(scope="module")
def t5(shared):
    return load_tokenizer(shared / "data" / "t5" / "spiece.model")


@pytest.fixture(params=["own", "t5"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


# Words


@pytest.mark.parametrize("separator", list(',.?!":; '))
def test_each_separator_splits(separator):
    assert split_words(f"cat{separator}dog") == ["cat", "dog"]
    assert split_words(f"{separator}cat{separator}{separator} dog{separator}") == ["cat", "dog"]


@pytest.mark.parametrize("inside", ["\n", "\t", "-", "(", ")", "'", "_", "/", "\u00a0", "，", "’", "|"])
def test_nothing_else_splits(inside):
    assert split_words(f"cat{inside}dog") == [f"cat{inside}dog"]


def test_prompts_without_words():
    assert split_words("") == split_words(' ,.?!":; ') == []
    assert split_words("it's a (tiny) well-made\ncat.") == ["it's", "a", "(tiny)", "well-made\ncat"]


# The vocabulary


def test_t5_ids_of_the_example_in_the_paper(t5):
    target, ends = t5.encode_target(["a", "yellow", "cat"], [1, 0, 1], 10)
    assert target.ids.tolist() == [3, 9, 4459, 834, 632, 1712, EOS_ID, PAD_ID, PAD_ID, PAD_ID]
    assert target.mask.tolist() == [True] * 7 + [False] * 3
    assert ends == [1, 2, 5]  # the last piece of each word, before its suffix
    assert t5.decode(target.ids) == "a yellow_0 cat"
    assert t5.suffix_ids == [834, 632] and t5.vocab_size == 32000


def test_both_sequences_share_their_words(tokenizer):
    words, labels = ["Three", "x-ray", "猫", "2", "dogs'"], [0, 1, 0, 0, 1]
    target, _ = tokenizer.encode_target(words, labels, 64)
    plain, ends = tokenizer.encode_target(words, None, 64)
    rest = target.ids[target.mask].tolist()
    for start, end, label in zip([0, *(e + 1 for e in ends)], ends, labels):
        pieces = plain.ids[start : end + 1].tolist() + (tokenizer.suffix_ids if not label else [])
        assert rest[: len(pieces)] == pieces
        rest = rest[len(pieces) :]
    assert rest == [EOS_ID]
    assert plain.ids[ends[-1] + 1] == EOS_ID


def test_target_keeps_whole_words(t5):
    words, labels = ["a", "yellow", "cat"], [1, 0, 1]  # 2 + 3 + 1 pieces and the end
    expected = {7: [1, 2, 5], 6: [1, 2, -1], 5: [1, -1, -1], 3: [1, -1, -1], 2: [-1] * 3, 1: [-1] * 3}
    for length, ends in expected.items():
        target, word_ends = t5.encode_target(words, labels, length)
        assert word_ends == ends
        assert target.words_lost == [w for w, e in zip(words, ends) if e < 0]
        assert target.ids.shape == target.mask.shape == (length,)
        assert target.ids[target.mask][-1] == EOS_ID
        assert t5.decode(target.ids) == " ".join(["a", "yellow_0", "cat"][: 3 - ends.count(-1)])


def test_a_dropped_word_is_not_followed_by_shorter_ones(t5):
    target, ends = t5.encode_target(["a", "photorealistic", "cat"], [1, 1, 1], 4)
    assert ends == [1, -1, -1] and target.words_lost == ["photorealistic", "cat"]


def test_word_of_blanks_keeps_its_place(tokenizer):
    plain, ends = tokenizer.encode_target(["a", "\n", "cat"], None, 16)
    assert ends[1] == ends[0] + 1 < ends[2]
    assert not set(plain.ids[: ends[2] + 1]) & {PAD_ID, EOS_ID}


def test_target_without_words(own):
    target, ends = own.encode_target([], [], 3)
    assert target.ids.tolist() == [EOS_ID, PAD_ID, PAD_ID] and ends == []


def test_target_refuses_other_numbers_of_labels(own):
    with pytest.raises(ValueError, match="3 words but 2 labels"):
        own.encode_target(["a", "red", "cat"], [1, 0], 10)


def test_prompt_that_fits(t5):
    encoded = t5.encode_prompt("a yellow cat", 6)
    assert encoded.ids.tolist() == [3, 9, 4459, 1712, EOS_ID, PAD_ID]
    assert encoded.mask.tolist() == [True] * 5 + [False]
    assert encoded.ids.dtype == np.int32 and encoded.words_lost == []
    assert t5.encode_prompt("a yellow cat", 5).words_lost == []


def test_prompt_that_is_cut(t5):
    encoded = t5.encode_prompt("a yellow cat", 4)
    assert encoded.ids.tolist() == [3, 9, 4459, EOS_ID] and encoded.words_lost == ["cat"]
    assert t5.encode_prompt("a yellow cat", 2).words_lost == ["a", "yellow", "cat"]  # half of "a" is no word
    assert t5.encode_prompt("a yellow cat", 1).ids.tolist() == [EOS_ID]


def test_a_word_cut_in_its_middle_is_lost(t5):
    pieces = t5.encode("a photorealistic")
    assert len(pieces) > 4  # "a" has 2
    for length in range(4, len(pieces) + 1):
        assert t5.encode_prompt("a photorealistic cat", length).words_lost == ["photorealistic", "cat"]
    assert t5.encode_prompt("a photorealistic cat", len(pieces) + 1).words_lost == ["cat"]


@pytest.mark.parametrize("prompt", ["a red cat", "  ﬁne…  été\n\n猫, (dogs) \t!! b", "猫犬 猫 ½ 'x' ... _0 a\u200bb"])
def test_words_lost_at_every_length(tokenizer, prompt):
    words, ids = split_words(prompt), tokenizer.encode(prompt)
    lost = [tokenizer.encode_prompt(prompt, n).words_lost for n in range(1, len(ids) + 3)]
    for words_lost in lost:
        assert words_lost == words[len(words) - len(words_lost) :]
    assert all(len(a) >= len(b) for a, b in zip(lost, lost[1:]))
    assert lost[len(ids)] == lost[-1] == []  # the end of sequence needs a place, too
    assert lost[0] == words and lost[len(ids) - 1] == words[-1:]


def test_decode_stops_at_the_end_and_ignores_foreign_ids(t5):
    assert t5.decode([3, 9, 0, 1712, 32100, 1, 4459]) == "a cat"
    assert t5.decode(np.array([1, 1712])) == ""


def test_a_tokenizer_travels_to_workers(own):
    copy = pickle.loads(pickle.dumps(own))
    assert copy.model == own.model and copy.source == "own"
    assert copy.encode("a red cat") == own.encode("a red cat")


def test_not_a_vocabulary(tmp_path):
    (tmp_path / "x.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="x.model: not a SentencePiece model"):
        load_tokenizer(tmp_path / "x.model")
    with pytest.raises(VocabularyMissing, match="y.model: no such vocabulary"):
        load_tokenizer(tmp_path / "y.model")


def test_special_ids_must_be_those_of_t5():
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS), model_writer=out, vocab_size=50, model_type="bpe", minloglevel=2
    )
    with pytest.raises(ValueError, match=r"foreign: .* are \(-1, 2, 0\), expected \(0, 1, 2\)"):
        Tokenizer(out.getvalue(), "foreign")


# A vocabulary of one's own


def test_training_is_deterministic(own):
    assert train_tokenizer(PROMPTS, 400) == own.model
    assert train_tokenizer(PROMPTS[::-1] + PROMPTS, 400) == own.model  # neither order nor repetition counts
    assert train_tokenizer(["other words entirely"], 400) != own.model


def test_training_stays_below_the_limit(own):
    assert own.vocab_size <= 400
    assert Tokenizer(train_tokenizer(["cat"], 1)).vocab_size <= 320  # bytes and a few pieces
    with pytest.raises(ValueError, match="no prompt has any text"):
        train_tokenizer(["", " "])


def test_more_characters_than_pieces():
    """Prompts in Chinese: the rarest characters are written as bytes, and every text comes back."""
    stream = random.Random(0)
    prompts = ["".join(chr(0x4E00 + stream.randrange(900)) for _ in range(12)) for _ in range(400)]
    tokenizer = Tokenizer(train_tokenizer(prompts))
    assert tokenizer.vocab_size <= 1024
    assert tokenizer.decode(tokenizer.encode(prompts[0] + "\u732b a")) == prompts[0] + "\u732b a"
    pieces = [len(tokenizer.encode(prompt)) for prompt in prompts]
    assert 12 <= sum(pieces) / 400 < 20  # most characters have a piece of their own; as bytes alone it would be 36
    assert tokenizer.suffix_ids


@pytest.mark.parametrize("prompt", ["a red cat " * 500, "\u732b\u3068\u72ac" * 2000, "x" * 9000])
def test_prompts_that_sentencepiece_would_leave_out(prompt):
    tokenizer = Tokenizer(train_tokenizer([prompt]))
    assert len(tokenizer.encode(prompt[:9])) <= 6  # learnt: no bytes


def test_what_sentencepiece_cannot_learn_from_is_said_in_one_line():
    with pytest.raises(TokenizerError, match=r"cannot train a vocabulary of 1024 pieces on 1 prompts \(.*--tokenizer"):
        train_tokenizer(["\u2581"])


@pytest.mark.parametrize(
    "word", ["cat", "zebra", "2", "v20", "x_", "_", "_0", "猫", "été", "(", "-", "it's", "🦜", "0"]
)
def test_any_word_can_carry_the_suffix(tokenizer, word):
    plain = tokenizer.encode(word)
    assert tokenizer.encode(word + "_0") == plain + tokenizer.suffix_ids


@pytest.mark.parametrize("text", ["zebra QUICK", "žluťoučký kůň", "猫と犬", "🦜 42 %$#@", "it's (well-made)"])
def test_own_vocabulary_writes_everything(own, text):
    assert own.decode(own.encode(text)) == text


# Labels of generated text


def test_parse_target():
    assert parse_target("a yellow_0 cat") == [("a", 1), ("yellow", 0), ("cat", 1)]
    assert parse_target("  x_0_0 _0  snake_01 _ ") == [("x_0", 0), ("_0", 1), ("snake_01", 1), ("_", 1)]
    assert parse_target("") == []


def test_align_identical():
    words = ["a", "yellow", "cat"]
    assert align_labels(words, parse_target("a yellow_0 cat")) == [1, 0, 1]
    assert align_labels(words, parse_target("A Yellow_0 CAT_0")) == [1, 0, 0]
    assert align_labels([], parse_target("a_0")) == []
    assert align_labels(words, []) == [1, 1, 1]


def test_align_insertion_deletion_substitution():
    words = ["a", "big", "yellow", "cat"]
    assert align_labels(words, parse_target("a_0 big furry_0 fat_0 yellow cat_0")) == [0, 1, 1, 0]
    assert align_labels(words, parse_target("big_0 cat_0")) == [1, 0, 1, 0]
    assert align_labels(words, parse_target("a big_0 green_0 cat")) == [1, 0, 1, 1]  # "green" is not "yellow"


def test_align_repeated_words():
    words = ["a", "cat", "and", "a", "dog"]
    assert align_labels(words, parse_target("a_0 cat and a dog")) == [0, 1, 1, 1, 1]
    assert align_labels(words, parse_target("a cat and a_0 dog")) == [1, 1, 1, 0, 1]
    assert align_labels(words, parse_target("and a_0 dog_0")) == [1, 1, 1, 0, 0]


def test_align_forgives_what_the_vocabulary_normalises(own):
    words = ["Well-made\ncat", "dog"]
    text = own.decode(own.encode_target(["Well-made\ncat"], [0], 40)[0].ids)
    assert align_labels(words, [("well-madecat", 0), ("dog", 1)]) == [0, 1]
    assert text.replace(" ", "").endswith("cat_0")


def optimal_labels(words, decoded):
    """All labelings that some alignment of minimal edit distance gives, by trying every alignment."""

    @functools.cache
    def best(i, j):
        if i == len(words) or j == len(decoded):
            cost = len(words) - i + len(decoded) - j
            return cost, frozenset([(1,) * (len(words) - i)])
        match = words[i] == decoded[j][0]
        options = [(match, i + 1, j + 1), (None, i + 1, j), (None, i, j + 1)]
        results = []
        for kind, a, b in options:
            cost, rest = best(a, b)
            label = () if a == i else (decoded[j][1],) if kind else (1,)
            results.append((cost + (not kind), frozenset(label + r for r in rest)))
        least = min(cost for cost, _ in results)
        return least, frozenset().union(*(labels for cost, labels in results if cost == least))

    return best(0, 0)[1]


def test_align_is_of_minimal_edit_distance():
    rng = np.random.default_rng(0)
    ambiguous = 0
    for _ in range(400):
        words = [str(w) for w in rng.choice(list("abc"), rng.integers(0, 7))]
        decoded = [(str(w), int(rng.integers(0, 2))) for w in rng.choice(list("abcd"), rng.integers(0, 7))]
        expected = optimal_labels(tuple(words), tuple(decoded))
        assert tuple(align_labels(words, decoded)) in expected
        ambiguous += len(expected) > 1
    assert ambiguous < 300  # or else the reference would accept anything


def test_a_generated_target_gives_its_labels_back(tokenizer):
    words = split_words("two dogs, and one green bird under (a) roof")
    for labels in itertools.islice(itertools.product([0, 1], repeat=len(words)), 0, None, 37):
        target, _ = tokenizer.encode_target(words, labels, 64)
        assert align_labels(words, parse_target(tokenizer.decode(target.ids))) == list(labels)


#: White space and its like, what NFKC changes, what a vocabulary lacks, the suffix itself, and plain letters.
_CHARACTERS = [
    *"aabbcC019_-()'",
    *"\n\t\xa0\u3000\u200b\u2028\x85\x1c\ufeff",
    *"①ｶﾞＡﬁ½İß…",
    *"日本😀é",
    "e\u0301",
    "_0",
    "<unk>",
    "</s>",
    "▁",
    "⁇",
]


def test_a_perfect_target_comes_back_perfect_for_every_prompt(tokenizer):
    stream = np.random.default_rng(0)
    for _ in range(300):
        size = int(stream.integers(1, 40))
        prompt = "".join(stream.choice([*_CHARACTERS, " ", " ", ",", "."], size))
        words = split_words(prompt)
        labels = stream.integers(0, 2, len(words)).tolist()
        target, _ = tokenizer.encode_target(words, labels, 400)
        assert tokenizer.target_labels(words, target.ids) == labels, (prompt, tokenizer.decode(target.ids))


@pytest.mark.parametrize("inside", ["\n", "\t", "\xa0", "\u3000", "①", "\u200b", "_0"])
def test_words_with_characters_that_the_vocabulary_changes(own, inside):
    words = ["a", f"red{inside}cat", "dog", inside]
    for labels in itertools.product([0, 1], repeat=4):
        target, _ = own.encode_target(words, labels, 64)
        assert own.target_labels(words, target.ids) == list(labels)
    shorter, _ = own.encode_target(words[1:3], [0, 0], 64)
    assert own.target_labels(words[:3], shorter.ids) == [1, 0, 0]  # a word that was left out counts as aligned
