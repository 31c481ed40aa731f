"""embtool: smaller, faster, longer-reading embedding models, and what each step cost.

Each verb is a function in its package, such as `emb_tool.distill.distill`; `load` opens outputs.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from emb_tool.hub_names import parse_hub_name
from emb_tool.version import __version__

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["__version__", "load"]


def load(model: str | PathLike[str], **settings: Any) -> SentenceTransformer:
    """Open a model, packed or not, with sentence-transformers.

    The same as `import emb_tool.hub` and then `SentenceTransformer(model, **settings)`.

    Args:
        model: Folder or hub id; `org/name@revision` sets the setting `revision`.
        **settings: Arguments of `SentenceTransformer`, such as `device="cpu"`.
    """
    from sentence_transformers import SentenceTransformer

    import emb_tool.hub  # noqa: F401  (registers the packed format)

    name = parse_hub_name(str(model))
    if name is not None and name.revision:
        return SentenceTransformer(name.repo, revision=name.revision, **settings)
    return SentenceTransformer(str(model), **settings)
