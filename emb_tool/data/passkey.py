"""Synthetic long documents, each with one hidden sentence that a query asks for.

They follow LongEmbed (arXiv:2404.12096): at most three words for every four tokens, and the hidden
sentence between two others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

FILLER = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
    "There and back again.",
)  # fmt: skip
"""The haystack of LongEmbed's passkey task."""

WORDS_PER_TOKEN = 0.75

_FIRST = (
    "Ada Boris Clara Dmitri Elena Felix Greta Hugo Iris Jonas Karla Leon Marta Nils Olga Pavel "
    "Quinn Rosa Stefan Thea Ugo Vera Willem Xenia Yusuf Zelda Amir Bianca Carlos Delia"
).split()
_LAST = (
    "Abbott Barlow Castro Dalton Egerton Fraser Galloway Hartman Ibsen Jarvis Keller Lindqvist "
    "Moreau Novak Okafor Petrov Quigley Ramires Sandoval Thornton Ulrich Vasquez Whitaker Yamada "
    "Zielinski Anders Brandt Chandra Duval Eriksen"
).split()
_FACTS = (
    ("{name} keeps the {thing} in the {place} behind the {other}.",
     "Where does {name} keep the {thing}?"),
    ("The best {thing} in the {place} is sold by {name} next to the {other}.",
     "What does {name} sell in the {place}?"),
    ("{name} exchanged a {thing} for a {other} at the {place} last winter.",
     "What did {name} get for the {thing} at the {place}?"),
    ("Every Tuesday {name} repairs a {thing} with a {other} near the {place}.",
     "What does {name} repair near the {place} on Tuesdays?"),
)  # fmt: skip
_THINGS = (
    "violin lantern compass kettle telescope ladder carpet barometer accordion typewriter anchor "
    "candlestick umbrella microscope saddle globe clarinet sundial hammock wheelbarrow"
).split()
_PLACES = (
    "lighthouse orchard monastery quarry boathouse greenhouse windmill vineyard observatory "
    "bakery courthouse ferry harbour library market nursery pavilion railway stable theatre"
).split()


class NeedleSet(NamedTuple):
    """Needles, one per document, and their queries.

    Args:
        sentences: Sentences to hide.
        queries: The query that each sentence answers.
    """

    sentences: list[str]
    queries: list[str]


def make_passkeys(count: int, seed: int) -> NeedleSet:
    """Sentences with a name and five digits each; there are 900 names."""
    rng = random.Random(f"passkey {seed}")
    names = _names(count, rng)
    keys = rng.sample(range(10_000, 100_000), count)
    template = "{0}'s pass key is {1}. Remember it. {1} is the pass key for {0}."
    return NeedleSet(
        [template.format(name, key) for name, key in zip(names, keys, strict=True)],
        [f"what is the passkey for {name}?" for name in names],
    )


def make_facts(count: int, seed: int) -> NeedleSet:
    """Sentences with a person, a thing and a place each."""
    rng = random.Random(f"needle {seed}")
    sentences, queries = [], []
    for i, name in enumerate(_names(count, rng)):
        thing, other = rng.sample(_THINGS, 2)
        words = {"name": name, "thing": thing, "other": other, "place": rng.choice(_PLACES)}
        sentence, query = _FACTS[i % len(_FACTS)]
        sentences.append(sentence.format(**words))
        queries.append(query.format(**words))
    return NeedleSet(sentences, queries)


def _names(count: int, rng: random.Random) -> list[str]:
    return rng.sample([f"{first} {last}" for first in _FIRST for last in _LAST], count)


def split_sentences(texts: Sequence[str]) -> list[str]:
    """Split texts into sentences."""
    sentences = [s for text in texts for s in re.split(r"(?<=[.!?])\s+", text.strip())]
    return [" ".join(s.split()) for s in sentences if s.strip()]


class HaystackDocuments(NamedTuple):
    """Documents of one length.

    Args:
        documents: Texts of the documents.
        ends: Character offset of the end of the needle in each document.
        depths: Position of the needle, as a fraction of the document.
    """

    documents: list[str]
    ends: list[int]
    depths: list[float]


def hide_needles(
    needles: Sequence[str], haystack: Sequence[str], tokens: int, seed: int
) -> HaystackDocuments:
    """Hide each needle in its own document.

    Depths are evenly spaced over the documents, then shuffled.

    Args:
        needles: Sentences to hide.
        haystack: Sentences context them, in order from a random start in each document.
        tokens: Length of a document, by `WORDS_PER_TOKEN`.
        seed: Seed of the starts and depths.
    """
    rng = random.Random(f"hide {seed} {tokens}")
    depths = [(i + 0.5) / len(needles) for i in range(len(needles))]
    rng.shuffle(depths)
    counts = [len(sentence.split()) for sentence in haystack]
    documents, ends, positions = [], [], []
    for needle, depth in zip(needles, depths, strict=True):
        budget = int(tokens * WORDS_PER_TOKEN) - len(needle.split())
        index, context = rng.randrange(len(haystack)), []
        while budget >= counts[index % len(haystack)]:
            context.append(haystack[index % len(haystack)])
            budget -= counts[index % len(haystack)]
            index += 1
        cut = round(depth * len(context))
        before = " ".join([*context[:cut], needle])
        documents.append(" ".join([before, *context[cut:]]))
        ends.append(len(before))
        positions.append((len(before) - len(needle)) / max(len(documents[-1]), 1))
    return HaystackDocuments(documents, ends, positions)
