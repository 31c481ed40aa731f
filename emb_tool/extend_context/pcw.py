"""Parallel context windows: the mean of the vectors of windows of the original length."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.extend_context.base import Extension, ExtensionContext
from emb_tool.extend_context.family import Kind


class Pcw(Extension):
    """v = Norm(mean of the windows' vectors); the baseline for other methods.

    Weights and positions do not change; needs `import emb_tool.hub` before loading.
    """

    name: ClassVar[str] = "pcw"
    paper: ClassVar[str] = "arXiv:2212.10947"
    kinds: ClassVar[tuple[Kind, ...]] = ("learned", "rotary", "relative")
    preserves_short: ClassVar[tuple[Kind, ...]] = ("learned", "rotary", "relative")

    def extend(self, draft: CheckpointEditor, context: ExtensionContext) -> None:
        """Set the modules that split texts into windows."""
        from emb_tool.windows import NAMESPACE, SETTING

        kinds = [module.kind for module in draft.layout.modules]
        if kinds[:2] != ["Transformer", "Pooling"]:
            raise InvalidInput(
                f"{draft.checkpoint.name} starts with {', '.join(kinds[:2]) or 'no module'}",
                "windows need a Transformer and a Pooling",
            )
        body, pooling, *rest = draft.layout.modules
        body = replace(
            body,
            type=f"{NAMESPACE}.Transformer",
            config={**body.config, SETTING: context.original},
        )
        pooling = replace(pooling, type=f"{NAMESPACE}.Pooling")
        draft.layout = replace(draft.layout, modules=(body, pooling, *rest))
        draft.notes.append(f"windows of {context.original:,} tokens; import emb_tool.hub first")
