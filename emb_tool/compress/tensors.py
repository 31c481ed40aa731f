"""What steps on matrices ask of a draft's tensors, and what they refuse of them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emb_tool.checkpoint.modules import class_name
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec
from emb_tool.registry import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch


def module_name(tensor: str) -> str:
    """The module whose weight a tensor is."""
    if tensor == "embeddings":  # model2vec's name for what sentence-transformers calls so:
        return "embedding"
    return tensor.removesuffix(".weight")


def match(draft: CheckpointEditor, pattern: str) -> list[str]:
    """The tensors of a name or pattern.

    Raises:
        InvalidInput: There is none, with the nearest names.
    """
    if pattern in draft.tensors and module_name(pattern) not in draft.packed:
        return [pattern]
    found = [
        name
        for name, lazy in draft.tensors.items()
        if fnmatchcase(name, pattern) and len(lazy.spec.shape) == 2
    ]
    if found:
        return found
    if module_name(pattern) in draft.packed:
        raise InvalidInput(f"{pattern} is packed already", "pack a table in one step")
    matrices = [name for name, lazy in draft.tensors.items() if len(lazy.spec.shape) == 2]
    raise InvalidInput(
        f"{draft.checkpoint.name} has no tensor {pattern!r}", did_you_mean(pattern, matrices)
    )


def read_counts(file: str, rows: int, name: str) -> np.ndarray:
    """Counts from a file.

    Raises:
        InvalidInput: No such file, no numbers, negative ones, or not one per row.
    """
    import numpy as np

    path = Path(file).expanduser()
    try:
        counts = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"frequencies {path}: {error}", "a .npy file, or one number a line"
        ) from None
    counts = np.atleast_1d(counts)
    if counts.shape != (rows,):
        raise InvalidInput(
            f"frequencies {path}: shape {list(counts.shape)}, and {name} has {rows:,} rows",
            "one count per row, in the order of the rows",
        )
    if not np.isfinite(counts).all() or (counts < 0).any():
        row = int(np.flatnonzero(~np.isfinite(counts) | (counts < 0))[0])
        raise InvalidInput(
            f"frequencies {path}: row {row} is {counts[row]}", "counts are 0 or more"
        )
    return counts


def check_rows(name: str, table: torch.Tensor) -> None:
    """Refuse NaN and infinities.

    Raises:
        InvalidInput: There are some; in which rows.
    """
    from emb_tool.ops import rows

    found, count = rows.non_finite_rows(table)
    if count:
        raise InvalidInput(
            f"{name}: {count:,} rows are not finite (NaN or infinity), the first are "
            + ", ".join(map(str, found)),
            "the table is damaged or its training diverged; mend these rows first",
        )


def use_native_names(draft: CheckpointEditor) -> None:
    """Rename and split tensors as transformers does while it reads them.

    A packed module is stored in the place of one tensor, so each module needs a tensor of its own.

    Args:
        draft: Is changed.
    """
    from emb_tool.compress.native_names import native_names

    renames = native_names(draft.config, {n: lazy.spec for n, lazy in draft.tensors.items()})
    for name, new in renames.items():
        spec = draft.spec(name)
        shape = (spec.shape[0] // len(new), *spec.shape[1:])
        parts = [TensorSpec(part, shape, spec.dtype) for part in new]
        draft.split(name, parts, partial(_cut, names=new))
    if renames:
        name, new = next(iter(renames.items()))
        draft.notes.append(
            f"{len(renames)} tensors are written under the names of transformers' own class:"
            f" {name} as {', '.join(new)}" + (", ..." if len(renames) > 1 else "")
        )


def _cut(tensor: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    return dict(zip(names, tensor.chunk(len(names)), strict=True))


def refuse_unless_table(draft: CheckpointEditor, names: Sequence[str]) -> None:
    """Refuse tensors of a model that are used for anything but looking rows up.

    Raises:
        InvalidInput: There are some.
    """
    from emb_tool.ops.matrices import find_matrices

    matrices, own = find_matrices(draft.config, draft.tensors)
    roles = {matrix.tensor: matrix.role for matrix in matrices}
    tables = [tensor for tensor, role in roles.items() if role == "table"]
    for name in names:
        if roles.get(name) == "linear":
            raise InvalidInput(
                f"{name} is the weight of a linear layer, and no table",
                f"pack it with -m int:only={module_name(name)}, all of them with -m int or -m gptq",
            )
        if name not in tables:
            how = "does more with it than look rows up" if name in own else "looks no rows up in it"
            raise InvalidInput(
                f"{name} is no table that can be packed: {draft.config['model_type']} {how}",
                f"tables: {', '.join(tables) or 'none'}; or pack linear layers: -m gptq",
            )


def refuse_head(draft: CheckpointEditor, tensor: str, way_out: str) -> None:
    """Refuse a table that is the output head, too: a head multiplies by the matrix itself.

    Args:
        draft: The model.
        tensor: The table.
        way_out: What to do about it.

    Raises:
        InvalidInput: It is.
    """
    if _is_head(draft, tensor):
        raise InvalidInput(
            f"{tensor} is also the output head of {draft.config['architectures'][0]}, which needs"
            " the matrix itself",
            f"{way_out}, or take the model as an embedder, which has no head: save it with"
            " sentence-transformers first",
        )


def _is_head(draft: CheckpointEditor, tensor: str) -> bool:
    """Whether a language model that is no embedder's folder has its head tied to the table.

    In a folder of sentence-transformers the model is loaded without its head.
    """
    if (draft.checkpoint.path / "modules.json").is_file():
        return False
    architecture = class_name(draft.config)
    if not architecture.endswith(("ForCausalLM", "ForMaskedLM", "LMHeadModel")):
        return False
    heads = any(
        name.startswith(("lm_head.", "cls.predictions.decoder.w")) for name in draft.tensors
    )
    tied = draft.config.get("tie_word_embeddings", True) and not heads
    return bool(tied) and tensor == draft.table_name()
