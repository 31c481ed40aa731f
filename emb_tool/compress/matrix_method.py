"""What methods share that pack linear layers and tables alike, each matrix by itself."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from math import isfinite, prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.checkpoint.result_cache import Result
from emb_tool.compress.step import CompressStep
from emb_tool.compress.table_method import MAX_RELATIVE_ERROR, packed_class
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
"""Least share of a model's bytes that packing a table saves; smaller ones are packed by `only`."""


class MatrixMethod(CompressStep):
    """A method without calibration that packs every matrix of the main part.

    A subclass names its `kind` of `emb_tool.packed` and says with what settings.
    """

    stage: ClassVar[str] = "weights"
    packs: ClassVar[bool] = True
    kind: ClassVar[str]

    only: Annotated[
        TextList,
        Field(description="names or patterns of the modules to pack [all]"),
        FlagInfo(metavar="NAME"),
    ] = ()
    skip: Annotated[
        TextList,
        Field(description="names or patterns of modules that stay as they are"),
        FlagInfo(metavar="NAME"),
    ] = ()

    @property
    def share(self) -> float | None:
        """Share of a matrix's float32 bytes that may be used."""
        return None

    @property
    def wanted(self) -> TextList:
        """Names or patterns of what is packed; none: everything."""
        return self.only

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """Settings of the kind for a matrix; None leaves it as it is."""
        raise NotImplementedError

    def plan(self, draft: CheckpointEditor) -> None:
        """Announce a packed module for each matrix."""
        from emb_tool import packed

        draft.refuse_quantized(self.name)
        kind = packed.kind(self.kind)
        counts = {"linear": 0, "table": 0}
        before = draft.nbytes
        whole = before + sum(4 * prod(spec["shape"]) for spec in draft.packed.values())  # unpacked
        errors = draft.facts.setdefault(self.name, {"relative_error": {}})["relative_error"]
        for matrix in self.matrices(draft):
            settings = self.settings(matrix)
            if settings is None:
                continue
            stored = draft.spec(matrix.tensor)
            _check(draft, matrix, self.name)
            shape = (stored.shape[0], stored.shape[1])
            try:
                spec = kind.resolve_spec(
                    shape, self.share, role=matrix.role, bias=matrix.bias, **settings
                )
            except InvalidInput as error:
                raise InvalidInput(f"{matrix.tensor}: {error.message}", error.hint) from None
            saved = stored.nbytes - sum(part.nbytes for part in kind.parts(spec).values())
            asked = matrix.role != "table" or not draft.layout.modules or bool(self.wanted)
            if saved <= (0 if asked else MIN_BYTES_SAVED * whole):
                continue  # nothing is gained: token types, relative positions
            fit = partial(_fit, name=matrix.tensor, spec=spec, errors=errors)
            draft.pack(matrix.module, spec, fit, tensor=matrix.tensor)
            counts["linear" if matrix.role == "linear" else "table"] += 1
        if not any(counts.values()):
            why = "see its parts with: embtool inspect; take fewer bits"
            if draft.packed:
                why = "what is packed stays: leave this step out, or begin with the original"
            raise InvalidInput(
                f"{draft.checkpoint.name}: {self.name} finds nothing that it would make smaller",
                why,
            )
        draft.notes.append(
            f"{self.name}: {counts['linear']} linear layers and {counts['table']} tables,"
            f" {before / 1e6:.1f} MB become {draft.nbytes / 1e6:.1f} MB"
        )

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, work: CalibrationContext
    ) -> None:
        """Fit large tables now, on the device and with a bar; the rest is fitted when written."""
        from emb_tool.ops import rows

        errors = draft.facts[self.name]["relative_error"]
        before = before.copy()
        if before.layout.modules and before.layout.family != "static":
            use_native_names(before)

        def fitted(name: str, spec: dict[str, Any]) -> Result:
            made = _fit(before.tensors[name].load(), name, spec, errors)
            return Result(dict(made.named_buffers()), {"error": errors[name]})

        with rows.fit_context(work.runtime.device, work.progress):
            for name, lazy in before.tensors.items():
                module = module_name(name)
                if module in draft.packed.keys() - before.packed.keys() and _is_large(lazy.spec):
                    spec = draft.packed[module]
                    found = work.result(draft, "large matrices", partial(fitted, name, spec), name)
                    errors[name] = found.facts["error"]
                    draft.repack(module, packed_class(spec, found.tensors))

    def matrices(self, draft: CheckpointEditor) -> list[Matrix]:
        """What is packed, by `only` and `skip`.

        Raises:
            InvalidInput: A pattern that fits nothing.
        """
        from emb_tool.ops.matrices import Matrix, find_matrices

        layout = draft.layout
        if not layout.modules or layout.family == "static":
            role = "bag" if layout.modules else "table"
            found = [
                Matrix(name, module_name(name), role)
                for name, lazy in draft.tensors.items()
                if len(lazy.spec.shape) == 2 and 0 not in lazy.spec.shape
            ]
        else:
            use_native_names(draft)
            plain = {n: lazy for n, lazy in draft.tensors.items() if len(lazy.spec.shape) == 2}
            found, own = find_matrices(draft.config, plain)
            if own:
                what = "1 matrix is" if len(own) == 1 else f"{len(own)} matrices are"
                draft.notes.append(
                    f"{self.name}: {what} not packed, since {draft.config['model_type']} does more"
                    " than look rows up or apply a linear layer:"
                    f" {', '.join(own[:3])}" + (", ..." if len(own) > 3 else "")
                )
        known = [matrix.module for matrix in found]
        for pattern in (*self.wanted, *self.skip):
            if not any(_fits(pattern, module) for module in known):
                raise InvalidInput(
                    f"{self.name}: {pattern!r} fits no linear layer or table of"
                    f" {draft.checkpoint.name}",
                    did_you_mean(pattern, known),
                )
        return [
            matrix
            for matrix in found
            if (not self.wanted or any(_fits(pattern, matrix.module) for pattern in self.wanted))
            and not any(_fits(pattern, matrix.module) for pattern in self.skip)
        ]


def _fit(table: torch.Tensor, name: str, spec: Mapping[str, Any], errors: dict[str, float]) -> Any:
    """The packed matrix; what it loses goes into `errors`.

    Raises:
        InvalidInput: More than `MAX_RELATIVE_ERROR`: numbers too small for float16 scales, for one;
            or NaN.
    """
    from emb_tool import packed
    from emb_tool.ops import rows

    settings = {key: value for key, value in spec.items() if key not in ("kind", "shape")}
    made = packed.kind(spec["kind"]).fit(table, **settings)
    errors[name], _ = rows.relative_error(table, made.rows)
    if not isfinite(errors[name]):
        check_rows(name, table)
    if not errors[name] <= MAX_RELATIVE_ERROR:
        raise InvalidInput(
            f"{name}: relative error {errors[name]:.4f} as {spec['kind']}",
            "give it more bits or smaller groups, or leave it out with skip=",
        )
    return made


def _is_large(spec: TensorSpec) -> bool:
    from emb_tool.checkpoint.reader import LARGE

    return spec.nbytes >= LARGE


def _check(draft: CheckpointEditor, matrix: Matrix, method: str) -> None:
    """Refuse what a packed module would not serve."""
    spec, layout = draft.spec(matrix.tensor), draft.layout
    if spec.dtype not in FLOATS and not (layout.normalises and matrix.role == "bag"):
        raise InvalidInput(
            f"{matrix.tensor} is {spec.dtype}, and what 1 stands for is not known",
            "a table method takes it with its scale: -m pq:scale=0.01; leave it out here with"
            f" -m {method}:skip={matrix.module}",
        )
    if matrix.role == "table":
        refuse_head(draft, matrix.tensor, f"leave it out with -m {method}:skip={matrix.module}")


def _fits(pattern: str, module: str) -> bool:
    return pattern in (module, f"{module}.weight") or fnmatchcase(module, pattern)
