"""Trimming the vocabulary: the rows of tokens that never come are left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from emb_tool.checkpoint.kept import Result
from emb_tool.checkpoint.layout import POSITION_TABLE
from emb_tool.draft import Draft
from emb_tool.draft.tables import TABLE_NAMES
from emb_tool.errors import Refused
from emb_tool.method import TextList
from emb_tool.registry import did_you_mean
from emb_tool.surgery import Surgery

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from emb_tool.calibration import Work
    from emb_tool.ops.tokenizers import Vocabulary

_HEAD = re.compile(r"[^ ]* ?[^ ]*")
"""The first words of a text: a prompt may change how they are tokenised, no others."""


class Vocab(Surgery):
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
    ] = None
    keep: Annotated[
        TextList, Field(description="further tokens to keep, as the vocabulary spells them")
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

    def plan(self, draft: Draft) -> None:
        """Refuse what headers and the tokenizer's files tell; the texts decide how much is left."""
        model = _Model.of(draft)
        must = self._must(model)
        wanted = _listed(self.list, model.vocabulary)
        if self.size is not None or wanted is not None:
            from emb_tool.ops.vocabulary import choose

            kept = choose(model.vocabulary, must, wanted or (), self.size)
            most = len(kept) if self.size is None or wanted is not None else self.size
        else:
            most = len(model.vocabulary.ids)
        draft.notes.append(_at_most(most, model.count))

    def apply(self, draft: Draft, before: Draft, work: Work) -> None:
        """Count, choose, renumber; then tokenise the texts both ways."""
        model = _Model.of(draft)
        found = work.result(draft, "vocabularies", lambda: self._choose(draft, model, work))
        ids = {old: new for new, old in enumerate(found.tensors["kept"].tolist())}
        model.cut(draft, ids)
        draft.notes = [note for note in draft.notes if not note.startswith(_AT_MOST)]
        self._tell(draft, model.count, len(ids), found.facts)

    def _choose(self, draft: Draft, model: _Model, work: Work) -> Result:
        """The old ids in the order of the new, and what becomes of the texts under them."""
        import torch

        from emb_tool.ops import vocabulary as ops

        texts, heads = _inputs(draft, work.texts)
        inputs = texts + heads
        with work.progress.task("counting tokens", len(inputs), "texts") as advance:
            counts, hidden = ops.survey(
                model.tokenizer, model.vocabulary, inputs, model.special, advance
            )
        wanted = _listed(self.list, model.vocabulary)
        exact = wanted is None and self.min_count == 1
        if wanted is None:
            wanted = [int(i) for i in (counts >= self.min_count).nonzero()[0]]
            wanted += sorted(hidden) if exact else []
        wanted.sort(key=lambda i: (-int(counts[i]), i))
        kept = ops.choose(model.vocabulary, self._must(model), wanted, self.size)
        exact = exact and kept.issuperset(wanted)
        ids = ops.number(model.vocabulary, kept)
        _check_padding(draft, ids)
        cut = draft.copy()
        model.cut(cut, ids)
        after = _Model.of(cut)
        with work.progress.task("checking tokens", len(inputs), "texts") as advance:
            trial, behind = (
                ops.compare(
                    model.tokenizer, after.tokenizer, ids, model.vocabulary.unknown, given,
                    model.special, advance,
                )
                for given in (texts, heads)
            )  # fmt: skip
        if exact and (trial.differ or behind.differ):
            raise Refused(
                f"vocab: {trial.differ + behind.differ:,} of {len(inputs):,} texts would be"
                f" tokenised differently, the first is {(trial.first or behind.first)[:80]!r}",
                "leave such texts out, or accept it: with list, size or min_count=2",
            )
        return Result({"kept": torch.tensor([*ids])}, asdict(trial))

    def _must(self, model: _Model) -> set[int]:
        from emb_tool.ops.vocabulary import fixed_ids

        ids = model.vocabulary.ids
        for token in self.keep:
            if token not in ids:
                raise Refused(f"keep: the vocabulary has no {token!r}", did_you_mean(token, ids))
        fixed = fixed_ids(model.vocabulary, characters=self.characters)
        return fixed | model.named | {ids[token] for token in self.keep}

    def _tell(self, draft: Draft, before: int, after: int, trial: Mapping[str, Any]) -> None:
        share = " -> ".join(f"{x:.3%}" for x in trial["unknown"])
        old, new = trial["tokens"]
        draft.notes.append(
            f"vocab: {before:,} ids become {after:,}; {trial['differ']:,} of {trial['texts']:,}"
            f" texts are tokenised differently; unknown tokens {share}; tokens {old:,} -> {new:,}"
        )
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
        raise Refused(f"list {path}: {error}", "a text file, one token a line") from None
    ids = vocabulary.ids
    found = [ids[line] for line in dict.fromkeys(lines) if line in ids]
    if not found:
        raise Refused(
            f"list {path}: none of its {len(lines):,} lines is a token of this model",
            "tokens as the vocabulary spells them: " + ", ".join([*ids][-5:]),
        )
    return found


_AT_MOST = "vocab: at most"


def _at_most(most: int, count: int) -> str:
    return f"{_AT_MOST} {most:,} of {count:,} ids are kept; the texts decide"


@dataclass(frozen=True)
class _Model:
    """What is known of a draft's tokenizer and of the rows that belong to its ids.

    Args:
        files: The tokenizer's files by name.
        tokenizer: As the model uses it.
        vocabulary: Its tokens.
        special: Whether special tokens surround a text.
        count: Ids that the table has.
        tensors: The tensors that have a row, or an element, for each id.
        named: Ids that the config names.
    """

    files: dict[str, bytes]
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    special: bool
    count: int
    tensors: tuple[str, ...]
    named: set[int]

    @classmethod
    def of(cls, draft: Draft) -> _Model:
        """Read it.

        Raises:
            Refused: A table that is packed or cannot be made out, no fast tokenizer, a tokenizer
                that does not belong to the table.
        """
        from emb_tool.ops import tokenizers as ops
        from emb_tool.ops.renumber import config_ids

        name = draft.checkpoint.name
        if not draft.layout.modules:
            raise Refused(f"{name} is a file of tensors, without a tokenizer", "name a folder")
        if draft.packed:
            tables = [m for m in draft.packed if f"{m}.weight".endswith(TABLE_NAMES)]
            packed = (tables or [*draft.packed])[0]
            raise Refused(
                f"vocab: {packed} is packed already: its rows stay together",
                "-m vocab first, then what packs weights, on the model that it was made from",
            )
        table = draft.table_name()
        count, tensors = _tensors(draft, table)
        stated = draft.config.get("vocab_size", count)
        if stated != count:
            raise Refused(
                f"{name}: config.json states vocab_size {stated}, {table} has {count:,} rows",
                "the checkpoint disagrees with itself; restore the original files",
            )
        files = {n: content for n in ops.FILES if (content := draft.file(n)) is not None}
        static = draft.layout.family == "static"
        tokenizer = ops.open_tokenizer(files, draft.config, name, plain=static)
        vocabulary = ops.read_vocabulary(tokenizer, files, name)
        token, highest = max(vocabulary.ids.items(), key=lambda item: item[1])
        if highest >= count:
            raise Refused(
                f"{name}: the token {token!r} has the id {highest:,}, {table} has {count:,} rows",
                "the tokenizer is another model's; restore the original files",
            )
        named = {i for i in config_ids(_settled(draft.config)) if i < count}
        return cls(files, tokenizer, vocabulary, not static, count, tensors, named)

    def cut(self, draft: Draft, ids: Mapping[int, int]) -> None:
        """Give a draft the rows, files and config of the ids that are kept."""
        from emb_tool.ops.renumber import renumber_config, rewrite

        order = list(ids)
        tensors = self.tensors
        if "mapping" in tensors:  # model2vec: token to row; a row that none has goes too
            load = draft.tensors["mapping"].load
            rows, places = load()[order].unique(return_inverse=True)
            spec = draft.spec("mapping")
            places = places.to(load().dtype)
            draft.set("mapping", replace(spec, shape=(len(order),)), lambda: places)
            _take(draft, draft.table_name(), rows)
            tensors = tuple(name for name in tensors if name != "mapping")
        for name in tensors:
            _take(draft, name, order)
        draft.files |= rewrite(self.vocabulary, ids, self.files)
        if not draft.config:
            return
        settled = _settled(draft.config)
        for key, value in renumber_config(settled, ids, (self.count, len(ids))).items():
            if value != settled.get(key) and key not in draft.config:
                draft.config[key] = value  # a default of the class that is no longer right
        draft.config = renumber_config(draft.config, ids, (self.count, len(ids)))


def _take(draft: Draft, name: str, rows: Sequence[int] | torch.Tensor) -> None:
    spec = draft.spec(name)
    draft.map(name, replace(spec, shape=(len(rows), *spec.shape[1:])), _rows(rows))


def _rows(rows: Sequence[int] | torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def take(tensor: torch.Tensor) -> torch.Tensor:
        import torch

        return tensor[torch.as_tensor(rows)]

    return take


def _tensors(draft: Draft, table: str) -> tuple[int, tuple[str, ...]]:
    """The number of ids, and the tensors with a row or an element for each.

    The table itself, an output head and its bias; model2vec's weights by token, and its map from
    tokens to rows. A layer has none, and positions only look alike.
    """
    rows, width = draft.spec(table).shape
    if draft.layout.family == "static" and "mapping" in draft.tensors:
        count = draft.spec("mapping").shape[0]
        weights = ("weights",) if "weights" in draft.tensors else ()
        return count, ("mapping", *weights)
    found = [
        name
        for name, lazy in draft.tensors.items()
        if lazy.spec.shape in ((rows, width), (rows,))
        and not re.search(r"(^|\.)\d+\.", name)
        and not POSITION_TABLE.search(name)
        and not re.search(r"norm", name, re.IGNORECASE)
    ]
    return rows, tuple(dict.fromkeys((table, *found)))


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what transformers takes where nothing is said; as it is for other types."""
    from emb_tool.ops.bare import transformers_config

    try:
        return {**transformers_config(config).to_dict(), **config}
    except Refused:
        return dict(config)


def _check_padding(draft: Draft, ids: Mapping[int, int]) -> None:
    """Models that count positions from the padding id on need it where it was.

    Raises:
        Refused: It is elsewhere now.
    """
    pad = draft.config.get("pad_token_id")
    if pad is None or ids.get(pad, pad) == pad or draft.layout.family == "static":
        return
    if not any(POSITION_TABLE.search(name) for name in draft.tensors):
        return
    from emb_tool.ops.bare import model_on_meta

    for name, module in model_on_meta(draft.config).named_modules():
        counted = getattr(module, "padding_idx", None) is not None
        if counted and POSITION_TABLE.search(f"{name}.weight"):
            raise Refused(
                f"vocab: the padding id {pad} would become {ids[pad]}, and this model counts its"
                " positions from it",
                f"keep more tokens: by more texts, list, or size above {pad}",
            )


def _inputs(draft: Draft, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the tokenizer is given: the texts, and their beginnings behind each prompt."""
    prompts = dict.fromkeys(filter(None, draft.layout.prompts.values()))
    begins = dict.fromkeys(match[0] for text in texts if (match := _HEAD.match(text)))
    found, behind = [*texts], [prompt + begin for prompt in prompts for begin in begins]
    if draft.layout.modules[0].config.get("do_lower_case"):  # sentence-transformers' own
        return [text.lower() for text in found], [text.lower() for text in behind]
    return found, behind
