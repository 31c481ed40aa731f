"""Tables to quantize, and what their bytes say, read without the code under test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.calibration import CalibrationContext
from emb_tool.compress.step import CompressStep, run_steps
from emb_tool.editing import CheckpointEditor
from emb_tool.packed.base import Packed
from emb_tool.progress import Progress


def make_table(rows: int = 1200, columns: int = 16, seed: int = 0) -> torch.Tensor:
    """Correlated columns, rows of different length."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns))
    return torch.from_numpy(mixed * rng.lognormal(0, 0.3, (rows, 1))).float() / columns**0.5


def zipf(rows: int, seed: int = 0) -> torch.Tensor:
    """Counts that fall like 1 / rank, in random order; the rarest are 0."""
    ranks = np.random.default_rng(seed).permutation(rows) + 1
    return torch.from_numpy(np.floor(rows / 2 / ranks)).float()


def stored(module: Packed, part: str) -> np.ndarray:
    """A part's numbers, from its bytes."""
    shape, dtype = module._parts[part]
    data = getattr(module, module.stored_name(part)).numpy().tobytes()
    kind = {torch.uint8: "u1", torch.int8: "i1", torch.int32: "<i4", torch.float16: "<f2"}[dtype]
    return np.frombuffer(data, kind).reshape(shape)


def unpack(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Codes in parts of 4, 2 and 1 bits, each part bit on bit, lowest first; 8 bits are bytes."""
    codes = np.zeros((len(packed), columns), int)
    start = low = 0
    for part in [part for part in (4, 2, 1) if bits & part] or [8]:
        stop = start + -(-columns * part // 8)
        ones = np.unpackbits(packed[:, start:stop], axis=1, bitorder="little")
        ones = ones[:, : columns * part].reshape(len(packed), columns, part)
        codes += (ones << np.arange(part)).sum(2) << low
        start, low = stop, low + part
    return codes


def decoded(module: Packed) -> np.ndarray:
    """The matrix that codes, codebooks and frequent rows stand for, in float64."""
    spec = module.spec
    rows, columns = spec["shape"]
    m, s = spec["subvectors"], spec["stages"]
    books = stored(module, "codebooks").astype(np.float64) * spec.get("scale", 1.0)

    def sums(codes: np.ndarray) -> np.ndarray:
        codes = codes.reshape(len(codes), m, s)
        parts = [sum(books[j, i][codes[:, j, i]] for i in range(s)) for j in range(m)]
        return np.concatenate(parts, axis=1)

    bits = spec.get("tail_bits", spec["bits"])
    out = np.zeros((rows, columns))
    frequent = stored(module, "frequent_ids") if spec["frequent_rows"] else np.zeros(0, int)
    cold = np.setdiff1d(np.arange(rows), frequent)
    out[cold] = sums(unpack(stored(module, "codes"), bits, m * s))
    if "rotation" in module._parts:
        out = out @ stored(module, "rotation").astype(np.float64).T
    if "frequent_codes" in module._parts:
        out[frequent] = sums(unpack(stored(module, "frequent_codes"), spec["bits"], m * s))
    elif len(frequent):
        out[frequent] = frequent_values(module) * spec.get("scale", 1.0)
    return out


def frequent_values(module: Packed) -> np.ndarray:
    """Rows that are whole numbers, in float64: int8 with a scale, or c s + m."""
    bits, data = module.spec["frequent_bits"], stored(module, "frequent_values")
    if bits == 8:
        return data * stored(module, "frequent_scales").astype(np.float64)[:, None]
    (data,) = data.swapaxes(0, 1)
    scale, minimum = np.ascontiguousarray(data[:, -4:]).view("<f2").astype(np.float64).T
    codes = unpack(data[:, :-4], bits, module.embedding_dim)
    return codes * scale[:, None] + minimum[:, None]


def rel_error(table: Any, made: Any, weights: Any = 1.0) -> float:
    """Σ w‖x - x'‖² / Σ w‖x‖²."""
    table, made = np.asarray(table, np.float64), np.asarray(made, np.float64)
    lost, held = ((table - made) ** 2).sum(1), (table**2).sum(1)
    return float((np.asarray(weights) * lost).sum() / (np.asarray(weights) * held).sum())


def make_work(folder: Path, texts: list[str] | None = None) -> CalibrationContext:
    """Texts to calibrate on, run on the CPU."""
    from emb_tool.runtime.device import Runtime

    return CalibrationContext(texts or [], Runtime.start("cpu", "fp32", 0), Progress(0), folder)


def run_step(
    step: CompressStep, source: Path, folder: Path, texts: list[str] | None = None
) -> CheckpointEditor:
    """A draft after one step."""
    folder.mkdir(exist_ok=True)
    start = CheckpointEditor.of(Checkpoint.open(source, need_tokenizer=False))
    return run_steps([step], start, make_work(folder, texts))


def bare(folder: Path, **tables: torch.Tensor) -> Path:
    """A safetensors file of tables."""
    path = folder / "tables.safetensors"
    save_file(tables, path)
    return path


def written(draft: CheckpointEditor, folder: Path) -> SimpleNamespace:
    """The draft written out: its packed modules read back, its config and the file."""
    import json

    from safetensors.torch import load_file

    from emb_tool import packed

    folder.mkdir()
    draft.write(folder)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    modules: dict[str, Packed] = {}
    for name, spec in config["quantization_config"]["modules"].items():
        modules[name] = packed.empty(spec)
        held = {n: tensors[f"{name}.{n}"] for n, _ in modules[name].named_buffers()}
        modules[name].load_state_dict(held)
    for module in modules.values():
        module.link(modules)
    return SimpleNamespace(tensors=tensors, config=config, modules=modules, folder=folder)


def train_steps(module: Packed, table: torch.Tensor, steps: int = 60) -> tuple[float, float]:
    """Squared error of the rows before and after some steps of SGD on the trainable parts."""
    parameters = module.unlock()
    assert parameters
    optimizer = torch.optim.SGD(parameters, lr=0.2)
    ids = torch.arange(len(table))
    losses = []
    for _ in range(steps):
        loss = (module(ids) - table).square().sum(1).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.lock()
    return losses[0], (module(ids) - table).square().sum(1).mean().item()
