"""The prompt of a scene, the facts that the picture shows instead, and the words that are therefore untrue.

A prompt asserts one or two groups of equal objects ("three red stars") and their relation ("left of"). A planted
misalignment changes the picture, never the prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from rahf.text import split_words

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
NUMBERS = ("no", "one", "two", "three", "four")
#: Each relation and its opposite. Of a phrase such as "left of" only this word can be untrue.
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
#: Kinds of misalignment, each with the probability that it is tried first.
FAULTS = {"shape": 0.24, "colour": 0.24, "count": 0.17, "missing": 0.16, "relation": 0.19}
#: Share of scenes with a misalignment, and of these the share with two.
FAULTY, FAULTY_TWICE = 0.55, 0.25
MAX_OBJECTS = 4

#: Share of all facts that belong to a split. Facts of one split occur in no other.
SPLITS = {"train": 0.8, "dev": 0.1, "test": 0.1}

_RELATION_PHRASES = {
    "left": (("left", "of"), ("to the", "left", "of"), ("on the", "left", "of")),
    "right": (("right", "of"), ("to the", "right", "of"), ("on the", "right", "of")),
    "above": (("above",), ("just", "above"), ("placed", "above")),
    "below": (("below",), ("just", "below"), ("placed", "below")),
}
_OPENINGS = (
    "a photo of",
    "a picture of",
    "an image of",
    "a scene with",
    "a drawing of",
    "look!",
    "here:",
    "we see",
)
_ENDINGS = (
    ", soft light",
    ", studio shot",
    ". Minimal design",
    ", toy-like render",
    ", nothing else",
    ". Simple; clean",
    ', titled "Still life"',
    ", it's lovely",
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Equal objects that a prompt names together."""

    count: int
    colour: str
    shape: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """Groups of objects, and the relation of the first to the second (None: not stated, or only one group)."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def key(self) -> str:
        """One line that names these facts, independent of their wording."""
        parts = [f"{g.count} {g.colour} {g.shape}" for g in self.groups]
        return f" {self.relation or 'and'} ".join(parts)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A prompt, the facts as drawn, and the exact labels.

    `shown.groups` are the groups as drawn (count 0: missing), in the order of `asserted.groups`. `marked` says for each
    group whether its objects are misaligned places.
    """

    prompt: str
    words: tuple[str, ...]
    word_labels: tuple[int, ...]
    content: tuple[bool, ...]  # words that state a fact and could be untrue
    asserted: Facts
    shown: Facts
    faults: tuple[str, ...]
    marked: tuple[bool, ...]


def split_of(facts: Facts) -> str:
    """The split to which these facts belong, by a hash: the same for every seed."""
    digest = hashlib.blake2b(facts.key().encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64
    for name, share in SPLITS.items():
        point -= share
        if point < 0:
            return name
    return name


def draw_plan(rng: np.random.Generator, split: str, texture: str | None) -> Plan:
    """Draws a prompt that belongs to `split`, and its faults.

    Args:
      rng: source of randomness.
      split: one of `SPLITS`.
      texture: adjective of the background, which the prompt may mention (it is always true); or None.
    """
    facts = draw_facts(rng)
    while split_of(facts) != split:
        facts = draw_facts(rng)
    numerals = tuple(group.count > 1 or rng.random() < 0.4 for group in facts.groups)
    shown, faults, marked = plant_faults(rng, facts, numerals)
    chunks = phrase(rng, facts, numerals, texture)
    untrue = untrue_parts(facts, shown, faults)
    words: list[str] = []
    labels: list[int] = []
    content: list[bool] = []
    for text, part in chunks:
        pieces = split_words(text)
        words += pieces
        labels += [0 if part in untrue else 1] * len(pieces)
        content += [part is not None] * len(pieces)
    prompt = "".join(text if text[0] in ",." else " " + text for text, _ in chunks).strip()
    if rng.random() < 0.3:
        prompt, words[0] = prompt[0].upper() + prompt[1:], words[0][0].upper() + words[0][1:]
    return Plan(prompt, tuple(words), tuple(labels), tuple(content), facts, shown, faults, marked)


def draw_facts(rng: np.random.Generator) -> Facts:
    """One group of one to four objects, or two groups of together two to four."""
    double = rng.random() < 0.55
    shapes = rng.permutation(len(SHAPES))[:2]
    colours = rng.permutation(len(COLOURS))[:2]
    if double:
        counts = ((1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))[rng.integers(7)]
        relation = RELATIONS[rng.integers(4)] if rng.random() < 0.85 else None
    else:
        counts, relation = (int(rng.integers(1, MAX_OBJECTS + 1)),), None
    groups = tuple(Group(n, COLOURS[c], SHAPES[s]) for n, c, s in zip(counts, colours, shapes))
    return Facts(groups, relation)


def plant_faults(
    rng: np.random.Generator, facts: Facts, numerals: tuple[bool, ...]
) -> tuple[Facts, tuple[str, ...], tuple[bool, ...]]:
    """Draws faults: the facts that the picture shows instead.

    Returns:
      The facts as drawn; faults as "kind" or "kind:group number"; for each group whether it is a misaligned place.
      Too few or missing objects mark no group: there is no object to point at.
    """
    groups, relation = list(facts.groups), facts.relation
    faults: list[str] = []
    marked = [False] * len(groups)
    count = 0 if rng.random() >= FAULTY else 2 if rng.random() < FAULTY_TWICE else 1
    kinds = rng.choice(list(FAULTS), size=len(FAULTS), replace=False, p=list(FAULTS.values()))
    for kind in kinds:
        if len(faults) == count:
            break
        number = int(rng.integers(len(groups)))
        gone = any(group.count == 0 for group in groups)
        if kind == "relation":
            if relation is not None and not gone:
                others = [r for r in RELATIONS if r not in (relation, OPPOSITE[relation])]
                relation = OPPOSITE[relation] if rng.random() < 0.7 else others[rng.integers(2)]
                marked = [True] * len(groups)
                faults.append("relation")
            continue
        changed = _change(rng, kind, number, facts, groups, numerals, bool(faults))
        if changed is not None:
            more = changed.count > groups[number].count
            marked[number] |= kind in ("shape", "colour") or (kind == "count" and more)
            groups[number] = changed
            faults.append(f"{kind}:{number}")
    return Facts(tuple(groups), relation), tuple(faults), tuple(marked)


def _change(rng, kind, number, facts, groups, numerals, second) -> Group | None:
    """The group with one fact changed, or None if this kind of fault is not possible here."""
    group = groups[number]
    if group.count == 0:
        return None
    if kind == "shape":
        free = [s for s in SHAPES if all(s != g.shape for g in facts.groups)]
        return dataclasses.replace(group, shape=free[rng.integers(len(free))])
    if kind == "colour":
        free = [c for c in COLOURS if all(c != g.colour for g in facts.groups)]
        return dataclasses.replace(group, colour=free[rng.integers(len(free))])
    if kind == "count" and numerals[number]:
        room = MAX_OBJECTS - sum(g.count for g in groups) + group.count
        most = min(room, 3) if len(groups) == 2 else room
        free = [n for n in range(1, most + 1) if n != group.count]
        return dataclasses.replace(group, count=free[rng.integers(len(free))]) if free else None
    if kind == "missing" and len(groups) == 2 and not second:
        return dataclasses.replace(group, count=0)
    return None


def untrue_parts(facts: Facts, shown: Facts, faults: tuple[str, ...]) -> set[tuple[str, int]]:
    """The parts of the prompt, (kind, group number), that the picture contradicts.

    Number, colour and shape of a missing group are untrue; a relation to it counts as true.
    """
    parts: set[tuple[str, int]] = set()
    for fault in faults:
        kind, _, number = fault.partition(":")
        if kind == "missing":
            parts |= {(name, int(number)) for name in ("count", "colour", "shape")}
        else:
            parts.add((kind, int(number or 0)))
    return parts


def phrase(
    rng: np.random.Generator, facts: Facts, numerals: tuple[bool, ...], texture: str | None
) -> list[tuple[str, tuple[str, int] | None]]:
    """Facts in words: chunks of text, each with the part of the facts that it states, or None."""
    chunks: list[tuple[str, tuple[str, int] | None]] = []
    if rng.random() < 0.5:
        chunks.append((_OPENINGS[rng.integers(len(_OPENINGS))], None))
    for number, group in enumerate(facts.groups):
        if number:
            chunks += _link(rng, facts.relation)
        if numerals[number]:
            chunks.append((NUMBERS[group.count], ("count", number)))
        else:
            chunks.append(("an" if group.colour == "orange" else "a", None))
        chunks.append((group.colour, ("colour", number)))
        chunks.append((_plural(group.shape) if group.count > 1 else group.shape, ("shape", number)))
    if texture is not None and rng.random() < 0.35:
        chunks.append((f"on a {texture} background", None))
    if rng.random() < 0.4:
        chunks.append((_ENDINGS[rng.integers(len(_ENDINGS))], None))
    return chunks


def _link(rng: np.random.Generator, relation: str | None) -> list[tuple[str, tuple[str, int] | None]]:
    if relation is None:
        return [("and", None)]
    ways = _RELATION_PHRASES[relation]
    way = ways[rng.integers(len(ways))]
    return [(text, ("relation", 0) if text == relation else None) for text in way]


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")
