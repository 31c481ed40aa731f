"""Renumber token ids in all files of a tokenizer and in configs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from emb_tool.checkpoint.reader import TOKENIZER_FILES
from emb_tool.checkpoint.tokenizer_files import Vocabulary

ID_KEYS = ("_token_id", "_token_ids", "_token_index")
"""Suffixes of the config keys whose value is a token id or a list of token ids."""


def processor_ids(vocabulary: Vocabulary) -> set[int]:
    """Ids that the post-processor adds to a text, and the padding id."""
    ids: set[int] = set()

    def collect(token: str, token_id: int) -> int:
        ids.add(token_id)
        return token_id

    _processor(vocabulary.data.get("post_processor"), collect)
    padding = vocabulary.data.get("padding")
    return ids | ({padding["pad_id"]} if padding else set())


def rewrite_tokenizer(
    vocabulary: Vocabulary, ids: Mapping[int, int], files: Mapping[str, bytes]
) -> dict[str, bytes | None]:
    """The files of a tokenizer after removing and renumbering tokens.

    Args:
        vocabulary: From `read_vocabulary`.
        ids: Map of old to new ids; other tokens are removed.
        files: Contents of the files by name.

    Returns:
        New contents by name; None for files that are not written.
    """
    pieces = {token: ids[i] for token, i in vocabulary.pieces.items() if i in ids}
    pieces = dict(sorted(pieces.items(), key=lambda item: item[1]))
    added = {token: ids[i] for token, i in vocabulary.added.items() if i in ids}
    model = dict(vocabulary.model)
    if vocabulary.kind == "Unigram":
        old = {new: old_id for old_id, new in ids.items()}
        model["vocab"] = [model["vocab"][old[new]] for new in pieces.values()]
        model["unk_id"] = ids.get(model.get("unk_id"))  # type: ignore[arg-type]
    else:
        model["vocab"] = pieces
    if vocabulary.kind == "BPE":
        skip = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            pair
            for pair in model["merges"]
            if pair[0] in pieces and pair[1] in pieces and pair[0] + pair[1][skip:] in pieces
        ]
    data = {**vocabulary.data, "model": model}
    data["added_tokens"] = sorted(
        (
            {**token, "id": added[token["content"]]}
            for token in data["added_tokens"]
            if token["content"] in added
        ),
        key=lambda token: token["id"],
    )
    data["post_processor"] = _processor(
        data.get("post_processor"), lambda token, old_id: ids.get(old_id, added.get(token, old_id))
    )
    if padding := data.get("padding"):
        data["padding"] = {**padding, "pad_id": ids.get(padding["pad_id"], padding["pad_id"])}
    rewritten: dict[str, bytes | None] = dict.fromkeys(TOKENIZER_FILES)
    rewritten["tokenizer.json"] = _json(data)
    if vocabulary.kind == "WordPiece" and "vocab.txt" in files:
        rewritten["vocab.txt"] = "".join(f"{token}\n" for token in pieces).encode()
    if vocabulary.kind == "BPE" and "vocab.json" in files:
        rewritten["vocab.json"] = _json(pieces)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        rewritten["merges.txt"] = "".join(f"{line}\n" for line in lines).encode()
    rewritten = {name: content for name, content in rewritten.items() if content or name in files}
    if "added_tokens.json" in files:
        rewritten["added_tokens.json"] = _json(
            {token: i for token, i in sorted(added.items(), key=lambda x: x[1])
             if token not in pieces}
        )  # fmt: skip
    if "tokenizer_config.json" in files:
        config = renumber_config(json.loads(files["tokenizer_config.json"]), ids)
        if old_id := config.get("added_tokens_decoder"):
            entries = [token for token in old_id.values() if token["content"] in added]
            entries.sort(key=lambda token: added[token["content"]])
            config["added_tokens_decoder"] = {str(added[t["content"]]): t for t in entries}
        rewritten["tokenizer_config.json"] = _json(config)
    return rewritten


def _processor(value: Any, new: Callable[[str, int], int]) -> Any:
    """A post-processor with new ids: `new` maps a token and its old id to the new id."""
    if not isinstance(value, dict):
        return value
    if value["type"] == "Sequence":
        return {**value, "processors": [_processor(part, new) for part in value["processors"]]}
    if value["type"] == "TemplateProcessing":
        special = {
            name: {**s, "ids": [new(t, i) for t, i in zip(s["tokens"], s["ids"], strict=True)]}
            for name, s in value["special_tokens"].items()
        }
        return {**value, "special_tokens": special}
    if value["type"] in ("BertProcessing", "RobertaProcessing"):
        pairs = {key: [value[key][0], new(*value[key])] for key in ("sep", "cls")}
        return {**value, **pairs}
    return value


def config_ids(config: Mapping[str, Any]) -> set[int]:
    """Token ids in a config: `pad_token_id`, `eos_token_id` (also lists), and so on."""
    ids: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict):
            ids |= config_ids(value)
        elif str(key).endswith(ID_KEYS):
            values = value if isinstance(value, list) else [value]
            ids |= {i for i in values if type(i) is int and i >= 0}
    return ids


def renumber_config(
    config: Mapping[str, Any], ids: Mapping[int, int], rows: tuple[int, int] | None = None
) -> dict[str, Any]:
    """A config with new token ids and vocabulary size.

    Args:
        config: `config.json` or a nested config.
        ids: Map of old to new ids.
        rows: Rows of the token table before and after; None: sizes do not change.
    """
    renumbered = dict(config)
    for key, value in config.items():
        if isinstance(value, dict):
            renumbered[key] = renumber_config(value, ids, rows)
        elif str(key).endswith(ID_KEYS):
            values = value if isinstance(value, list) else [value]
            values = [ids.get(i, i) if type(i) is int else i for i in values]
            renumbered[key] = values if isinstance(value, list) else values[0]
        elif rows and key == "vocab_size" and value == rows[0]:
            renumbered[key] = rows[1]
        elif rows and key == "pad_vocab_size_multiple":  # some models round vocab_size up to it
            renumbered[key] = 1
    return renumbered


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()
