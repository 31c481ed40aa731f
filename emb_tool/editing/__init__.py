"""A checkpoint on its way to being another: what surgery changes, what is written in the end."""

from emb_tool.editing.editor import CheckpointEditor, Rotation
from emb_tool.editing.lazy_tensor import LazyTensor, shape_only, torch_dtype
from emb_tool.editing.projection import append_dense, project_vectors

__all__ = [
    "CheckpointEditor",
    "LazyTensor",
    "Rotation",
    "append_dense",
    "project_vectors",
    "shape_only",
    "torch_dtype",
]
