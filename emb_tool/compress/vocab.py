"""Vocabulary trimming: remove the rows of tokens that do not occur in the texts."""

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
"""The first words of a text, whose tokenization may depend on a prompt before them."""


MIN_TEXTS = 2000
"""Number of texts below which there is a warning, since needed tokens may not occur in them."""

SPLIT_WARNING = 0.01
"""Relative increase of tokens in held-out texts above which there is a warning."""


class Vocab(CompressStep):
    """W' = W[kept]: the token table without the rows of tokens that the texts do not need.

    The kept tokens are chosen so that every text of the corpus is tokenized as before, under new
    ids, and has a bit-identical vector. Other texts may be split into shorter tokens, down to
    single characters and bytes.
    """

    name: ClassVar[str] = "vocab"
    paper: ClassVar[str] = "arXiv:2305.15020"
    stage: ClassVar[str] = "vocabulary"
    calibrated: ClassVar[bool] = True

    min_count: Annotated[
        int, Field(ge=1, description="keep tokens that occur at least this often in the texts")
    ] = 1
    size: Annotated[
        int | None, Field(ge=1, description="maximum number of tokens, the most frequent are kept")
    ] = None
    list: Annotated[
        str | None,
        Field(
            description="file of the tokens to keep, one per line [those that occur in the texts]"
        ),
        FlagInfo(metavar="PATH"),
    ] = None
    keep: Annotated[
        TextList,
        Field(description="further tokens to keep, as written in the vocabulary"),
        FlagInfo(metavar="TOKEN"),
    ] = ()
    characters: Annotated[
        bool,
        Field(description="keep all tokens of one character, to avoid unknown tokens"),
    ] = True

    @model_validator(mode="after")
    def _check_settings(self) -> Vocab:
        if self.list is not None and self.min_count > 1:
            raise ValueError("min_count and list: give only one of them")
        return self

    def plan(self, draft: CheckpointEditor) -> None:
        """Check tokenizer and config, and note an upper bound of the vocabulary size."""
        model = VocabularyTokens.from_draft(draft)
        required = self._required_ids(model)
        requested = _read_token_list(self.list, model.vocabulary)
        if self.size is not None or requested is not None:
            from emb_tool.compress.vocabulary import choose_ids

            chosen = choose_ids(model.vocabulary, required, requested or (), self.size)
            max_ids = len(chosen) if self.size is None or requested is not None else self.size
        else:
            max_ids = len(model.vocabulary.ids)
        draft.notes.append(
            f"vocab: at most {max_ids:,} of {model.count:,} ids are kept; the texts decide"
        )

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, context: CalibrationContext
    ) -> None:
        """Count tokens, choose and renumber ids, and compare the tokenizations of the texts."""
        model = VocabularyTokens.from_draft(draft)
        result = context.result(draft, "vocabularies", lambda: self._choose(draft, model, context))
        ids = {old: new for new, old in enumerate(result.tensors["kept"].tolist())}
        draft.notes = [*before.notes]  # replaces the estimate of `plan`
        model.trim(draft, ids)
        self._report(draft, model.count, len(ids), result.facts)
        self._warn_about_loss(context, result.facts["tokens"])

    def _choose(
        self, draft: CheckpointEditor, model: VocabularyTokens, context: CalibrationContext
    ) -> Result:
        """The old ids in the order of the new ids, and the comparison on held-out texts."""
        import torch

        from emb_tool.compress import vocabulary as ops

        texts, prompted = _tokenizer_inputs(draft, context.texts)
        heldout_inputs, _ = _tokenizer_inputs(draft, context.heldout)
        inputs = texts + prompted
        with context.progress.task("counting tokens", len(inputs), "texts") as advance:
            counts, hidden = ops.count_ids(
                model.tokenizer, model.vocabulary, inputs, model.special, advance
            )
        requested = _read_token_list(self.list, model.vocabulary)
        exact = requested is None and self.min_count == 1
        if requested is None:
            requested = [int(i) for i in (counts >= self.min_count).nonzero()[0]]
            requested += sorted(hidden) if exact else []
        requested.sort(key=lambda i: (-int(counts[i]), i))
        chosen = ops.choose_ids(model.vocabulary, self._required_ids(model), requested, self.size)
        exact = exact and chosen.issuperset(requested)
        ids = ops.renumber_ids(model.vocabulary, chosen)
        check_padding(draft, ids)
        trimmed = draft.copy()
        model.trim(trimmed, ids)
        after = VocabularyTokens.from_draft(trimmed)
        with context.progress.task(
            "checking tokens", len(inputs) + len(heldout_inputs), "texts"
        ) as advance:
            calibration, heldout = (
                ops.compare_tokenizations(
                    model.tokenizer, after.tokenizer, ids, model.vocabulary.unknown, texts_to_check,
                    model.special, advance,
                )
                for texts_to_check in (inputs, heldout_inputs)
            )  # fmt: skip
        if exact and calibration.differ:
            raise InvalidInput(
                f"vocab: {calibration.differ:,} of {len(inputs):,} texts would be tokenized"
                f" differently, the first is {calibration.first[:80]!r}",
                "leave out such texts, or accept the difference: set list, size or min_count=2",
            )
        return Result({"kept": torch.tensor([*ids])}, asdict(heldout))

    def _required_ids(self, model: VocabularyTokens) -> set[int]:
        from emb_tool.compress.vocabulary import required_ids

        ids = model.vocabulary.ids
        for token in self.keep:
            if token not in ids:
                raise InvalidInput(
                    f"keep: the vocabulary has no token {token!r}", did_you_mean(token, ids)
                )
        fixed = required_ids(model.vocabulary, characters=self.characters)
        return fixed | model.config_ids | {ids[token] for token in self.keep}

    def _warn_about_loss(self, context: CalibrationContext, tokens: Sequence[int]) -> None:
        """Warn if other texts need, or may need, more tokens than before."""
        if self.list is None and len(context.texts) < MIN_TEXTS:
            context.progress.warn(
                f"vocab: {len(context.texts):,} texts are few to count tokens in; other texts may"
                f" be split into many tokens: give some {MIN_TEXTS:,}, or the tokens with list=FILE"
            )
        old, new = tokens
        if new > (1 + SPLIT_WARNING) * old:
            context.progress.warn(
                f"vocab: held-out texts have {new / old - 1:.1%} more tokens than before, because"
                " tokens that they need were removed; give more texts like those to be encoded"
            )

    def _report(
        self, draft: CheckpointEditor, before: int, after: int, heldout: Mapping[str, Any]
    ) -> None:
        share = " -> ".join(f"{x:.3%}" for x in heldout["unknown"])
        old, new = heldout["tokens"]
        outcome = "no held-out texts to measure the effect on others"
        if heldout["texts"]:
            outcome = (
                f"{heldout['differ']:,} of {heldout['texts']:,} held-out texts are tokenized"
                f" differently; unknown tokens {share}; tokens {old:,} -> {new:,}"
            )
        draft.notes.append(f"vocab: {before:,} ids become {after:,}; {outcome}")
        draft.facts["vocab"] = {
            "ids": [before, after], "texts": heldout["texts"], "texts_differ": heldout["differ"],
            "tokens": [old, new], "unknown_share": [*heldout["unknown"]],
        }  # fmt: skip


def _read_token_list(file: str | None, vocabulary: Vocabulary) -> list[int] | None:
    """Ids of the tokens in a file, in its order; None without a file."""
    if file is None:
        return None
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"list {path}: {error}", "use a text file, one token per line") from None
    ids = vocabulary.ids
    listed = [ids[line] for line in dict.fromkeys(lines) if line in ids]
    if not listed:
        raise InvalidInput(
            f"list {path}: none of its {len(lines):,} lines is a token of this model",
            "write tokens as in the vocabulary: " + ", ".join([*ids][-5:]),
        )
    return listed


def _tokenizer_inputs(draft: CheckpointEditor, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Inputs of the tokenizer: the texts, and the first words of each after every prompt."""
    prompts = dict.fromkeys(filter(None, draft.layout.prompts.values()))
    beginnings = dict.fromkeys(match[0] for text in texts if (match := _HEAD.match(text)))
    inputs, prompted = [*texts], [prompt + begin for prompt in prompts for begin in beginnings]
    if draft.layout.modules[0].config.get("do_lower_case"):  # sentence-transformers' own
        return [text.lower() for text in inputs], [text.lower() for text in prompted]
    return inputs, prompted
