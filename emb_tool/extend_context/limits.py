"""Length limits in the files of a checkpoint."""

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
"""Limits from here on mean no limit: transformers writes 1e30."""


def sliding_window_size(config: Mapping[str, Any]) -> int | None:
    """Attention window of all layers in tokens; None if some layers have full attention."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or not config.get("use_sliding_window", True):
        return None
    family = FAMILIES.get(str(config.get("model_type")))
    if family and family.layered:  # old configs of these types do not list layers
        return None
    return window if set(config.get("layer_types") or ()) <= {"sliding_attention"} else None


def read_lengths(checkpoint: Checkpoint) -> dict[str, int]:
    """All length limits in the files of a checkpoint, by key."""
    config, layout = checkpoint.config, checkpoint.layout
    transformer = layout.find("Transformer")
    tokenizer = read_json(checkpoint.path, join(layout.main, "tokenizer_config.json")) or {}
    lengths = {
        "max_position_embeddings": config.get("max_position_embeddings"),
        "max_seq_length": transformer.config.get("max_seq_length") if transformer else None,
        "model_max_length": tokenizer.get("model_max_length"),
        "sliding_window": sliding_window_size(config),
    }
    return {
        k: int(v) for k, v in lengths.items() if isinstance(v, int | float) and 0 < v < NO_LIMIT
    }


_TRUNCATION = re.compile(rb'("truncation"\s*:\s*\{[^}]*?"max_length"\s*:\s*)(\d+)')


def set_lengths(draft: CheckpointEditor, target: int) -> None:
    """Set the limits of sentence-transformers, tokenizer_config.json and tokenizer.json."""
    before = draft.layout.max_length
    draft.layout = replace(draft.layout, max_length=target)
    raw = draft.file("tokenizer_config.json")
    config = json.loads(raw) if raw else {}
    tokenizer_limit = config.get("model_max_length")
    for key in ("model_max_length", "max_length"):  # the second is from calls with truncation
        if key in config or key == "model_max_length":
            config[key] = target
    if raw:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        draft.files["tokenizer_config.json"] = text.encode()
    if isinstance(tokenizer_limit, int | float) and tokenizer_limit < target:
        draft.notes.append(
            f"the tokenizer's limit of {int(tokenizer_limit):,} tokens is raised to {target:,}"
        )
    tokenizer = draft.file("tokenizer.json")
    if tokenizer:
        # edited as bytes: the rest is vocabulary and does not change
        head, tail = tokenizer[:1024], tokenizer[1024:]
        changed = _TRUNCATION.sub(lambda match: match[1] + str(target).encode(), head)
        if changed != head:
            draft.files["tokenizer.json"] = changed + tail
    if before and before < target:
        draft.notes.append(f"max_seq_length {before:,} is raised to {target:,}")
