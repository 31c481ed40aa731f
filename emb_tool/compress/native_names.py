"""The tensor names of transformers' model classes, where a checkpoint has others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emb_tool.checkpoint.meta_model import model_on_meta
from emb_tool.plan import TensorSpec


def native_names(
    config: Mapping[str, Any], specs: Mapping[str, TensorSpec]
) -> dict[str, tuple[str, ...]]:
    """Names of the tensors that transformers renames or splits when it loads a checkpoint.

    Some classes were written after their checkpoints: checkpoints of NomicBERT have `attn.Wqkv`,
    the class has `q_proj`, `k_proj` and `v_proj`. transformers also reads the names of the class.

    Args:
        config: The `config.json`.
        specs: The tensors of the transformer, by name.

    Returns:
        Map of each such name to one new name, or to the names of its equal chunks along the first
        axis. Tensors that are converted in another way, or would not fit the class, are left out.

    Raises:
        InvalidInput: transformers does not know the model type.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model: Any = model_on_meta(config)
    changes = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def native(name: str) -> tuple[str, ...]:
        new, source = rename_source_key(name, renamings, converters)
        if source is None:
            return (new,)
        (converter,) = [x for x in converters if source in x.source_patterns]
        first, *targets = converter.target_patterns
        return (
            (new, *(new.replace(first, target) for target in targets))
            if _is_chunk(converter)
            else ()
        )

    renames = {}
    for name, spec in specs.items():
        new = native(name)
        if new == (name,) or not new or any(native(n) != (n,) for n in new):
            continue
        rows, *tail = spec.shape or (0,)
        shape = spec.shape if len(new) == 1 else (rows / len(new), *tail)
        if all(shapes.get(n) == shape for n in new):
            renames[name] = new
    return renames


def _is_chunk(converter: Any) -> bool:
    """Whether a converter only splits a tensor into equal chunks along the first axis."""
    from transformers.core_model_loading import Chunk

    operations = converter.operations
    return len(operations) == 1 and type(operations[0]) is Chunk and operations[0].dim == 0
