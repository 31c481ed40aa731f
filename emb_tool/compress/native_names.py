"""The names that transformers gives to tensors while it reads them, where a file has others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emb_tool.checkpoint.meta_model import model_on_meta
from emb_tool.plan import TensorSpec


def native_names(
    config: Mapping[str, Any], specs: Mapping[str, TensorSpec]
) -> dict[str, tuple[str, ...]]:
    """The tensors that transformers renames or splits while it reads them, and what they become.

    Some classes were written after their checkpoints: those of NomicBERT hold `attn.Wqkv`, the
    class has `q_proj`, `k_proj` and `v_proj`. Under the names of the class they are read as well.

    Args:
        config: The `config.json`.
        specs: The tensors of the main part, by name.

    Returns:
        Name to one name, or to those of equal parts along the first axis. Tensors that are changed
        in another way, or would not fit the class, are left out.

    Raises:
        InvalidInput: A model type that transformers does not know.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model: Any = model_on_meta(config)
    changes = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def renamed(name: str) -> tuple[str, ...]:
        new, source = rename_source_key(name, renamings, converters)
        if source is None:
            return (new,)
        (converter,) = [x for x in converters if source in x.source_patterns]
        first, *others = converter.target_patterns
        return (
            (new, *(new.replace(first, other) for other in others)) if _is_chunk(converter) else ()
        )

    renames = {}
    for name, spec in specs.items():
        new = renamed(name)
        if new == (name,) or not new or any(renamed(n) != (n,) for n in new):
            continue
        rows, *rest = spec.shape or (0,)
        shape = spec.shape if len(new) == 1 else (rows / len(new), *rest)
        if all(shapes.get(n) == shape for n in new):
            renames[name] = new
    return renames


def _is_chunk(converter: Any) -> bool:
    """Whether it cuts a tensor into equal parts along the first axis, and does no more."""
    from transformers.core_model_loading import Chunk

    operations = converter.operations
    return len(operations) == 1 and type(operations[0]) is Chunk and operations[0].dim == 0
