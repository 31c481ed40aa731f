"""The places, beside the weights, where a checkpoint says how much of a text is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emb_tool.checkpoint.files import join, read_json
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.editing import CheckpointEditor
from emb_tool.extend_context.family import FAMILIES

NO_LIMIT = 10**9
"""Numbers from here on mean that there is none: transformers writes 1e30."""


def window_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that every layer sees at most; None where some see everything."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or not config.get("use_sliding_window", True):
        return None
    family = FAMILIES.get(str(config.get("model_type")))
    if family and family.layered:  # old configs of such types name no layers
        return None
    return window if set(config.get("layer_types") or ()) <= {"sliding_attention"} else None


def stated_lengths(checkpoint: Checkpoint) -> dict[str, int]:
    """Every length that the files of a checkpoint state, by key."""
    config, layout = checkpoint.config, checkpoint.layout
    transformer = layout.find("Transformer")
    tokenizer = read_json(checkpoint.path, join(layout.main, "tokenizer_config.json")) or {}
    found = {
        "max_position_embeddings": config.get("max_position_embeddings"),
        "max_seq_length": transformer.config.get("max_seq_length") if transformer else None,
        "model_max_length": tokenizer.get("model_max_length"),
        "sliding_window": window_of(config),
    }
    return {k: int(v) for k, v in found.items() if isinstance(v, int | float) and 0 < v < NO_LIMIT}


_TRUNCATION = re.compile(rb'("truncation"\s*:\s*\{[^}]*?"max_length"\s*:\s*)(\d+)')


def set_lengths(draft: CheckpointEditor, target: int) -> None:
    """Raise them all: sentence-transformers', the tokenizer's own, and that of `tokenizer.json`."""
    before = draft.layout.max_length
    draft.layout = replace(draft.layout, max_length=target)
    raw = draft.file("tokenizer_config.json")
    config = json.loads(raw) if raw else {}
    stated = config.get("model_max_length")
    for key in ("model_max_length", "max_length"):  # the second from calls with truncation
        if key in config or key == "model_max_length":
            config[key] = target
    if raw:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        draft.files["tokenizer_config.json"] = text.encode()
    if isinstance(stated, int | float) and stated < target:
        draft.notes.append(
            f"the tokenizer's own limit of {int(stated):,} tokens would have undone this: "
            f"now {target:,}"
        )
    tokenizer = draft.file("tokenizer.json")
    if tokenizer:
        # edited in place: the rest is vocabulary, and stays as it is to the byte
        head, tail = tokenizer[:1024], tokenizer[1024:]
        changed = _TRUNCATION.sub(lambda found: found[1] + str(target).encode(), head)
        if changed != head:
            draft.files["tokenizer.json"] = changed + tail
    if before and before < target:
        draft.notes.append(f"max_seq_length {before:,} becomes {target:,}")
