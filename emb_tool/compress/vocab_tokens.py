"""What a trimmed vocabulary touches: the tokenizer, and the tensors with a row for each id."""

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
    def of(cls, draft: CheckpointEditor) -> VocabularyTokens:
        """Read it.

        Raises:
            InvalidInput: A table that is packed or cannot be made out, no fast tokenizer, a
                tokenizer that does not belong to the table.
        """
        from emb_tool.checkpoint import tokenizer_files as ops
        from emb_tool.compress.token_ids import config_ids

        name = draft.checkpoint.name
        if not draft.layout.modules:
            raise InvalidInput(f"{name} is a file of tensors, without a tokenizer", "name a folder")
        if draft.packed:
            tables = [m for m in draft.packed if f"{m}.weight".endswith(TABLE_NAMES)]
            packed = (tables or [*draft.packed])[0]
            raise InvalidInput(
                f"vocab: {packed} is packed already: its rows stay together",
                "-m vocab first, then what packs weights, on the model that it was made from",
            )
        table = draft.table_name()
        count, tensors = _tensors(draft, table)
        stated = draft.config.get("vocab_size", count)
        if stated != count:
            raise InvalidInput(
                f"{name}: config.json states vocab_size {stated}, {table} has {count:,} rows",
                "the checkpoint disagrees with itself; restore the original files",
            )
        files = {n: content for n in ops.FILES if (content := draft.file(n)) is not None}
        static = draft.layout.family == "static"
        tokenizer = ops.open_tokenizer(files, draft.config, name, plain=static)
        vocabulary = ops.read_vocabulary(tokenizer, files, name)
        token, highest = max(vocabulary.ids.items(), key=lambda item: item[1])
        if highest >= count:
            raise InvalidInput(
                f"{name}: the token {token!r} has the id {highest:,}, {table} has {count:,} rows",
                "the tokenizer is another model's; restore the original files",
            )
        named = {i for i in config_ids(_settled(draft.config)) if i < count}
        return cls(files, tokenizer, vocabulary, not static, count, tensors, named)

    def cut(self, draft: CheckpointEditor, ids: Mapping[int, int]) -> None:
        """Give a draft the rows, files and config of the ids that are kept."""
        from emb_tool.compress.token_ids import renumber_config, rewrite

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


def _take(draft: CheckpointEditor, name: str, rows: Sequence[int] | torch.Tensor) -> None:
    spec = draft.spec(name)
    draft.map(name, replace(spec, shape=(len(rows), *spec.shape[1:])), _rows(rows))


def _rows(rows: Sequence[int] | torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def take(tensor: torch.Tensor) -> torch.Tensor:
        import torch

        return tensor[torch.as_tensor(rows)]

    return take


def _tensors(draft: CheckpointEditor, table: str) -> tuple[int, tuple[str, ...]]:
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
    from emb_tool.checkpoint.meta_model import transformers_config

    try:
        return {**transformers_config(config).to_dict(), **config}
    except InvalidInput:
        return dict(config)


def check_padding(draft: CheckpointEditor, ids: Mapping[int, int]) -> None:
    """Models that count positions from the padding id on need it where it was.

    Raises:
        InvalidInput: It is elsewhere now.
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
                f"vocab: the padding id {pad} would become {ids[pad]}, and this model counts its"
                " positions from it",
                f"keep more tokens: by more texts, list, or size above {pad}",
            )
