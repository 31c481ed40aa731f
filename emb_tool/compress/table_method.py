"""What every method for tables shares: which tensors, how much may be lost, packed how.

A table method makes a packed module (`emb_tool.packed`) of the token table of a model, or of any
2-D tensors of a bare safetensors file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.checkpoint.result_cache import Result
from emb_tool.compress.step import CompressStep
from emb_tool.compress.tensors import (
    check_rows,
    match,
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
"""Relative error above which finished tables were found unusable without further training."""


class TableMethod(CompressStep):
    """A method that packs tables.

    A subclass names its `kind` of `emb_tool.packed` and adds that kind's settings as fields of the
    same names; those that are None are left to `settle` and the budget.
    """

    stage = "weights"
    calibrated = True
    panel: ClassVar[str] = TABLES
    packs: ClassVar[bool] = True
    kind: ClassVar[str]

    tensor: Annotated[
        TextList,
        Field(description="names or patterns of the tensors [the token table]"),
        FlagInfo(metavar="NAME"),
    ] = ()
    budget: Annotated[
        float | None,
        Field(gt=0, le=1, description="share of the table's float32 bytes that may be used"),
    ] = None
    weighted: Annotated[
        bool, Field(description="let a row's error count by the root of its frequency")
    ] = True
    frequencies: Annotated[
        str | None,
        Field(description="file of counts, one per row: .npy or text [counted in the texts]"),
        FlagInfo(metavar="PATH"),
    ] = None
    scale: Annotated[
        float | None, Field(gt=0, description="what 1 of an integer table stands for")
    ] = None
    allow_lossy: Annotated[
        bool,
        Field(
            description=f"accept a relative error above {MAX_RELATIVE_ERROR},"
            " to be tuned afterwards"
        ),
    ] = False

    # -- which tensors ----------------------------------------------------------------------------

    def targets(self, draft: CheckpointEditor) -> list[str]:
        """The tensors that are packed.

        Raises:
            InvalidInput: No such tensor, not two-dimensional, packed already, integers of unknown
                scale.
        """
        if not self.tensor and _is_file(draft):
            matrices = [n for n, lazy in draft.tensors.items() if len(lazy.spec.shape) == 2]
            if len(matrices) != 1 or draft.packed:
                raise InvalidInput(
                    f"{draft.checkpoint.name} holds {len(matrices)} tables",
                    f"say which: -m {self.name}:tensor=NAME ({', '.join(matrices[:5])})",
                )
            names = matrices
        elif not self.tensor:
            names = [draft.table_name()]
        else:
            names = [name for pattern in self.tensor for name in match(draft, pattern)]
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
                f"{name} has the shape {list(spec.shape)}", "a table has rows and columns"
            )
        first = draft.layout.modules[0].kind if draft.layout.modules else ""
        if first == "MLMTransformer" and not self.tensor:
            raise InvalidInput(
                f"{name} is also the output head of a masked language model",
                "a packed table serves look-ups alone: compress the linear layers instead",
            )
        refuse_head(draft, name, "compress the linear layers instead: -m gptq")
        integers = spec.dtype[0] in "IU"
        if integers and self.scale is None and not draft.layout.normalises:
            raise InvalidInput(
                f"{name} holds integers ({spec.dtype}) and their scale is not known",
                f"say what 1 stands for: -m {self.name}:scale=0.01",
            )
        if not integers and spec.dtype not in ("F64", "F32", "F16", "BF16"):
            raise InvalidInput(f"{name} has dtype {spec.dtype}", "packed are floats and integers")
        if not integers and self.scale is not None:
            raise InvalidInput(
                f"{name} holds floats ({spec.dtype}), no integers", "leave scale out"
            )

    # -- the step ---------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The settings of the kind itself."""
        own = type(self).model_fields.keys() - TableMethod.model_fields.keys()
        values = {name: getattr(self, name) for name in sorted(own)}
        return {name: value for name, value in values.items() if value is not None}

    def plan(self, draft: CheckpointEditor) -> None:
        """Announce a packed module for each table, by sizes alone: an upper bound of the bytes."""
        draft.refuse_quantized(self.name)
        names = self.targets(draft)
        for name in names:
            if self.frequencies is not None:
                read_counts(self.frequencies, draft.spec(name).shape[0], name)
        shapes = {name: (draft.spec(name).shape[0], draft.spec(name).shape[1]) for name in names}
        for name, spec in self.specs(draft, shapes).items():
            spec |= _called(draft, name)
            draft.pack(module_name(name), spec, _not_fitted, tensor=name)

    def specs(
        self, draft: CheckpointEditor, shapes: Mapping[str, tuple[int, int]]
    ) -> dict[str, dict[str, Any]]:
        """The specs of the packed modules, by tensor name.

        Raises:
            InvalidInput: As the kind's `settle`.
        """
        from emb_tool import packed

        kind = packed.kind(self.kind)
        found: dict[str, dict[str, Any]] = {}
        for name, shape in shapes.items():
            try:
                settings = self.settings() | {"role": role(draft, name)}
                found[name] = kind.resolve_spec(shape, self.budget, **settings)
            except InvalidInput as error:
                raise InvalidInput(f"{name}: {error.message}", error.hint) from None
        return found

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, work: CalibrationContext
    ) -> None:
        """Fit the tables, and say what was lost.

        Raises:
            InvalidInput: NaN or infinities, or a relative error above `MAX_RELATIVE_ERROR` without
                `allow_lossy`.
        """
        names = self.targets(before)
        found = work.result(draft, "steps on tables", lambda: self._fitted(before, names, work))
        for name, facts in found.facts.items():
            head = f"{name} "
            buffers = {n.removeprefix(head): t for n, t in found.tensors.items() if head in n}
            made = packed_class(facts["spec"], buffers)
            draft.repack(module_name(name), made)
            error, weighted = facts["errors"]
            self._judge(draft, name, made, error, weighted, facts["counted"])

    def _fitted(
        self, before: CheckpointEditor, names: Sequence[str], work: CalibrationContext
    ) -> Result:
        """The packed tables as tensors and facts."""
        from emb_tool.ops import rows

        tensors: dict[str, torch.Tensor] = {}
        facts: dict[str, Any] = {}
        with rows.fit_context(work.runtime.device, work.progress):
            tables = {name: self._load(before, name, work) for name in names}
            counts = {name: self._frequencies(before, name, work) for name in names}
            for name, made in self.fit(before, tables, counts, work.seed).items():
                made.to(work.runtime.device)
                errors = rows.relative_error(tables[name], made.rows, counts[name])
                spec = made.cpu().spec | _called(before, name)
                counted = counts[name] is not None
                facts[name] = {"spec": spec, "errors": errors, "counted": counted}
                tensors |= {f"{name} {buffer}": held for buffer, held in made.named_buffers()}
        return Result(tensors, facts)

    def fit(
        self,
        draft: CheckpointEditor,
        tables: Mapping[str, torch.Tensor],
        counts: Mapping[str, torch.Tensor | None],
        seed: int,
    ) -> dict[str, Packed]:
        """The packed modules of the tables, by tensor name."""
        from emb_tool import packed

        kind = packed.kind(self.kind)
        made: dict[str, Packed] = {}
        for name, table in tables.items():
            settings = self.settings() | {"role": role(draft, name)}
            made[name] = kind.fit(table, counts[name], self.budget, seed=seed, **settings)
        return made

    def _judge(
        self,
        draft: CheckpointEditor,
        name: str,
        made: Packed,
        error: float,
        weighted: float,
        counted: bool,
    ) -> None:
        share = made.nbytes / (4 * made.num_embeddings * made.embedding_dim)
        said = f"{name}: {self.name}, {share:.1%} of float32, relative error {error:.4f}"
        if counted:
            said += f", weighted by frequency {weighted:.4f}"
        if not error <= MAX_RELATIVE_ERROR and not self.allow_lossy:
            raise InvalidInput(
                f"{said}: above {MAX_RELATIVE_ERROR} a finished table is of no use as it is",
                "give it more bytes (a larger budget), take pq or int, or say allow_lossy=true and"
                " train the result with --tune",
            )
        draft.notes.append(said)
        figures = {
            "bytes": made.nbytes,
            "relative_error": error,
            "relative_error_weighted": weighted,
        }
        draft.facts[self.name] = {**draft.facts.get(self.name, {}), name: figures}

    # -- what it works on -------------------------------------------------------------------------

    def _load(self, draft: CheckpointEditor, name: str, work: CalibrationContext) -> torch.Tensor:
        from emb_tool.ops import rows

        table = draft.tensors[name].load()
        if not table.is_floating_point():
            table = rows.scaled(table, self.scale or 1.0, work.scratch)
        check_rows(name, table)
        return table

    def _frequencies(
        self, draft: CheckpointEditor, name: str, work: CalibrationContext
    ) -> torch.Tensor | None:
        import torch

        if not self.weighted:
            return None
        if self.frequencies is not None:
            counts = read_counts(self.frequencies, draft.spec(name).shape[0], name)
        elif not work.texts or _is_file(draft) or name != draft.table_name():
            return None
        else:
            counts = work.frequencies(draft)
        return torch.from_numpy(counts).float()


def packed_class(spec: Mapping[str, Any], buffers: Mapping[str, torch.Tensor]) -> Packed:
    """A packed module from what is stored of it."""
    from emb_tool import packed

    made = packed.kind(spec["kind"])(spec)
    for name, held in buffers.items():
        setattr(made, name, held)
    return made


def _called(draft: CheckpointEditor, name: str) -> dict[str, str]:
    """The tensor's name, for a spec, where its module does not tell."""
    odd = _is_file(draft) and not name.endswith(".weight")
    return {"tensor": name} if odd else {}


def role(draft: CheckpointEditor, name: str) -> str:
    """How the packed table will be used, see `Packed`."""
    return "bag" if draft.layout.family == "static" else "table"


def _not_fitted(_: torch.Tensor) -> Any:
    raise AssertionError("a table was announced and not fitted")


def _is_file(draft: CheckpointEditor) -> bool:
    return draft.checkpoint.path.is_file()
