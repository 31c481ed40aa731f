"""The parts of a checkpoint that depend on the vocabulary: tokenizer, tensors by token id."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.layout import POSITION_TABLE
from emb_tool.editing import CheckpointEditor
from emb_tool.editing.token_table import TABLE_NAMES
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from emb_tool.checkpoint.tokenizer_files import Vocabulary


@dataclass(frozen=True)
class VocabularyTokens:
    """The tokenizer of a draft and the tensors that are indexed by its ids.

    Args:
        files: Contents of the tokenizer's files by name.
        tokenizer: The tokenizer as the model uses it.
        vocabulary: Its tokens.
        special: Whether it adds special tokens to a text.
        count: Number of ids of the token table.
        tensors: Names of the tensors with a row, or an element, for each id.
        config_ids: Ids in the config.
    """

    files: dict[str, bytes]
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    special: bool
    count: int
    tensors: tuple[str, ...]
    config_ids: set[int]

    @classmethod
    def from_draft(cls, draft: CheckpointEditor) -> VocabularyTokens:
        """Read the tokenizer and find the tensors of a draft.

        Raises:
            InvalidInput: The token table is packed or unknown, there is no fast tokenizer, or it
                does not match the table.
        """
        from emb_tool.checkpoint import tokenizer_files as ops
        from emb_tool.compress.token_ids import config_ids

        name = draft.checkpoint.name
        if not draft.layout.modules:
            raise InvalidInput(f"{name} is a file of tensors, without a tokenizer", "give a folder")
        if draft.packed:
            tables = [m for m in draft.packed if f"{m}.weight".endswith(TABLE_NAMES)]
            packed = (tables or [*draft.packed])[0]
            raise InvalidInput(
                f"vocab: {packed} is packed already, and rows of packed tables cannot be removed",
                "start with the original model: -m vocab first, then the steps that pack weights",
            )
        table = draft.table_name()
        count, tensors = _id_tensors(draft, table)
        declared = draft.config.get("vocab_size", count)
        if declared != count:
            raise InvalidInput(
                f"{name}: config.json has vocab_size {declared}, but {table} has {count:,} rows",
                "the checkpoint is inconsistent; restore the original files",
            )
        files = {n: content for n in ops.FILES if (content := draft.file(n)) is not None}
        static = draft.layout.family == "static"
        tokenizer = ops.open_tokenizer(files, draft.config, name, tokenizer_json_only=static)
        vocabulary = ops.read_vocabulary(tokenizer, files, name)
        token, highest = max(vocabulary.ids.items(), key=lambda item: item[1])
        if highest >= count:
            raise InvalidInput(
                f"{name}: the token {token!r} has the id {highest:,}, {table} has {count:,} rows",
                "the tokenizer belongs to another model; restore the original files",
            )
        named = {i for i in config_ids(_with_defaults(draft.config)) if i < count}
        return cls(files, tokenizer, vocabulary, not static, count, tensors, named)

    def trim(self, draft: CheckpointEditor, ids: Mapping[int, int]) -> None:
        """Change the tensors, tokenizer files and config of a draft to a subset of the ids."""
        from emb_tool.compress.token_ids import renumber_config, rewrite_tokenizer

        order = list(ids)
        tensors = self.tensors
        if "mapping" in tensors:  # model2vec: token to row; unused rows are removed too
            load = draft.tensors["mapping"].load
            rows, positions = load()[order].unique(return_inverse=True)
            spec = draft.spec("mapping")
            positions = positions.to(load().dtype)
            draft.set("mapping", replace(spec, shape=(len(order),)), lambda: positions)
            _select_rows(draft, draft.table_name(), rows)
            tensors = tuple(name for name in tensors if name != "mapping")
        for name in tensors:
            _select_rows(draft, name, order)
        draft.files |= rewrite_tokenizer(self.vocabulary, ids, self.files)
        if not draft.config:
            return
        full_config = _with_defaults(draft.config)
        for key, value in renumber_config(full_config, ids, (self.count, len(ids))).items():
            if value != full_config.get(key) and key not in draft.config:
                draft.config[key] = value  # a default of the class that is wrong now
        draft.config = renumber_config(draft.config, ids, (self.count, len(ids)))


def _select_rows(draft: CheckpointEditor, name: str, rows: Sequence[int] | torch.Tensor) -> None:
    spec = draft.spec(name)
    draft.map(name, replace(spec, shape=(len(rows), *spec.shape[1:])), _rows(rows))


def _rows(rows: Sequence[int] | torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def take(weight: torch.Tensor) -> torch.Tensor:
        import torch

        return weight[torch.as_tensor(rows)]

    return take


def _id_tensors(draft: CheckpointEditor, table: str) -> tuple[int, tuple[str, ...]]:
    """The number of ids, and the names of the tensors with a row or an element for each.

    These are the table, an output head and its bias; for model2vec also the weights of tokens and
    the map from tokens to rows. Tensors of layers, norms and positions are excluded, whose shapes
    may be equal by chance.
    """
    rows, width = draft.spec(table).shape
    if draft.layout.family == "static" and "mapping" in draft.tensors:
        count = draft.spec("mapping").shape[0]
        weights = ("weights",) if "weights" in draft.tensors else ()
        return count, ("mapping", *weights)
    names = [
        name
        for name, lazy in draft.tensors.items()
        if lazy.spec.shape in ((rows, width), (rows,))
        and not re.search(r"(^|\.)\d+\.", name)
        and not POSITION_TABLE.search(name)
        and not re.search(r"norm", name, re.IGNORECASE)
    ]
    return rows, tuple(dict.fromkeys((table, *names)))


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of transformers; unchanged for types that it does not know."""
    from emb_tool.checkpoint.meta_model import transformers_config

    try:
        return {**transformers_config(config).to_dict(), **config}
    except InvalidInput:
        return dict(config)


def check_padding(draft: CheckpointEditor, ids: Mapping[int, int]) -> None:
    """Refuse a new padding id in models whose position ids start at the padding id.

    Raises:
        InvalidInput: The padding id changes.
    """
    pad = draft.config.get("pad_token_id")
    if pad is None or ids.get(pad, pad) == pad or draft.layout.family == "static":
        return
    if not any(POSITION_TABLE.search(name) for name in draft.tensors):
        return
    from emb_tool.checkpoint.meta_model import model_on_meta

    for name, module in model_on_meta(draft.config).named_modules():
        counted = getattr(module, "padding_idx", None) is not None
        if counted and POSITION_TABLE.search(f"{name}.weight"):
            raise InvalidInput(
                f"vocab: the padding id {pad} would become {ids[pad]}, but the position ids of this"
                " model start at it",
                f"keep more tokens: with more texts, list, or size above {pad}",
            )
