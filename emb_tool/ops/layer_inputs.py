"""Inputs of the linear layers of a model, layer by layer, while the layers before them change."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emb_tool.ops.microbatches import retry_in_microbatches, split_batch
from emb_tool.runtime.device import Runtime


@dataclass(frozen=True)
class Batch:
    """One batch of a calibration.

    Args:
        forward: Runs the model on features.
        features: See `Encoder.collate`; `attention_mask` (texts, tokens) is 0 at padding, and left
            out where nothing is padded.
    """

    forward: Callable[[dict[str, Any]], object]
    features: Mapping[str, Any]

    def run(self) -> None:
        """Run the model on the batch."""
        self.forward(dict(self.features))

    @property
    def mask(self) -> Tensor | None:
        """(texts, tokens) bool, False at padding."""
        mask = self.features.get("attention_mask")
        return None if mask is None else mask.bool()

    def parts(self, count: int) -> list[Batch]:
        """The batch split into up to `count` batches."""
        return [replace(self, features=part) for part in split_batch(self.features, count)]


class InputMoments(NamedTuple):
    """Second moments of the input that some layers share.

    Args:
        names: Their names.
        moments: (in, in) float64, Σ x xᵀ over all tokens of all batches.
        tokens: Number of x.
    """

    names: list[str]
    moments: Tensor
    tokens: int


def second_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    runtime: Runtime,
    done: Container[str] = (),
) -> Iterator[InputMoments]:
    """Σ x xᵀ of each layer's inputs, in order of execution.

    The caller may change the layers of an item before it asks for the next: later moments are
    computed with the changed layers. Outputs of finished blocks are cached (tokens x width numbers)
    and these blocks are not run again. A batch that does not fit in memory is split, down to single
    texts.

    Args:
        model: In eval mode.
        layers: Name to linear layer of the model; layers that are not called are skipped.
        batches: The calibration batches.
        runtime: Device of the model; sums are float64 on it, or on the CPU if it has no float64.
        done: Layers to skip, because they were changed before.
    """
    place = runtime.device if runtime.has_float64 else torch.device("cpu")
    first = batches[0]
    trace, parts = retry_in_microbatches(
        lambda count: _trace(model, layers, first.parts(count)[0]), first.features, runtime
    )
    cached = [_CachedBatch(batch) for batch in batches]
    past = 0  # blocks whose outputs are cached
    try:
        for names, ready in trace.stages:
            if all(name in done for name in names):
                continue
            total, tokens = None, 0
            wanted = [layers[name] for name in names]
            for batch in cached:
                work = partial(batch.run, model, wanted, trace, past, ready)
                begin = len(batch.pieces) or parts
                seen, count = retry_in_microbatches(work, batch.whole.features, runtime, begin)
                parts = max(parts, count)
                moments = seen.moments.to(place, torch.float64)
                total = moments if total is None else total.add_(moments)
                tokens += seen.tokens
            past = max(past, ready)
            assert total is not None
            yield InputMoments(list(names), total, tokens)
    finally:
        cached.clear()


class _CachedBatch:
    """A batch in pieces that fit in memory, each with the output of its last finished block."""

    def __init__(self, batch: Batch) -> None:
        self.whole = batch
        self.pieces: list[Batch] = []
        self.outputs: list[Any] = []

    def run(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        trace: _Trace,
        past: int,
        ready: int,
        count: int,
    ) -> _Run:
        """`_run` in `count` pieces."""
        if count != len(self.pieces):  # cached outputs belong to other pieces
            self.pieces, self.outputs = self.whole.parts(count), [None] * count
        total: Tensor | None = None
        tokens = 0
        for i, (piece, output) in enumerate(zip(self.pieces, self.outputs, strict=True)):
            behind = 0 if output is None else past
            with _skipping(trace.blocks[:behind], output), torch.no_grad():
                seen = _run(piece, model, layers, trace, trace.blocks[behind:ready])
            if seen.output is not None:
                self.outputs[i] = seen.output
            total = seen.moments if total is None else total.add_(seen.moments)
            tokens += seen.tokens
        assert total is not None
        return _Run(total, tokens, None)


class _Trace(NamedTuple):
    """Order of a forward pass: layers by their input, and the number of blocks finished before."""

    stages: list[tuple[list[str], int]]
    blocks: list[nn.Module]
    calls: dict[nn.Module, int]


class _Done(BaseException):
    """Stops a forward pass after the last layer of interest."""


def _trace(model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> _Trace:
    """Run one batch and record the order of calls."""
    order: list[tuple[str, Tensor, int]] = []
    calls: dict[nn.Module, int] = {}
    blocks = _stack(model, layers)
    entered: list[tuple[int, Tensor | None]] = []
    left: list[Tensor | None] = []

    def layer_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[module] = calls.get(module, 0) + 1
            order.append((name, _input(args, kwargs), len(left)))

        return hook

    def enter(place: int) -> Callable[..., None]:
        return lambda _, args, kwargs: entered.append((place, _first(args or kwargs)))

    with _hooks() as hooks, torch.no_grad():
        for name, layer in layers.items():
            hooks.append(layer.register_forward_pre_hook(layer_hook(name), with_kwargs=True))
        for place, block in enumerate(blocks):
            hooks.append(block.register_forward_pre_hook(enter(place), with_kwargs=True))
            hooks.append(block.register_forward_hook(lambda _, args, out: left.append(_first(out))))
        batch.run()
    chain = [place for place, _ in entered] == list(range(len(blocks))) and all(
        tensor is out for (_, tensor), out in zip(entered[1:], left, strict=False)
    )
    stages: list[tuple[list[str], int]] = []
    last: Tensor | None = None
    visited: set[str] = set()
    for name, tensor, ready in order:
        if name in visited:
            continue
        visited.add(name)
        alone = calls[layers[name]] > 1
        if tensor is last and not alone:
            stages[-1][0].append(name)
        else:
            stages.append(([name], ready if chain else 0))
        last = None if alone else tensor
    return _Trace(stages, blocks if chain else [], calls)


def _stack(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The blocks of the list of modules that holds the most of the layers."""
    best: list[nn.Module] = []
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            inside = sum(layer.startswith(f"{name}.") for layer in layers)
            if inside > most:
                best, most = list(module), inside
    return best


class _Run(NamedTuple):
    moments: Tensor
    tokens: int
    output: Any


def _run(
    batch: Batch,
    model: nn.Module,
    layers: Sequence[nn.Module],
    trace: _Trace,
    fresh: Sequence[nn.Module],
) -> _Run:
    """Run one batch up to the layers and return the output of the last of the `fresh` blocks."""
    first, last = layers[0], layers[-1]
    total: Tensor | None = None
    tokens, called, output = 0, 0, None

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal total, tokens
        rows = _tokens(_input(args, kwargs), batch.mask).float()
        moments = rows.T @ rows
        total = moments if total is None else total.add_(moments)
        tokens += len(rows)

    def stop(*_: Any) -> None:
        nonlocal called
        called += 1
        if called == trace.calls[last]:
            raise _Done

    def keep(_: nn.Module, args: Any, out: Any) -> None:
        nonlocal output
        output = out

    with _hooks() as hooks:
        hooks.append(first.register_forward_pre_hook(hook, with_kwargs=True))
        hooks.append(last.register_forward_pre_hook(stop))
        if fresh:
            hooks.append(fresh[-1].register_forward_hook(keep))
        with suppress(_Done):
            batch.run()
    assert total is not None, "a layer was run in one batch and not in another"
    return _Run(total, tokens, output)


def _tokens(rows: Tensor, mask: Tensor | None) -> Tensor:
    """(tokens, in): the inputs that are not padding."""
    if mask is not None and rows.shape[:-1] == mask.shape:
        return rows[mask]
    if mask is not None and rows.dim() == 2 and len(rows) == mask.numel():
        return rows[mask.flatten()]
    return rows.reshape(-1, rows.shape[-1])


@contextmanager
def without_cache(model: Any) -> Iterator[None]:
    """Disable the cache of keys and values, which blocks that are skipped do not fill.

    Args:
        model: A transformers model.
    """
    use_cache = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = use_cache


@contextmanager
def _skipping(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Make the blocks return the cached output of the last of them."""
    for block in blocks:
        block.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for hook in handles:
            hook.remove()


def _input(args: Any, kwargs: Any) -> Tensor:
    tensor = _first(args or kwargs)
    assert tensor is not None
    return tensor


def _first(value: Any) -> Tensor | None:
    """The first tensor of the arguments or the output of a call: its hidden states."""
    if isinstance(value, Mapping):
        value = value.get("hidden_states", next(iter(value.values()), None))
    elif isinstance(value, tuple | list):
        value = value[0] if value else None
    return value if isinstance(value, Tensor) else None
