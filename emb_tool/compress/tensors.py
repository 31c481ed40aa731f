"""Checks and names of tensors, shared by the steps that pack matrices."""

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
    """Name of the module that a weight belongs to."""
    if tensor == "embeddings":  # the name in model2vec; sentence-transformers has:
        return "embedding"
    return tensor.removesuffix(".weight")


def match_tensors(draft: CheckpointEditor, pattern: str) -> list[str]:
    """Names of the tensors that match a name or glob pattern.

    Raises:
        InvalidInput: Nothing matches; the hint has similar names.
    """
    if pattern in draft.tensors and module_name(pattern) not in draft.packed:
        return [pattern]
    names = [
        name
        for name, lazy in draft.tensors.items()
        if fnmatchcase(name, pattern) and len(lazy.spec.shape) == 2
    ]
    if names:
        return names
    if module_name(pattern) in draft.packed:
        raise InvalidInput(f"{pattern} is packed already", "pack a table in one step")
    matrices = [name for name, lazy in draft.tensors.items() if len(lazy.spec.shape) == 2]
    raise InvalidInput(
        f"{draft.checkpoint.name} has no tensor {pattern!r}", did_you_mean(pattern, matrices)
    )


def read_counts(file: str, rows: int, name: str) -> np.ndarray:
    """Read row frequencies from a file.

    Args:
        file: .npy, or text with one number per line.
        rows: Number of rows of the table.
        name: Name of the table, for error messages.

    Returns:
        (rows,).

    Raises:
        InvalidInput: The file does not exist, has no numbers, negative numbers, or not one per row.
    """
    import numpy as np

    path = Path(file).expanduser()
    try:
        counts = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"frequencies {path}: {error}", "use a .npy file, or one number per line"
        ) from None
    counts = np.atleast_1d(counts)
    if counts.shape != (rows,):
        raise InvalidInput(
            f"frequencies {path}: shape {list(counts.shape)}, but {name} has {rows:,} rows",
            "use one count per row, in the order of the rows",
        )
    if not np.isfinite(counts).all() or (counts < 0).any():
        row = int(np.flatnonzero(~np.isfinite(counts) | (counts < 0))[0])
        raise InvalidInput(
            f"frequencies {path}: row {row} is {counts[row]}", "counts must be 0 or more"
        )
    return counts


def check_rows(name: str, table: torch.Tensor) -> None:
    """Refuse NaN and infinite values.

    Raises:
        InvalidInput: Some rows are not finite; the message has the first of them.
    """
    from emb_tool.ops import rows

    first_rows, count = rows.non_finite_rows(table)
    if count:
        raise InvalidInput(
            f"{name}: {count:,} rows are not finite (NaN or infinity), the first are "
            + ", ".join(map(str, first_rows)),
            "the table is damaged or its training diverged; repair these rows first",
        )


def use_native_names(draft: CheckpointEditor) -> None:
    """Rename and split tensors as transformers does when it loads them.

    A packed module replaces one tensor, so each module needs its own tensor.

    Args:
        draft: Changed in place.
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
            f"{len(renames)} tensors are written under the names of the transformers class:"
            f" {name} as {', '.join(new)}" + (", ..." if len(renames) > 1 else "")
        )


def _cut(tensor: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    return dict(zip(names, tensor.chunk(len(names)), strict=True))


def refuse_unless_table(draft: CheckpointEditor, names: Sequence[str]) -> None:
    """Refuse tensors that the model uses for anything but look-ups of rows.

    Raises:
        InvalidInput: A tensor is not a look-up table.
    """
    from emb_tool.ops.matrices import find_matrices

    matrices, other_uses = find_matrices(draft.config, draft.tensors)
    roles = {matrix.tensor: matrix.role for matrix in matrices}
    tables = [tensor for tensor, role in roles.items() if role == "table"]
    for name in names:
        if roles.get(name) == "linear":
            raise InvalidInput(
                f"{name} is the weight of a linear layer, not a table",
                f"pack it with -m int:only={module_name(name)}, all of them with -m int or -m gptq",
            )
        if name not in tables:
            reason = (
                "does more with it than look up rows"
                if name in other_uses
                else "does not look up rows in it"
            )
            raise InvalidInput(
                f"{name} cannot be packed as a table: {draft.config['model_type']} {reason}",
                f"tables: {', '.join(tables) or 'none'}; or pack linear layers: -m gptq",
            )


def refuse_head(draft: CheckpointEditor, tensor: str, alternative: str) -> None:
    """Refuse a table that is also the output head, which needs the whole matrix.

    Args:
        draft: The model.
        tensor: Name of the table.
        alternative: Start of the hint.

    Raises:
        InvalidInput: The table is tied to the output head.
    """
    if _is_head(draft, tensor):
        raise InvalidInput(
            f"{tensor} is also the output head of {draft.config['architectures'][0]}, which needs"
            " the whole matrix",
            f"{alternative}, or save the model with sentence-transformers first, without its head",
        )


def _is_head(draft: CheckpointEditor, tensor: str) -> bool:
    """Whether a tensor is the token table of a language model and tied to its output head.

    False for sentence-transformers folders, whose models are loaded without a head.
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
