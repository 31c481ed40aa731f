"""`--logn`: attention logits scaled with the logarithm of the length, as in LongEmbed.

Longer inputs distribute attention over more tokens; the factor ln n / ln L keeps its entropy.
"""

from __future__ import annotations

import re
from math import log
from typing import TYPE_CHECKING

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.extend_context.base import ExtensionContext

if TYPE_CHECKING:
    from torch import Tensor

_NORM = re.compile(r"\bq_norm\.weight$")
_QUERY = re.compile(r"\b(query|q_lin|q_proj|self_attn\.q|attn\.q)\.(weight|bias)$")
_FUSED = re.compile(r"\b(Wqkv|qkv_proj)\.(weight|bias)$")


def logn_attention(draft: CheckpointEditor, context: ExtensionContext) -> None:
    """Set the attention function that scales by each text's length; needs `emb_tool.hub` to load.

    Raises:
        InvalidInput: The model type does not support attention functions, or another is set.
    """
    from emb_tool.ops.attention import KEY, LOGN

    if context.positions.family.eager:
        raise InvalidInput(
            "--logn exact: this model type does not support attention functions",
            "use --logn constant",
        )
    if KEY in draft.config:
        raise InvalidInput(
            "--logn exact: self-extend sets another attention function", "use one of the two"
        )
    draft.config |= {"attn_implementation": LOGN, KEY: {"original": context.original}}
    draft.notes.append("logits times max(1, ln n / ln L); import emb_tool.hub first")


def logn_weights(draft: CheckpointEditor, context: ExtensionContext) -> None:
    """Scale the query weights by ln n / ln L of the target n, which also affects short inputs.

    Raises:
        InvalidInput: The query projections cannot be determined.
    """
    factor = log(context.target) / log(context.original)
    config = draft.config
    norms = [name for name in draft.tensors if _NORM.search(name)]
    plain = [name for name in draft.tensors if _QUERY.search(name)]
    fused = [name for name in draft.tensors if _FUSED.search(name)]
    if not (norms or plain or fused) or (norms and config.get("model_type") == "gemma3_text"):
        raise InvalidInput(
            f"--logn constant: the queries of {draft.checkpoint.name} cannot be scaled in its"
            " weights",
            "use --logn exact",
        )
    for name in norms or plain:  # a norm after the projection would undo its scaling
        draft.map(name, draft.spec(name), lambda x: (x.float() * factor).to(x.dtype))
    heads = int(config.get("num_attention_heads") or 1)
    width = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)

    def scaled(x: Tensor) -> Tensor:
        x = x.clone()
        x[: heads * width] = (x[: heads * width].float() * factor).to(x.dtype)
        return x

    for name in [] if norms or plain else fused:
        draft.map(name, draft.spec(name), scaled)
    draft.notes.append(f"queries times {factor:.4f} at every length")
