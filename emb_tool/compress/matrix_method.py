"""Base class of the methods that pack linear layers and tables, one matrix at a time."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from math import isfinite, prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.checkpoint.result_cache import Result
from emb_tool.compress.step import CompressStep
from emb_tool.compress.table_method import MAX_RELATIVE_ERROR, restore_packed
from emb_tool.compress.tensors import (
    check_rows,
    module_name,
    refuse_head,
    use_native_names,
)
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.fields import FlagInfo
from emb_tool.method import TextList
from emb_tool.registry import did_you_mean

if TYPE_CHECKING:
    import torch

    from emb_tool.compress.calibration import CalibrationContext
    from emb_tool.ops.matrices import Matrix
    from emb_tool.plan import TensorSpec

FLOATS = ("F64", "F32", "F16", "BF16")

MIN_BYTES_SAVED = 0.001
"""Share of a model's bytes that packing a table must save, unless `only` names the table."""


class MatrixMethod(CompressStep):
    """A method that packs every matrix of the transformer.

    A subclass defines its `kind` of `emb_tool.packed` and the settings of this kind.
    """

    stage: ClassVar[str] = "weights"
    packs: ClassVar[bool] = True
    kind: ClassVar[str]

    only: Annotated[
        TextList,
        Field(description="names or glob patterns of the modules to pack [all]"),
        FlagInfo(metavar="NAME"),
    ] = ()
    skip: Annotated[
        TextList,
        Field(description="names or glob patterns of modules that are not packed"),
        FlagInfo(metavar="NAME"),
    ] = ()

    @property
    def share(self) -> float | None:
        """Maximum bytes of a packed matrix as a share of its float32 bytes; None: no limit."""
        return None

    @property
    def patterns(self) -> TextList:
        """Names or glob patterns of the modules to pack; empty: all."""
        return self.only

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """Settings of the kind for a matrix; None: it is not packed."""
        raise NotImplementedError

    def plan(self, draft: CheckpointEditor) -> None:
        """Plan a packed module for each matrix."""
        from emb_tool import packed

        draft.refuse_quantized(self.name)
        kind = packed.kind(self.kind)
        counts = {"linear": 0, "table": 0}
        before = draft.nbytes
        total = before + sum(4 * prod(spec["shape"]) for spec in draft.packed.values())  # unpacked
        errors = draft.facts.setdefault(self.name, {"relative_error": {}})["relative_error"]
        for matrix in self.matrices(draft):
            settings = self.settings(matrix)
            if settings is None:
                continue
            tensor_spec = draft.spec(matrix.tensor)
            _check_supported(draft, matrix, self.name)
            shape = (tensor_spec.shape[0], tensor_spec.shape[1])
            try:
                spec = kind.resolve_spec(
                    shape, self.share, role=matrix.role, bias=matrix.bias, **settings
                )
            except InvalidInput as error:
                raise InvalidInput(f"{matrix.tensor}: {error.message}", error.hint) from None
            saved = tensor_spec.nbytes - sum(part.nbytes for part in kind.parts(spec).values())
            requested = matrix.role != "table" or not draft.layout.modules or bool(self.patterns)
            if saved <= (0 if requested else MIN_BYTES_SAVED * total):
                continue  # saves nothing: token types, relative positions
            pack = partial(_pack, name=matrix.tensor, spec=spec, errors=errors)
            draft.pack(matrix.module, spec, pack, tensor=matrix.tensor)
            counts["linear" if matrix.role == "linear" else "table"] += 1
        if not any(counts.values()):
            hint = "list its parts with: embtool inspect; use fewer bits"
            if draft.packed:
                hint = "leave out this step, or start with the original: it is packed already"
            raise InvalidInput(
                f"{draft.checkpoint.name}: {self.name} has nothing to make smaller",
                hint,
            )
        draft.notes.append(
            f"{self.name}: {counts['linear']} linear layers and {counts['table']} tables,"
            f" {before / 1e6:.1f} MB become {draft.nbytes / 1e6:.1f} MB"
        )

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, context: CalibrationContext
    ) -> None:
        """Pack large tables on the device with a progress bar; others are packed when written."""
        from emb_tool.ops import rows

        errors = draft.facts[self.name]["relative_error"]
        before = before.copy()
        if before.layout.modules and before.layout.family != "static":
            use_native_names(before)

        def packed_result(name: str, spec: dict[str, Any]) -> Result:
            packed = _pack(before.tensors[name].load(), name, spec, errors)
            return Result(dict(packed.named_buffers()), {"error": errors[name]})

        with rows.fit_context(context.runtime.device, context.progress):
            for name, lazy in before.tensors.items():
                module = module_name(name)
                if module in draft.packed.keys() - before.packed.keys() and _is_large(lazy.spec):
                    spec = draft.packed[module]
                    result = context.result(
                        draft, "large matrices", partial(packed_result, name, spec), name
                    )
                    errors[name] = result.facts["error"]
                    draft.repack(module, restore_packed(spec, result.tensors))

    def matrices(self, draft: CheckpointEditor) -> list[Matrix]:
        """The matrices to pack, selected by `only` and `skip`.

        Raises:
            InvalidInput: A pattern matches nothing.
        """
        from emb_tool.ops.matrices import Matrix, find_matrices

        layout = draft.layout
        if not layout.modules or layout.family == "static":
            role = "bag" if layout.modules else "table"
            candidates = [
                Matrix(name, module_name(name), role)
                for name, lazy in draft.tensors.items()
                if len(lazy.spec.shape) == 2 and 0 not in lazy.spec.shape
            ]
        else:
            use_native_names(draft)
            two_dimensional = {
                n: lazy for n, lazy in draft.tensors.items() if len(lazy.spec.shape) == 2
            }
            candidates, unsupported = find_matrices(draft.config, two_dimensional)
            if unsupported:
                count = (
                    "1 matrix is" if len(unsupported) == 1 else f"{len(unsupported)} matrices are"
                )
                draft.notes.append(
                    f"{self.name}: {count} not packed, because {draft.config['model_type']} uses"
                    f" {'it' if len(unsupported) == 1 else 'them'} for more than look-ups or a"
                    " linear layer:"
                    f" {', '.join(unsupported[:3])}" + (", ..." if len(unsupported) > 3 else "")
                )
        known = [matrix.module for matrix in candidates]
        for pattern in (*self.patterns, *self.skip):
            if not any(_matches(pattern, module) for module in known):
                raise InvalidInput(
                    f"{self.name}: {pattern!r} matches no linear layer or table of"
                    f" {draft.checkpoint.name}",
                    did_you_mean(pattern, known),
                )
        return [
            matrix
            for matrix in candidates
            if (
                not self.patterns
                or any(_matches(pattern, matrix.module) for pattern in self.patterns)
            )
            and not any(_matches(pattern, matrix.module) for pattern in self.skip)
        ]


def _pack(table: torch.Tensor, name: str, spec: Mapping[str, Any], errors: dict[str, float]) -> Any:
    """Pack a matrix and store its relative error in `errors`.

    Raises:
        InvalidInput: The relative error is above `MAX_RELATIVE_ERROR`, for example because the
            scales underflow in float16, or is NaN.
    """
    from emb_tool import packed
    from emb_tool.ops import rows

    settings = {key: value for key, value in spec.items() if key not in ("kind", "shape")}
    packed_matrix = packed.kind(spec["kind"]).fit(table, **settings)
    errors[name], _ = rows.relative_error(table, packed_matrix.rows)
    if not isfinite(errors[name]):
        check_rows(name, table)
    if not errors[name] <= MAX_RELATIVE_ERROR:
        raise InvalidInput(
            f"{name}: relative error {errors[name]:.4f} as {spec['kind']}",
            "use more bits or smaller groups, or leave it out with skip=",
        )
    return packed_matrix


def _is_large(spec: TensorSpec) -> bool:
    from emb_tool.checkpoint.reader import MMAP_BYTES

    return spec.nbytes >= MMAP_BYTES


def _check_supported(draft: CheckpointEditor, matrix: Matrix, method: str) -> None:
    """Refuse matrices that a packed module does not support."""
    spec, layout = draft.spec(matrix.tensor), draft.layout
    if spec.dtype not in FLOATS and not (layout.normalizes and matrix.role == "bag"):
        raise InvalidInput(
            f"{matrix.tensor} is {spec.dtype}, and the scale of its integers is not known",
            "use a table method with the scale: -m pq:scale=0.01; leave it out here with"
            f" -m {method}:skip={matrix.module}",
        )
    if matrix.role == "table":
        refuse_head(draft, matrix.tensor, f"leave it out with -m {method}:skip={matrix.module}")


def _matches(pattern: str, module: str) -> bool:
    return pattern in (module, f"{module}.weight") or fnmatchcase(module, pattern)
