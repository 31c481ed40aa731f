"""New ids for tokens, in every file that names one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from emb_tool.checkpoint.reader import TOKENIZER_FILES
from emb_tool.checkpoint.tokenizer_files import Vocabulary

ID_KEYS = ("_token_id", "_token_ids", "_token_index")
"""How keys of a config end that hold an id or a list of ids."""


def processor_ids(vocabulary: Vocabulary) -> set[int]:
    """Ids that the post-processor puts around a text, and that of padding."""
    found: set[int] = set()

    def note(token: str, held: int) -> int:
        found.add(held)
        return held

    _processor(vocabulary.data.get("post_processor"), note)
    padding = vocabulary.data.get("padding")
    return found | ({padding["pad_id"]} if padding else set())


def rewrite(
    vocabulary: Vocabulary, ids: Mapping[int, int], files: Mapping[str, bytes]
) -> dict[str, bytes | None]:
    """The tokenizer's files with some of its tokens under new ids.

    Args:
        vocabulary: By `read_vocabulary`.
        ids: Old id to new, for those that are kept.
        files: Its files by name.

    Returns:
        What is written in their place by name; None for those that are left out.
    """
    pieces = {token: ids[i] for token, i in vocabulary.pieces.items() if i in ids}
    pieces = dict(sorted(pieces.items(), key=lambda item: item[1]))
    added = {token: ids[i] for token, i in vocabulary.added.items() if i in ids}
    model = dict(vocabulary.model)
    if vocabulary.kind == "Unigram":
        old = {new: held for held, new in ids.items()}
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
        data.get("post_processor"), lambda token, held: ids.get(held, added.get(token, held))
    )
    if padding := data.get("padding"):
        data["padding"] = {**padding, "pad_id": ids.get(padding["pad_id"], padding["pad_id"])}
    made: dict[str, bytes | None] = dict.fromkeys(TOKENIZER_FILES)
    made["tokenizer.json"] = _json(data)
    if vocabulary.kind == "WordPiece" and "vocab.txt" in files:
        made["vocab.txt"] = "".join(f"{token}\n" for token in pieces).encode()
    if vocabulary.kind == "BPE" and "vocab.json" in files:
        made["vocab.json"] = _json(pieces)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        made["merges.txt"] = "".join(f"{line}\n" for line in lines).encode()
    made = {name: content for name, content in made.items() if content or name in files}
    if "added_tokens.json" in files:
        made["added_tokens.json"] = _json(
            {token: i for token, i in sorted(added.items(), key=lambda x: x[1])
             if token not in pieces}
        )  # fmt: skip
    if "tokenizer_config.json" in files:
        config = renumber_config(json.loads(files["tokenizer_config.json"]), ids)
        if held := config.get("added_tokens_decoder"):
            kept = [token for token in held.values() if token["content"] in added]
            kept.sort(key=lambda token: added[token["content"]])
            config["added_tokens_decoder"] = {str(added[t["content"]]): t for t in kept}
        made["tokenizer_config.json"] = _json(config)
    return made


def _processor(value: Any, new: Callable[[str, int], int]) -> Any:
    """A post-processor with the ids that `new` gives for a token and its old id."""
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
    """Ids that a config names: `pad_token_id`, `eos_token_id` (also lists of them), and so on."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict):
            found |= config_ids(value)
        elif str(key).endswith(ID_KEYS):
            values = value if isinstance(value, list) else [value]
            found |= {i for i in values if type(i) is int and i >= 0}
    return found


def renumber_config(
    config: Mapping[str, Any], ids: Mapping[int, int], rows: tuple[int, int] | None = None
) -> dict[str, Any]:
    """A config with new ids and, where it states it, the new number of rows.

    Args:
        config: `config.json` or a part of it.
        ids: Old id to new.
        rows: Rows of the token table before and after.
    """
    made = dict(config)
    for key, value in config.items():
        if isinstance(value, dict):
            made[key] = renumber_config(value, ids, rows)
        elif str(key).endswith(ID_KEYS):
            values = value if isinstance(value, list) else [value]
            values = [ids.get(i, i) if type(i) is int else i for i in values]
            made[key] = values if isinstance(value, list) else values[0]
        elif rows and key == "vocab_size" and value == rows[0]:
            made[key] = rows[1]
        elif rows and key == "pad_vocab_size_multiple":  # some round vocab_size up to it
            made[key] = 1
    return made


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()
