"""Which tokens a corpus needs, so that it is tokenised with them as it was with all of them.

Let S be a subset of a tokenizer's tokens that holds every token of the corpus. Then

- WordPiece takes the longest piece that fits, and one that it took is the longest in S too;
- Unigram takes the path with the highest sum of scores, and the best of all paths is the best of
  those through S (ties go to the path met first, in S as before). What no piece covers scores the
  lowest of all scores less 10, so a piece with that lowest score stays;
- BPE applies the first of its merges that applies, again and again. If S holds the tokens that the
  merges of the corpus pass through, the first that applies is among those kept at every step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from emb_tool.checkpoint.tokenizer_files import Vocabulary
from emb_tool.compress.token_ids import processor_ids
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_CHUNK = 1024
"""Texts that are tokenised at a time."""


def special_ids(vocabulary: Vocabulary) -> set[int]:
    """Ids that mean something: special tokens, what surrounds a text, the unknown and padding."""
    found = processor_ids(vocabulary)
    for token in vocabulary.data["added_tokens"]:
        if token.get("special"):
            found.add(vocabulary.added[token["content"]])
    return found if vocabulary.unknown is None else found | {vocabulary.unknown}


def required_ids(vocabulary: Vocabulary, *, characters: bool) -> set[int]:
    """Ids that stay whatever the corpus is.

    Args:
        vocabulary: The tokens.
        characters: Keep all tokens of one character, so that a word of such characters is never
            unknown. Bytes are always kept.
    """
    model, pieces = vocabulary.model, vocabulary.pieces
    found = special_ids(vocabulary)
    if model.get("byte_fallback"):
        found |= {i for token, i in pieces.items() if _BYTE.fullmatch(token)}
    if vocabulary.kind == "Unigram":
        found.add(min(range(len(model["vocab"])), key=lambda i: float(model["vocab"][i][1])))
    if vocabulary.kind != "WordLevel" and (characters or _byte_level(vocabulary)):
        start, end = _marks(vocabulary)
        found |= {
            i
            for token, i in pieces.items()
            if len(token) == 1 or len(token.removeprefix(start).removesuffix(end)) == 1
        }
    return found


def _byte_level(vocabulary: Vocabulary) -> bool:
    """Whether text becomes the 256 characters that stand for bytes."""
    parts = (vocabulary.data.get("pre_tokenizer"), vocabulary.data.get("normalizer"))
    return '"type": "ByteLevel"' in json.dumps(parts)


def _marks(vocabulary: Vocabulary) -> tuple[str, str]:
    """What a piece inside a word begins with, and what one at its end ends with."""
    model = vocabulary.model
    default = "##" if vocabulary.kind == "WordPiece" else ""
    start = model.get("continuing_subword_prefix", default)
    return start or "", model.get("end_of_word_suffix") or ""


def bpe_ancestors(vocabulary: Vocabulary) -> Callable[[int], set[int]]:
    """A function from an id to the ids that BPE passes through on the way to it.

    They depend on the token alone: had a merge crossed its ends, it would not have come about.
    """
    if vocabulary.kind != "BPE":
        return lambda _: set()
    pieces, (start, end) = vocabulary.pieces, _marks(vocabulary)
    ranks = {pair: rank for rank, pair in enumerate(vocabulary.model["merges"])}
    tokens = {i: token for token, i in pieces.items()}

    def walk(i: int) -> set[int]:
        token = tokens.get(i, "")
        core = token.removeprefix(start).removesuffix(end)
        if not core:
            return set()
        symbols = [start + c for c in core]
        symbols[0] = symbols[0] if start and token.startswith(start) else core[0]
        symbols[-1] += end if end and token.endswith(end) else ""
        seen = set(symbols)
        while len(symbols) > 1:
            rank, at = min(
                (ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(symbols))
            )
            if rank == len(ranks):
                return set()  # it is only ever found whole (`ignore_merges`)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1][len(start) :]]
            seen.add(symbols[at])
        return {pieces[symbol] for symbol in seen if symbol in pieces}

    return walk


def choose_ids(
    vocabulary: Vocabulary, must: Iterable[int], wanted: Iterable[int], size: int | None = None
) -> set[int]:
    """The ids to keep.

    Args:
        vocabulary: The tokens.
        must: Ids that stay.
        wanted: Further ids, the most important first.
        size: How many ids there may be.

    Raises:
        InvalidInput: More than `size` must stay.
    """
    walk = bpe_ancestors(vocabulary)
    kept: set[int] = set()
    for i in must:
        kept |= {i} | walk(i)
    if size is not None and len(kept) > size:
        raise InvalidInput(
            f"size={size:,}: {len(kept):,} tokens must stay (special ones, single characters and"
            " bytes, those of keep)",
            f"at least {len(kept):,}, or drop characters that do not occur: characters=false",
        )
    for i in wanted:
        more = {i} if i in kept else {i} | walk(i)
        if size is None or len(kept | more) <= size:
            kept |= more
    return kept


def renumber_ids(vocabulary: Vocabulary, kept: set[int]) -> dict[int, int]:
    """New ids for those that are kept, in their order; special ids stay what they are if they fit.

    Tokens outside the tokenizer's model come after it, since that is where a tokenizer puts them
    when it is read; after them rows that no token has.
    """
    inner = sorted(i for i in vocabulary.pieces.values() if i in kept)
    known = set(inner)
    outer = sorted(i for i in set(vocabulary.added.values()) & kept if i not in known)
    pinned = {i for i in special_ids(vocabulary) & known if i < len(inner)}
    rest = (i for i in inner if i not in pinned)
    order = [place if place in pinned else next(rest) for place in range(len(inner))]
    order += outer + sorted(kept - known - set(outer))
    return {old: new for new, old in enumerate(order)}


# -- reading a corpus -----------------------------------------------------------------------------


def encode_ids(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> Iterator[np.ndarray]:
    """Ids of each text, (tokens,) int64.

    Args:
        tokenizer: Neither cuts nor pads.
        texts: The texts.
        special: Whether special tokens surround them.
    """
    for begin in range(0, len(texts), _CHUNK):
        chunk = list(texts[begin : begin + _CHUNK])
        for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=special):
            yield np.array(encoding.ids, np.int64)


def count_ids(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    texts: Sequence[str],
    special: bool,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, set[int]]:
    """How often each id occurs in texts, and ids that they need without showing them.

    Args:
        tokenizer: Neither cuts nor pads.
        vocabulary: Its tokens.
        texts: The texts.
        special: Whether special tokens surround them.
        advance: Called after each text.

    Returns:
        (ids,) int64 counts, and the pieces with which WordPiece began words that it then gave up:
        without them it would come to another end.
    """
    counts = np.zeros(max(vocabulary.ids.values()) + 1, np.int64)
    hidden: set[int] = set()
    for text, ids in zip(texts, encode_ids(tokenizer, texts, special), strict=True):
        np.add.at(counts, ids, 1)
        if vocabulary.kind == "WordPiece" and (ids == vocabulary.unknown).any():
            hidden |= _given_up(tokenizer, vocabulary, text)
        advance(1)
    return counts, hidden


def _given_up(tokenizer: Tokenizer, vocabulary: Vocabulary, text: str) -> set[int]:
    pieces, (start, _) = vocabulary.pieces, _marks(vocabulary)
    longest = vocabulary.model.get("max_input_chars_per_word", 100)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    found: set[int] = set()
    for i, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        part = text[begin:end] if i == vocabulary.unknown else ""
        if part and tokenizer.normalizer is not None:
            part = tokenizer.normalizer.normalize_str(part)
        words = [(part, None)]
        if part and tokenizer.pre_tokenizer is not None:
            words = tokenizer.pre_tokenizer.pre_tokenize_str(part)
        for word, _ in words:
            at = 0
            while at < len(word) <= longest:
                mark = start if at else ""
                stops = range(len(word), at, -1)
                stop = next((s for s in stops if mark + word[at:s] in pieces), None)
                if stop is None:
                    break
                found.add(pieces[mark + word[at:stop]])
                at = stop
    return found


@dataclass(frozen=True)
class RetokenizationResult:
    """What becomes of texts under new ids.

    Args:
        texts: How many.
        differ: Those whose ids are not the old ones renumbered.
        first: The first of those.
        tokens: Tokens before and after.
        unknown: Share of them that are the unknown token, before and after.
    """

    texts: int
    differ: int
    first: str
    tokens: tuple[int, int]
    unknown: tuple[float, float]


def compare_tokenizations(
    before: Tokenizer,
    after: Tokenizer,
    ids: Mapping[int, int],
    unknown: int | None,
    texts: Sequence[str],
    special: bool,
    advance: Callable[[int], None],
) -> RetokenizationResult:
    """Tokenise texts both ways.

    Args:
        before: The tokenizer as it was.
        after: The tokenizer as it is written.
        ids: Old id to new.
        unknown: Old id of the unknown token.
        texts: The texts.
        special: Whether special tokens surround them.
        advance: Called after each text.
    """
    new = np.full(max([*before.get_vocab().values(), *ids]) + 1, -1, np.int64)
    new[list(ids)] = list(ids.values())
    differ, first = 0, ""
    tokens, lost = np.zeros(2, np.int64), np.zeros(2, np.int64)
    pairs = zip(encode_ids(before, texts, special), encode_ids(after, texts, special), strict=True)
    for text, (old, found) in zip(texts, pairs, strict=True):
        if not np.array_equal(new[old], found):
            differ, first = differ + 1, first or text
        tokens += len(old), len(found)
        if unknown is not None:
            lost += (old == unknown).sum(), (found == ids[unknown]).sum()
        advance(1)
    share = lost / np.maximum(tokens, 1)
    return RetokenizationResult(
        len(texts), differ, first, (int(tokens[0]), int(tokens[1])),
        (float(share[0]), float(share[1])),
    )  # fmt: skip
