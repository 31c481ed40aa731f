"""The tokens that a corpus needs to be tokenized as with the full vocabulary.

Let S be a subset of a tokenizer's tokens that contains every token of the corpus. Then

- WordPiece takes the longest piece that matches; a piece that it took is also the longest in S;
- Unigram takes the path with the highest sum of scores; the best of all paths is also the best of
  those through S (ties go to the first path, in S as before). Unknown characters have the lowest of
  all scores minus 10, so a piece with the lowest score is kept;
- BPE repeatedly applies the applicable merge of the highest rank. If S contains the intermediate
  tokens of the merges of the corpus, this merge is in S at every step.
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
"""Texts per call of the tokenizer."""


def special_ids(vocabulary: Vocabulary) -> set[int]:
    """Ids of special tokens, of the post-processor, of the unknown token and of padding."""
    ids = processor_ids(vocabulary)
    for token in vocabulary.data["added_tokens"]:
        if token.get("special"):
            ids.add(vocabulary.added[token["content"]])
    return ids if vocabulary.unknown is None else ids | {vocabulary.unknown}


def required_ids(vocabulary: Vocabulary, *, characters: bool) -> set[int]:
    """Ids that are kept for any corpus.

    Args:
        vocabulary: The tokens.
        characters: Keep all tokens of one character, so that words of these characters are never
            unknown. Bytes are always kept.
    """
    model, pieces = vocabulary.model, vocabulary.pieces
    ids = special_ids(vocabulary)
    if model.get("byte_fallback"):
        ids |= {i for token, i in pieces.items() if _BYTE.fullmatch(token)}
    if vocabulary.kind == "Unigram":
        ids.add(min(range(len(model["vocab"])), key=lambda i: float(model["vocab"][i][1])))
    if vocabulary.kind != "WordLevel" and (characters or _byte_level(vocabulary)):
        start, end = _affixes(vocabulary)
        ids |= {
            i
            for token, i in pieces.items()
            if len(token) == 1 or len(token.removeprefix(start).removesuffix(end)) == 1
        }
    return ids


def _byte_level(vocabulary: Vocabulary) -> bool:
    """Whether the tokenizer works on bytes, represented by 256 characters."""
    parts = (vocabulary.data.get("pre_tokenizer"), vocabulary.data.get("normalizer"))
    return '"type": "ByteLevel"' in json.dumps(parts)


def _affixes(vocabulary: Vocabulary) -> tuple[str, str]:
    """The prefix of pieces inside a word, and the suffix of pieces at its end."""
    model = vocabulary.model
    default = "##" if vocabulary.kind == "WordPiece" else ""
    start = model.get("continuing_subword_prefix", default)
    return start or "", model.get("end_of_word_suffix") or ""


def bpe_ancestors(vocabulary: Vocabulary) -> Callable[[int], set[int]]:
    """A function from an id to the ids of the intermediate tokens of its BPE merges.

    They depend only on the token, since no merge crosses the boundaries of a final token.
    """
    if vocabulary.kind != "BPE":
        return lambda _: set()
    pieces, (start, end) = vocabulary.pieces, _affixes(vocabulary)
    ranks = {pair: rank for rank, pair in enumerate(vocabulary.model["merges"])}
    tokens = {i: token for token, i in pieces.items()}

    def ancestors(i: int) -> set[int]:
        token = tokens.get(i, "")
        core = token.removeprefix(start).removesuffix(end)
        if not core:
            return set()
        symbols = [start + c for c in core]
        symbols[0] = symbols[0] if start and token.startswith(start) else core[0]
        symbols[-1] += end if end and token.endswith(end) else ""
        reached = set(symbols)
        while len(symbols) > 1:
            rank, at = min(
                (ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(symbols))
            )
            if rank == len(ranks):
                return set()  # only reached as a whole word (`ignore_merges`)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1][len(start) :]]
            reached.add(symbols[at])
        return {pieces[symbol] for symbol in reached if symbol in pieces}

    return ancestors


def choose_ids(
    vocabulary: Vocabulary,
    required: Iterable[int],
    requested: Iterable[int],
    size: int | None = None,
) -> set[int]:
    """The ids to keep.

    Args:
        vocabulary: The tokens.
        required: Ids to keep in any case.
        requested: Further ids, most important first.
        size: Maximum number of ids.

    Raises:
        InvalidInput: There are more than `size` required ids.
    """
    ancestors = bpe_ancestors(vocabulary)
    chosen: set[int] = set()
    for i in required:
        chosen |= {i} | ancestors(i)
    if size is not None and len(chosen) > size:
        raise InvalidInput(
            f"size={size:,}: {len(chosen):,} tokens are required (special tokens, single characters"
            " and bytes, those of keep)",
            f"use at least {len(chosen):,}, or drop unused characters with characters=false",
        )
    for i in requested:
        added = {i} if i in chosen else {i} | ancestors(i)
        if size is None or len(chosen | added) <= size:
            chosen |= added
    return chosen


def renumber_ids(vocabulary: Vocabulary, chosen: set[int]) -> dict[int, int]:
    """Map the ids to keep to new ids, in the same order; special ids do not change if they fit.

    Added tokens follow those of the tokenizer's model, where a tokenizer puts them when it is
    loaded; then rows without a token.
    """
    inner = sorted(i for i in vocabulary.pieces.values() if i in chosen)
    known = set(inner)
    outer = sorted(i for i in set(vocabulary.added.values()) & chosen if i not in known)
    pinned = {i for i in special_ids(vocabulary) & known if i < len(inner)}
    remaining = (i for i in inner if i not in pinned)
    order = [position if position in pinned else next(remaining) for position in range(len(inner))]
    order += outer + sorted(chosen - known - set(outer))
    return {old: new for new, old in enumerate(order)}


# -- reading a corpus -----------------------------------------------------------------------------


def encode_ids(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> Iterator[np.ndarray]:
    """Ids of each text, (tokens,) int64.

    Args:
        tokenizer: Tokenizer without truncation and padding.
        texts: The texts.
        special: Whether to add special tokens.
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
    """Occurrences of each id in texts, and ids that affect their tokenization without occurring.

    Args:
        tokenizer: Tokenizer without truncation and padding.
        vocabulary: Its tokens.
        texts: The texts.
        special: Whether to add special tokens.
        advance: Called after each text.

    Returns:
        (ids,) int64 counts, and the first pieces of words that WordPiece abandoned as unknown;
        without these pieces it could split such words.
    """
    counts = np.zeros(max(vocabulary.ids.values()) + 1, np.int64)
    hidden: set[int] = set()
    for text, ids in zip(texts, encode_ids(tokenizer, texts, special), strict=True):
        np.add.at(counts, ids, 1)
        if vocabulary.kind == "WordPiece" and (ids == vocabulary.unknown).any():
            hidden |= _abandoned_pieces(tokenizer, vocabulary, text)
        advance(1)
    return counts, hidden


def _abandoned_pieces(tokenizer: Tokenizer, vocabulary: Vocabulary, text: str) -> set[int]:
    pieces, (start, _) = vocabulary.pieces, _affixes(vocabulary)
    longest = vocabulary.model.get("max_input_chars_per_word", 100)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    abandoned: set[int] = set()
    for i, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        part = text[begin:end] if i == vocabulary.unknown else ""
        if part and tokenizer.normalizer is not None:
            part = tokenizer.normalizer.normalize_str(part)
        words = [(part, None)]
        if part and tokenizer.pre_tokenizer is not None:
            words = tokenizer.pre_tokenizer.pre_tokenize_str(part)
        for word, _ in words:
            position = 0
            while position < len(word) <= longest:
                prefix = start if position else ""
                stops = range(len(word), position, -1)
                stop = next((s for s in stops if prefix + word[position:s] in pieces), None)
                if stop is None:
                    break
                abandoned.add(pieces[prefix + word[position:stop]])
                position = stop
    return abandoned


@dataclass(frozen=True)
class RetokenizationResult:
    """Comparison of tokenizations before and after trimming.

    Args:
        texts: Number of texts.
        differ: Number of texts that are tokenized differently.
        first: The first of these texts.
        tokens: Numbers of tokens before and after.
        unknown: Shares of unknown tokens before and after.
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
    """Compare the tokenizations of texts by two tokenizers.

    Args:
        before: The original tokenizer.
        after: The trimmed tokenizer.
        ids: Map of old to new ids.
        unknown: Old id of the unknown token.
        texts: The texts.
        special: Whether to add special tokens.
        advance: Called after each text.
    """
    new = np.full(max([*before.get_vocab().values(), *ids]) + 1, -1, np.int64)
    new[list(ids)] = list(ids.values())
    differ, first = 0, ""
    tokens, unknown_counts = np.zeros(2, np.int64), np.zeros(2, np.int64)
    pairs = zip(encode_ids(before, texts, special), encode_ids(after, texts, special), strict=True)
    for text, (old, new_ids) in zip(texts, pairs, strict=True):
        if not np.array_equal(new[old], new_ids):
            differ, first = differ + 1, first or text
        tokens += len(old), len(new_ids)
        if unknown is not None:
            unknown_counts += (old == unknown).sum(), (new_ids == ids[unknown]).sum()
        advance(1)
    share = unknown_counts / np.maximum(tokens, 1)
    return RetokenizationResult(
        len(texts), differ, first, (int(tokens[0]), int(tokens[1])),
        (float(share[0]), float(share[1])),
    )  # fmt: skip
