"""Trimming the vocabulary: the rows of tokens that never come are left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from emb_tool.checkpoint.result_cache import Result
from emb_tool.compress.step import CompressStep
from emb_tool.compress.vocab_tokens import VocabularyTokens, check_padding
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.fields import FlagInfo
from emb_tool.method import TextList
from emb_tool.registry import did_you_mean

if TYPE_CHECKING:
    from emb_tool.checkpoint.tokenizer_files import Vocabulary
    from emb_tool.compress.calibration import CalibrationContext

_HEAD = re.compile(r"[^ ]* ?[^ ]*")
"""The first words of a text: a prompt may change how they are tokenised, no others."""


FEW_TEXTS = 2000
"""Texts to count tokens in; of fewer, tokens are lost that others of their kind need."""

SPLIT_WARNING = 0.01
"""Share of more tokens in held-out texts that is warned of."""


class Vocab(CompressStep):
    """W' = W[kept]: the token table without the rows of tokens that texts like these do not need.

    What is kept is so chosen that every text of the corpus is tokenised as before, under new ids,
    and so has the same vector to the bit; other texts fall back on shorter pieces, down to single
    characters and bytes.
    """

    name: ClassVar[str] = "vocab"
    paper: ClassVar[str] = "arXiv:2305.15020"
    stage: ClassVar[str] = "vocabulary"
    calibrated: ClassVar[bool] = True

    min_count: Annotated[
        int, Field(ge=1, description="keep tokens that occur so often in the texts")
    ] = 1
    size: Annotated[
        int | None, Field(ge=1, description="keep so many at most, the most frequent")
    ] = None
    list: Annotated[
        str | None,
        Field(description="file of the tokens to keep, one a line [those that occur in the texts]"),
        FlagInfo(metavar="PATH"),
    ] = None
    keep: Annotated[
        TextList,
        Field(description="further tokens to keep, as the vocabulary spells them"),
        FlagInfo(metavar="TOKEN"),
    ] = ()
    characters: Annotated[
        bool,
        Field(description="keep all single characters, so that words of these stay known"),
    ] = True

    @model_validator(mode="after")
    def _whole(self) -> Vocab:
        if self.list is not None and self.min_count > 1:
            raise ValueError("min_count chooses by the texts, list by a file: give one of them")
        return self

    def plan(self, draft: CheckpointEditor) -> None:
        """Refuse what headers and the tokenizer's files tell; the texts decide how much is left."""
        model = VocabularyTokens.of(draft)
        must = self._must(model)
        wanted = _listed(self.list, model.vocabulary)
        if self.size is not None or wanted is not None:
            from emb_tool.compress.vocabulary import choose_ids

            kept = choose_ids(model.vocabulary, must, wanted or (), self.size)
            most = len(kept) if self.size is None or wanted is not None else self.size
        else:
            most = len(model.vocabulary.ids)
        draft.notes.append(
            f"vocab: at most {most:,} of {model.count:,} ids are kept; the texts decide"
        )

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, work: CalibrationContext
    ) -> None:
        """Count, choose, renumber; then tokenise the texts both ways."""
        model = VocabularyTokens.of(draft)
        found = work.result(draft, "vocabularies", lambda: self._choose(draft, model, work))
        ids = {old: new for new, old in enumerate(found.tensors["kept"].tolist())}
        draft.notes = [*before.notes]  # in the place of what `plan` could say
        model.cut(draft, ids)
        self._tell(draft, model.count, len(ids), found.facts)
        self._warn(work, found.facts["tokens"])

    def _choose(
        self, draft: CheckpointEditor, model: VocabularyTokens, work: CalibrationContext
    ) -> Result:
        """The old ids in the order of the new, and what becomes of the texts under them."""
        import torch

        from emb_tool.compress import vocabulary as ops

        texts, heads = _inputs(draft, work.texts)
        unseen, _ = _inputs(draft, work.unseen)
        inputs = texts + heads
        with work.progress.task("counting tokens", len(inputs), "texts") as advance:
            counts, hidden = ops.count_ids(
                model.tokenizer, model.vocabulary, inputs, model.special, advance
            )
        wanted = _listed(self.list, model.vocabulary)
        exact = wanted is None and self.min_count == 1
        if wanted is None:
            wanted = [int(i) for i in (counts >= self.min_count).nonzero()[0]]
            wanted += sorted(hidden) if exact else []
        wanted.sort(key=lambda i: (-int(counts[i]), i))
        kept = ops.choose_ids(model.vocabulary, self._must(model), wanted, self.size)
        exact = exact and kept.issuperset(wanted)
        ids = ops.renumber_ids(model.vocabulary, kept)
        check_padding(draft, ids)
        cut = draft.copy()
        model.cut(cut, ids)
        after = VocabularyTokens.of(cut)
        with work.progress.task("checking tokens", len(inputs) + len(unseen), "texts") as advance:
            corpus, trial = (
                ops.compare_tokenizations(
                    model.tokenizer, after.tokenizer, ids, model.vocabulary.unknown, given,
                    model.special, advance,
                )
                for given in (inputs, unseen)
            )  # fmt: skip
        if exact and corpus.differ:
            raise InvalidInput(
                f"vocab: {corpus.differ:,} of {len(inputs):,} texts would be tokenised"
                f" differently, the first is {corpus.first[:80]!r}",
                "leave such texts out, or accept it: with list, size or min_count=2",
            )
        return Result({"kept": torch.tensor([*ids])}, asdict(trial))

    def _must(self, model: VocabularyTokens) -> set[int]:
        from emb_tool.compress.vocabulary import required_ids

        ids = model.vocabulary.ids
        for token in self.keep:
            if token not in ids:
                raise InvalidInput(
                    f"keep: the vocabulary has no {token!r}", did_you_mean(token, ids)
                )
        fixed = required_ids(model.vocabulary, characters=self.characters)
        return fixed | model.named | {ids[token] for token in self.keep}

    def _warn(self, work: CalibrationContext, tokens: Sequence[int]) -> None:
        """Say so where other texts of this kind fall apart, or may."""
        if self.list is None and len(work.texts) < FEW_TEXTS:
            work.progress.warn(
                f"vocab: {len(work.texts):,} texts are few to count tokens in; texts unlike them"
                f" fall apart: give some {FEW_TEXTS:,}, or the tokens themselves with list=FILE"
            )
        old, new = tokens
        if new > (1 + SPLIT_WARNING) * old:
            work.progress.warn(
                f"vocab: held-out texts have {new / old - 1:.1%} more tokens than before, since"
                " tokens that they need are gone; give more texts like those to be encoded"
            )

    def _tell(
        self, draft: CheckpointEditor, before: int, after: int, trial: Mapping[str, Any]
    ) -> None:
        share = " -> ".join(f"{x:.3%}" for x in trial["unknown"])
        old, new = trial["tokens"]
        said = "no text is held out to tell what becomes of others"
        if trial["texts"]:
            said = (
                f"{trial['differ']:,} of {trial['texts']:,} held-out texts are tokenised"
                f" differently; unknown tokens {share}; tokens {old:,} -> {new:,}"
            )
        draft.notes.append(f"vocab: {before:,} ids become {after:,}; {said}")
        draft.facts["vocab"] = {
            "ids": [before, after], "texts": trial["texts"], "texts_differ": trial["differ"],
            "tokens": [old, new], "unknown_share": [*trial["unknown"]],
        }  # fmt: skip


def _listed(file: str | None, vocabulary: Vocabulary) -> list[int] | None:
    """The ids of the tokens in a file, in its order."""
    if file is None:
        return None
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"list {path}: {error}", "a text file, one token a line") from None
    ids = vocabulary.ids
    found = [ids[line] for line in dict.fromkeys(lines) if line in ids]
    if not found:
        raise InvalidInput(
            f"list {path}: none of its {len(lines):,} lines is a token of this model",
            "tokens as the vocabulary spells them: " + ", ".join([*ids][-5:]),
        )
    return found


def _inputs(draft: CheckpointEditor, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the tokenizer is given: the texts, and their beginnings behind each prompt."""
    prompts = dict.fromkeys(filter(None, draft.layout.prompts.values()))
    begins = dict.fromkeys(match[0] for text in texts if (match := _HEAD.match(text)))
    found, behind = [*texts], [prompt + begin for prompt in prompts for begin in begins]
    if draft.layout.modules[0].config.get("do_lower_case"):  # sentence-transformers' own
        return [text.lower() for text in found], [text.lower() for text in behind]
    return found, behind
