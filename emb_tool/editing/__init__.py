"""A checkpoint on its way to being another: what surgery changes, what is written in the end."""

from emb_tool.editing.editor import Draft
from emb_tool.editing.lazy_tensor import Lazy, pending, torch_dtype
from emb_tool.editing.projection import append_dense, project

__all__ = ["Draft", "Lazy", "append_dense", "pending", "project", "torch_dtype"]
