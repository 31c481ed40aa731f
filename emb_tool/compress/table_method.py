"""Base class of the methods for tables.

A table method packs the token table of a model, or 2-D tensors of a bare safetensors file, to
modules of `emb_tool.packed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.checkpoint.result_cache import Result
from emb_tool.compress.step import CompressStep
from emb_tool.compress.tensors import (
    check_rows,
    match_tensors,
    module_name,
    read_counts,
    refuse_head,
    refuse_unless_table,
)
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.fields import TABLES, FlagInfo
from emb_tool.method import TextList

if TYPE_CHECKING:
    import torch

    from emb_tool.compress.calibration import CalibrationContext
    from emb_tool.packed.base import Packed

MAX_RELATIVE_ERROR = 0.3
"""Relative error above which trained tables need finetuning (measured)."""


class TableMethod(CompressStep):
    """A method that packs tables.

    A subclass defines its `kind` of `emb_tool.packed` and has the settings of this kind as fields
    of the same names; `resolve_spec` of the kind chooses those that are None by the budget.
    """

    stage = "weights"
    calibrated = True
    panel: ClassVar[str] = TABLES
    packs: ClassVar[bool] = True
    kind: ClassVar[str]

    tensor: Annotated[
        TextList,
        Field(description="names or glob patterns of the tensors to pack [the token table]"),
        FlagInfo(metavar="NAME"),
    ] = ()
    budget: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="maximum bytes of a packed table as a share of its float32 bytes",
        ),
    ] = None
    weighted: Annotated[
        bool, Field(description="weight the error of rows by the square root of their frequency")
    ] = True
    frequencies: Annotated[
        str | None,
        Field(
            description="file of row frequencies, .npy or text with one number per line [counted in"
            " --texts]"
        ),
        FlagInfo(metavar="PATH"),
    ] = None
    scale: Annotated[
        float | None,
        Field(gt=0, description="scale of a table of integers: value of a row is scale * integer"),
    ] = None
    allow_lossy: Annotated[
        bool,
        Field(
            description=f"accept a relative error above {MAX_RELATIVE_ERROR}, for finetuning with"
            " --tune"
        ),
    ] = False

    # -- which tensors ----------------------------------------------------------------------------

    def targets(self, draft: CheckpointEditor) -> list[str]:
        """Names of the tensors to pack.

        Raises:
            InvalidInput: A tensor does not exist, is not two-dimensional, is packed already, or has
                integers of unknown scale.
        """
        if not self.tensor and _is_file(draft):
            matrices = [n for n, lazy in draft.tensors.items() if len(lazy.spec.shape) == 2]
            if len(matrices) != 1 or draft.packed:
                raise InvalidInput(
                    f"{draft.checkpoint.name} has {len(matrices)} tables",
                    f"name one: -m {self.name}:tensor=NAME ({', '.join(matrices[:5])})",
                )
            names = matrices
        elif not self.tensor:
            names = [draft.table_name()]
        else:
            names = [name for pattern in self.tensor for name in match_tensors(draft, pattern)]
        names = list(dict.fromkeys(names))
        for name in names:
            self._check(draft, name)
        if draft.layout.modules and draft.layout.family != "static":
            refuse_unless_table(draft, names)
        return names

    def _check(self, draft: CheckpointEditor, name: str) -> None:
        spec = draft.spec(name)
        if len(spec.shape) != 2 or 0 in spec.shape:
            raise InvalidInput(
                f"{name} has the shape {list(spec.shape)}", "a table has two dimensions"
            )
        first = draft.layout.modules[0].kind if draft.layout.modules else ""
        if first == "MLMTransformer" and not self.tensor:
            raise InvalidInput(
                f"{name} is also the output head of a masked language model",
                "packed tables support only look-ups: compress the linear layers instead",
            )
        refuse_head(draft, name, "compress the linear layers instead: -m gptq")
        integers = spec.dtype[0] in "IU"
        if integers and self.scale is None and not draft.layout.normalizes:
            raise InvalidInput(
                f"{name} has integers ({spec.dtype}) of unknown scale",
                f"give their scale: -m {self.name}:scale=0.01",
            )
        if not integers and spec.dtype not in ("F64", "F32", "F16", "BF16"):
            raise InvalidInput(f"{name} has dtype {spec.dtype}", "use floats or integers")
        if not integers and self.scale is not None:
            raise InvalidInput(f"{name} has floats ({spec.dtype}), not integers", "leave out scale")

    # -- the step ---------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Settings of the kind."""
        names = type(self).model_fields.keys() - TableMethod.model_fields.keys()
        values = {name: getattr(self, name) for name in sorted(names)}
        return {name: value for name, value in values.items() if value is not None}

    def plan(self, draft: CheckpointEditor) -> None:
        """Plan a packed module for each table by its shape, with an upper bound of the bytes."""
        draft.refuse_quantized(self.name)
        names = self.targets(draft)
        for name in names:
            if self.frequencies is not None:
                read_counts(self.frequencies, draft.spec(name).shape[0], name)
        shapes = {name: (draft.spec(name).shape[0], draft.spec(name).shape[1]) for name in names}
        for name, spec in self.specs(draft, shapes).items():
            spec |= _tensor_entry(draft, name)
            draft.pack(module_name(name), spec, _not_fitted, tensor=name)

    def specs(
        self, draft: CheckpointEditor, shapes: Mapping[str, tuple[int, int]]
    ) -> dict[str, dict[str, Any]]:
        """Specs of the packed modules, by tensor name.

        Raises:
            InvalidInput: See `resolve_spec` of the kind.
        """
        from emb_tool import packed

        kind = packed.kind(self.kind)
        specs: dict[str, dict[str, Any]] = {}
        for name, shape in shapes.items():
            try:
                settings = self.settings() | {"role": table_role(draft, name)}
                specs[name] = kind.resolve_spec(shape, self.budget, **settings)
            except InvalidInput as error:
                raise InvalidInput(f"{name}: {error.message}", error.hint) from None
        return specs

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, context: CalibrationContext
    ) -> None:
        """Fit the packed tables and report their errors.

        Raises:
            InvalidInput: NaN or infinite values, or a relative error above `MAX_RELATIVE_ERROR`
                without `allow_lossy`.
        """
        names = self.targets(before)
        result = context.result(
            draft, "steps on tables", lambda: self._pack_tables(before, names, context)
        )
        for name, facts in result.facts.items():
            prefix = f"{name} "
            buffers = {n.removeprefix(prefix): t for n, t in result.tensors.items() if prefix in n}
            packed = restore_packed(facts["spec"], buffers)
            draft.repack(module_name(name), packed)
            error, weighted = facts["errors"]
            self._report_loss(draft, name, packed, error, weighted, facts["counted"])

    def _pack_tables(
        self, before: CheckpointEditor, names: Sequence[str], context: CalibrationContext
    ) -> Result:
        """The packed tables: their buffers as tensors, their specs and errors as facts."""
        from emb_tool.ops import rows

        tensors: dict[str, torch.Tensor] = {}
        facts: dict[str, Any] = {}
        with rows.fit_context(context.runtime.device, context.progress):
            tables = {name: self._load(before, name, context) for name in names}
            counts = {name: self._row_counts(before, name, context) for name in names}
            for name, packed in self.fit(before, tables, counts, context.seed).items():
                packed.to(context.runtime.device)
                errors = rows.relative_error(tables[name], packed.rows, counts[name])
                spec = packed.cpu().spec | _tensor_entry(before, name)
                counted = counts[name] is not None
                facts[name] = {"spec": spec, "errors": errors, "counted": counted}
                tensors |= {f"{name} {buffer}": tensor for buffer, tensor in packed.named_buffers()}
        return Result(tensors, facts)

    def fit(
        self,
        draft: CheckpointEditor,
        tables: Mapping[str, torch.Tensor],
        counts: Mapping[str, torch.Tensor | None],
        seed: int,
    ) -> dict[str, Packed]:
        """Packed modules of the tables, by tensor name."""
        from emb_tool import packed

        kind = packed.kind(self.kind)
        modules: dict[str, Packed] = {}
        for name, table in tables.items():
            settings = self.settings() | {"role": table_role(draft, name)}
            modules[name] = kind.fit(table, counts[name], self.budget, seed=seed, **settings)
        return modules

    def _report_loss(
        self,
        draft: CheckpointEditor,
        name: str,
        packed: Packed,
        error: float,
        weighted: float,
        counted: bool,
    ) -> None:
        share = packed.nbytes / (4 * packed.num_embeddings * packed.embedding_dim)
        summary = f"{name}: {self.name}, {share:.1%} of float32, relative error {error:.4f}"
        if counted:
            summary += f", weighted by frequency {weighted:.4f}"
        if not error <= MAX_RELATIVE_ERROR and not self.allow_lossy:
            raise InvalidInput(
                f"{summary}: above {MAX_RELATIVE_ERROR} a table needs finetuning",
                "use more bytes (a larger budget), or pq or int, or set allow_lossy=true and"
                " finetune the result with --tune",
            )
        draft.notes.append(summary)
        figures = {
            "bytes": packed.nbytes,
            "relative_error": error,
            "relative_error_weighted": weighted,
        }
        draft.facts[self.name] = {**draft.facts.get(self.name, {}), name: figures}

    # -- inputs -----------------------------------------------------------------------------------

    def _load(
        self, draft: CheckpointEditor, name: str, context: CalibrationContext
    ) -> torch.Tensor:
        from emb_tool.ops import rows

        table = draft.tensors[name].load()
        if not table.is_floating_point():
            table = rows.scaled(table, self.scale or 1.0, context.scratch)
        check_rows(name, table)
        return table

    def _row_counts(
        self, draft: CheckpointEditor, name: str, context: CalibrationContext
    ) -> torch.Tensor | None:
        import torch

        if not self.weighted:
            return None
        if self.frequencies is not None:
            counts = read_counts(self.frequencies, draft.spec(name).shape[0], name)
        elif not context.texts or _is_file(draft) or name != draft.table_name():
            return None
        else:
            counts = context.frequencies(draft)
        return torch.from_numpy(counts).float()


def restore_packed(spec: Mapping[str, Any], buffers: Mapping[str, torch.Tensor]) -> Packed:
    """A packed module from its spec and its stored buffers."""
    from emb_tool import packed

    module = packed.kind(spec["kind"])(spec)
    for name, tensor in buffers.items():
        setattr(module, name, tensor)
    return module


def _tensor_entry(draft: CheckpointEditor, name: str) -> dict[str, str]:
    """The entry `tensor` of a spec, if the name of the module does not determine it."""
    unusual = _is_file(draft) and not name.endswith(".weight")
    return {"tensor": name} if unusual else {}


def table_role(draft: CheckpointEditor, name: str) -> str:
    """Role of the packed table, see `Packed`."""
    return "bag" if draft.layout.family == "static" else "table"


def _not_fitted(_: torch.Tensor) -> Any:
    raise AssertionError("a table was planned but not fitted")


def _is_file(draft: CheckpointEditor) -> bool:
    return draft.checkpoint.path.is_file()
