"""Linear maps of a model's vectors, multiplied into weights that are there or put after them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from emb_tool.checkpoint.modules import ModuleSpec
from emb_tool.editing.editor import CheckpointEditor
from emb_tool.editing.lazy_tensor import LazyTensor
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch


def project_vectors(
    draft: CheckpointEditor, dim: int, fold: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Let every vector x become W x, in the weights that are there where that is exact.

    A static table is multiplied itself, and a last Dense without activation too; otherwise a
    Dense is put in, before a last Normalize.

    Args:
        draft: Is changed.
        dim: Rows of W, the new width.
        fold: Maps a matrix M (width, n) float32 to W M.
    """
    import torch

    width = draft.layout.dim
    assert width is not None
    modules = list(draft.layout.modules)
    last = len(modules) - (modules[-1].kind == "Normalize")
    end = modules[last - 1]
    if end.kind == "StaticEmbedding" and not draft.packed:
        name = draft.table_name()
        spec = draft.spec(name)
        draft.map(
            name,
            replace(spec, shape=(spec.shape[0], dim)),
            lambda table: fold(table.float().T).T.contiguous().to(table.dtype),
        )
    elif end.kind == "Dense" and _linear(end):
        for name, lazy in list(draft.modules[end.path].items()):
            load, spec = lazy.load, replace(lazy.spec, shape=(dim, *lazy.spec.shape[1:]))

            def folded(load: Callable[[], torch.Tensor] = load) -> torch.Tensor:
                tensor = load()
                matrix = fold(tensor.float().reshape(len(tensor), -1))
                return matrix.reshape(dim, *tensor.shape[1:]).contiguous().to(tensor.dtype)

            draft.modules[end.path][name] = LazyTensor(spec, folded)
        config = {**end.config, "out_features": dim}
        modules[last - 1] = replace(end, config=config)
    else:
        path = f"new_{len(modules)}"
        config = {
            "in_features": width, "out_features": dim, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }  # fmt: skip
        modules.insert(last, ModuleSpec("Dense", path, config))
        spec = TensorSpec("linear.weight", (dim, width), "F32")
        draft.modules[path] = {
            spec.name: LazyTensor(spec, lambda: fold(torch.eye(width)).contiguous())
        }
    draft.layout = replace(draft.layout, modules=tuple(modules), dim=dim)


def append_dense(
    draft: CheckpointEditor,
    weight: Callable[[], torch.Tensor],
    bias: Callable[[], torch.Tensor],
    dim: int,
) -> None:
    """Let every vector x become Norm(W x + b), in a Dense and a Normalize at the end.

    Args:
        draft: Is changed.
        weight: Makes W, (dim, width) float32.
        bias: Makes b, (dim,) float32.
        dim: The new width.
    """
    width = draft.layout.dim
    assert width is not None
    count = len(draft.layout.modules)
    config = {
        "in_features": width, "out_features": dim, "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }  # fmt: skip
    dense = ModuleSpec("Dense", f"new_{count}", config)
    modules = (*draft.layout.modules, dense, ModuleSpec("Normalize", f"new_{count + 1}"))
    specs = [
        TensorSpec("linear.weight", (dim, width), "F32"),
        TensorSpec("linear.bias", (dim,), "F32"),
    ]
    loads = (weight, bias)
    draft.modules[dense.path] = {
        spec.name: LazyTensor(spec, load) for spec, load in zip(specs, loads, strict=True)
    }
    draft.layout = replace(draft.layout, modules=modules, dim=dim, normalizes=True)


def _linear(module: ModuleSpec) -> bool:
    """Whether a Dense has no activation (sentence-transformers' default is Tanh)."""
    return str(module.config.get("activation_function", "Tanh")).endswith("Identity")
