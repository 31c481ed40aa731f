"""How the code of a model uses its matrices, traced without weights.

A packed module (`emb_tool.packed`) serves calls alone: ids to rows, inputs to outputs. Some classes
read a module's weight as well: DeBERTa multiplies by the table of its relative positions,
DistilBERT fills that of its sinusoidal ones while it is loaded. These stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

TOKENS = 2
"""Token ids of the trial: more than one, and no more than any model reads."""

SERVED = frozenset(
    ("bias", "num_embeddings", "embedding_dim", "in_features", "out_features", "padding_idx")
)
"""What a packed module has in common with those that it stands for, its weight apart."""


class WeightUses(NamedTuple):
    """What a trial has shown.

    Args:
        called: Names of the modules that the forward pass calls.
        read: Names of those of which it, or the initialization, reads more than `SERVED`.
        is_complete: Whether the forward pass ran to its end; not every kernel runs without weights.
    """

    called: set[str]
    read: set[str]
    is_complete: bool


def find_uses(model: Any, modules: Mapping[str, nn.Module]) -> WeightUses:
    """Initialize a model as after loading, and run it.

    Args:
        model: As `ops.bare.model_on_meta` gives it; observers take the place of `modules` in it.
        modules: By name, those that are asked for.
    """
    reads: list[UseObserver] = []
    observers = {name: UseObserver(module, reads) for name, module in modules.items()}
    places = {id(module): observers[name] for name, module in modules.items()}
    for parent in [*model.modules()]:
        for child, module in parent._modules.items():
            parent._modules[child] = places.get(id(module), module)
    blamed = _initialize(model, reads)
    for observer in observers.values():
        observer.show_weight()
    is_complete = _run(model)
    read = {*reads, *blamed}
    return WeightUses(
        {name for name, observer in observers.items() if observer.is_called},
        {name for name, observer in observers.items() if observer in read},
        is_complete,
    )


def _run(model: Any) -> bool:
    """Run the forward pass on `meta`, as sentence-transformers calls it; whether it ended."""
    with torch.device("meta"):
        inputs = {"input_ids": torch.zeros(1, TOKENS, dtype=torch.int64)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = inputs["input_ids"]
        try:
            with torch.no_grad(), _Zeros():  # type: ignore[no-untyped-call]
                model.eval()(**inputs)
        except Exception:  # any library's code may raise anything, and all of it means: unknown
            return False
    return True


class _Zeros(TorchDispatchMode):
    """Whoever asks for a number of a tensor without data is told 0: code that branches goes on."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        return func(*args, **(kwargs or {}))


def _initialize(model: Any, reads: list[UseObserver]) -> list[UseObserver]:
    """Run every `_init_weights`, as transformers does once the weights are read.

    It passes over what was read, unless it computes with a weight first, which bytes make fail.

    Args:
        model: With observers.
        reads: What they fill; empty afterwards.

    Returns:
        Those whose bytes made it fail.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    blamed: list[UseObserver] = []
    while True:
        reads.clear()
        for module in model.modules():
            module._is_hf_initialized = False
        try:
            model.initialize_weights()
        except Exception:  # as in _run
            if reads and reads[-1] not in blamed:
                blamed.append(reads[-1])
                reads[-1].show_weight()  # it stays a plain module
                continue
        reads.clear()
        return blamed


class UseObserver(nn.Module):
    """Stands where a packed module would, neither an `nn.Embedding` nor an `nn.Linear`.

    Args:
        module: Does the work.
        reads: Where it enters itself when more of it is read than `SERVED`.
    """

    module: Any
    stored: Tensor
    """What readers of the weight are given: bytes, as a packed module has them, to begin with."""

    def __init__(self, module: nn.Module, reads: list[UseObserver]) -> None:
        super().__init__()
        self.__dict__["module"] = module  # no submodule: it is not in the model any more
        self.reads = reads
        self.is_called = False
        stored = torch.zeros(1, dtype=torch.uint8, device="meta")
        stored._is_hf_initialized = True  # type: ignore[attr-defined]
        self.__dict__["stored"] = stored

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives."""
        self.is_called = True
        return self.module(*args, **kwargs)

    def show_weight(self) -> None:
        """Give readers the weight itself, as the plain module does, and no bytes."""
        self.__dict__["stored"] = self.module.weight

    @property
    def weight(self) -> Tensor:
        """What readers of the weight are given."""
        self.reads.append(self)
        return self.stored

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["module"], name)
        if name not in SERVED:
            self.reads.append(self)
        return value
