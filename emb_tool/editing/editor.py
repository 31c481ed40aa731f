"""A checkpoint on its way to being another: what surgery changes, and what is written in the end.

Tensors of a draft are promises: a spec, and how to compute it when it is written. A chain of steps
so becomes one read and one write, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.files import join, resolve_inside, write_json
from emb_tool.checkpoint.layout import Layout, write_layout
from emb_tool.checkpoint.quantization import packed_modules
from emb_tool.checkpoint.reader import Checkpoint, copy_aux_files
from emb_tool.editing.lazy_tensor import LazyTensor, part_reader, tensor_reader, write_tensors
from emb_tool.editing.token_table import SHARED, stored_twice, token_table
from emb_tool.errors import InvalidInput
from emb_tool.install import HUB, INSTALL, WHERE
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch

    from emb_tool.packed.base import Packed


NOTICE = f"packed weights: {INSTALL} ({WHERE}), then `{HUB}` before loading"
"""Stands in the config of a checkpoint that other libraries cannot read alone."""


@dataclass
class Rotation:
    """y = V (x - m): announced by a step's plan, set by its `apply`.

    Args:
        matrix: V, orthogonal, (dim, dim) float32.
        mean: m, (dim,) float32; None where vectors are not centered.
    """

    matrix: torch.Tensor | None = None
    mean: torch.Tensor | None = None


@dataclass
class CheckpointEditor:
    """A checkpoint as the steps so far have made it.

    Args:
        checkpoint: Where it began.
        tensors: Main tensors by name.
        config: `config.json` as it will be written.
        layout: The modules as they will be written.
        modules: Tensors of modules other than the main one, by `ModuleSpec.path`, then name.
        files: Tokenizer files that are no longer those of the checkpoint: name to content, None
            for one that is left out.
        packed: Module name (`embeddings.word_embeddings`) to its spec, see `emb_tool.packed`.
        notes: Sentences for the user.
        facts: Figures of the steps, for the report.
        rotations: Of the steps that rotate the vectors, in their order.
        history: The steps that have been planned, by method name.
        chain: The same with their settings, as JSON.
    """

    checkpoint: Checkpoint
    tensors: dict[str, LazyTensor]
    config: dict[str, Any]
    layout: Layout
    modules: dict[str, dict[str, LazyTensor]]
    files: dict[str, bytes | None] = field(default_factory=dict)
    packed: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    rotations: list[Rotation] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> CheckpointEditor:
        """The draft before any step: what is there, unchanged."""
        layout = checkpoint.layout
        if layout.routes:
            raise InvalidInput(
                f"{checkpoint.name} is a Router of several models", "name the folder of one of them"
            )
        modules = {}
        for module in layout.modules[1:]:
            weights = checkpoint.weights.get(module.path)
            if weights is not None:
                modules[module.path] = {
                    name: LazyTensor(spec, part_reader(checkpoint, module.path, name))
                    for name, spec in weights.tensors.items()
                }
        twice = stored_twice(checkpoint)
        return cls(
            checkpoint,
            {
                name: LazyTensor(spec, tensor_reader(checkpoint, name))
                for name, spec in checkpoint.tensors.items()
                if name not in twice
            },
            dict(checkpoint.config),
            layout,
            modules,
            packed=packed_modules(checkpoint.config),
            notes=[f"{name} repeats {SHARED} and is stored once" for name in twice],
        )

    def copy(self) -> CheckpointEditor:
        """Another one that the next step may change."""
        return replace(
            self,
            tensors=dict(self.tensors),
            config=dict(self.config),
            modules={path: dict(tensors) for path, tensors in self.modules.items()},
            files=dict(self.files),
            packed=dict(self.packed),
            notes=list(self.notes),
            facts=dict(self.facts),
            rotations=list(self.rotations),
            history=list(self.history),
            chain=list(self.chain),
        )

    # -- reading it -------------------------------------------------------------------------------

    def spec(self, name: str) -> TensorSpec:
        """A main tensor's spec."""
        return self.tensors[name].spec

    def file(self, name: str) -> bytes | None:
        """A tokenizer or config file as it will be written; None if there is none."""
        if name in self.files:
            return self.files[name]
        path = resolve_inside(self.checkpoint.path, join(self.checkpoint.layout.main, name))
        return path.read_bytes() if path.is_file() else None

    def specs(self) -> list[TensorSpec]:
        """Every tensor that will be written, those of modules included."""
        groups = [self.tensors, *self.modules.values()]
        return [lazy.spec for tensors in groups for lazy in tensors.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data that will be written."""
        return sum(spec.nbytes for spec in self.specs())

    def table_name(self) -> str:
        """The tensor that token ids look up.

        Raises:
            InvalidInput: None can be made out.
        """
        specs = {name: lazy.spec for name, lazy in self.tensors.items()}
        return token_table(self.checkpoint.name, self.layout.family, specs, self.packed)

    def refuse_quantized(self, step: str) -> None:
        """Refuse a step on weights that another library's format holds.

        Raises:
            InvalidInput: They are those of the input, or an earlier step made them.
        """
        method = (self.config.get("quantization_config") or {}).get("quant_method")
        if method in (None, "embtool"):
            return
        if "quantization_config" in self.checkpoint.config:
            raise InvalidInput(
                f"{self.checkpoint.name} is quantized ({method}), {step} needs plain weights",
                "vocab, rotate and truncate work on it; begin with the original for the rest",
            )
        raise InvalidInput(
            f"-m {step} after a step that writes {method}'s format, of which a checkpoint has one",
            f"put -m {step} before it, or leave one of the two out",
        )

    # -- changing it ------------------------------------------------------------------------------

    def set(self, name: str, spec: TensorSpec, load: Callable[[], torch.Tensor]) -> None:
        """Put or replace a main tensor."""
        self.tensors[name] = LazyTensor(spec, load)

    def map(self, name: str, spec: TensorSpec, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace a main tensor by a function of what it would have been."""
        load = self.tensors[name].load
        self.tensors[name] = LazyTensor(spec, lambda: fn(load()))

    def keep_layers(self, keep: int | Sequence[int]) -> None:
        """Leave layers out; see `emb_tool.ops.layers.plan_cut`.

        Args:
            keep: The layers to keep in order of application, or how many.

        Raises:
            InvalidInput: The draft's tensors are no longer those of the checkpoint by name.
        """
        from emb_tool.ops.layers import keep_layers, plan_cut

        if self.tensors.keys() != CheckpointEditor.of(self.checkpoint).tensors.keys():
            raise InvalidInput(
                f"the layers are no longer those of {self.checkpoint.name}",
                "choose the layers in one step, before any other",
            )
        cut = plan_cut(self.checkpoint, keep_layers(self.checkpoint, keep))
        renamed = {}
        for old, new in cut.tensors.items():
            if old not in self.tensors:
                continue  # stored twice, and written once
            spec, load = self.tensors[old]
            renamed[new.name] = LazyTensor(replace(spec, name=new.name), load)
        self.tensors = renamed
        self.config |= cut.config
        self.notes += cut.notes

    def split(
        self,
        name: str,
        specs: Sequence[TensorSpec],
        fn: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    ) -> None:
        """Put several main tensors in the place of one.

        Args:
            name: The one.
            specs: Those that it becomes, which may have its name.
            fn: Makes them all by name, once while they are written.
        """
        load = self.tensors.pop(name).load
        made: dict[str, torch.Tensor] = {}

        def read(part: str) -> torch.Tensor:
            if part not in made:  # not begun, or written before
                made.update(fn(load()))
            return made.pop(part)

        for spec in specs:
            self.set(spec.name, spec, lambda part=spec.name: read(part))  # type: ignore[misc]

    def pack(
        self,
        module: str,
        spec: Mapping[str, Any],
        fit: Callable[[torch.Tensor], Any],
        tensor: str | None = None,
    ) -> None:
        """Let a packed module stand for `module.weight`.

        Args:
            module: Its name, without `.weight`.
            spec: Of `emb_tool.packed`, by `settle`.
            fit: Makes the packed module from the matrix; called once, when it is written.
            tensor: The matrix's name where it is another.
        """
        from emb_tool import packed

        self.refuse_quantized(spec["kind"])
        names = _stored(packed.kind(spec["kind"]), spec)
        self.split(
            tensor or f"{module}.weight",
            [TensorSpec(f"{module}.{buffer}", (size,), "U8") for buffer, size in names.items()],
            lambda matrix: _buffers(module, fit(matrix), names),
        )
        self.packed[module] = dict(spec)

    def repack(self, module: str, made: Packed) -> None:
        """Put a packed module that is finished in the place of one announced by `pack`."""
        from emb_tool import packed

        for buffer in _stored(packed.kind(made.kind), self.packed[module]):
            del self.tensors[f"{module}.{buffer}"]
        for buffer, nbytes in _stored(type(made), made.spec).items():
            name = f"{module}.{buffer}"
            self.set(name, TensorSpec(name, (nbytes,), "U8"), lambda b=buffer: getattr(made, b))  # type: ignore[misc]
        self.packed[module] = dict(made.spec)

    def write(self, folder: Path, progress: Callable[[int], None] | None = None) -> Layout:
        """Write the whole checkpoint; every tensor is computed once, when its turn comes.

        Args:
            folder: An empty folder.
            progress: Called with the bytes of each tensor written.

        Returns:
            The layout as written.
        """
        copy_aux_files(self.checkpoint, folder)
        for name, content in self.files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                (folder / name).write_bytes(content)
        config = {k: v for k, v in self.config.items() if v is not None}
        if self.packed:
            modules = {name: self.packed[name] for name in sorted(self.packed)}
            config["quantization_config"] = {
                "quant_method": "embtool", "version": 1, "notice": NOTICE, "modules": modules,
            }  # fmt: skip
        if config:  # a static table has none, unless it is packed
            write_json(folder / "config.json", config)
        # a bare file of tensors has no modules
        written = write_layout(folder, self.layout) if self.layout.modules else self.layout
        write_tensors(folder / written.main, self.tensors, progress)
        for old, new in zip(self.layout.modules[1:], written.modules[1:], strict=True):
            if self.modules.get(old.path):
                (folder / new.path).mkdir(parents=True, exist_ok=True)
                write_tensors(folder / new.path, self.modules[old.path], progress)
        return written


def _stored(cls: Any, spec: Mapping[str, Any]) -> dict[str, int]:
    """Buffer name to bytes."""
    sizes = [(name, part.nbytes) for name, part in cls.parts(spec).items()]
    return {("weight" if i == 0 else name): size for i, (name, size) in enumerate(sizes)}


def _buffers(module: str, made: Packed, names: Iterable[str]) -> dict[str, torch.Tensor]:
    return {f"{module}.{buffer}": getattr(made, buffer) for buffer in names}
