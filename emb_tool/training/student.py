"""Prepares a student: a head into the teacher's space, initialized by ridge regression."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from emb_tool.checkpoint.layout import Layout
from emb_tool.checkpoint.modules import ModuleSpec
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.model.loading import embedding_dimension, load, readable
from emb_tool.progress import quiet
from emb_tool.runtime.device import DTYPES

if TYPE_CHECKING:
    from torch import nn

MODELS = "sentence_transformers.models"
"""Module path that both old and new versions of sentence-transformers can import."""


def attach_head(
    encoder: Encoder,
    dim: int,
    normalizes: bool,
    head: str,
    bias: bool,
    prompts: dict[str, str],
    like: Layout | None = None,
) -> Encoder:
    """Attach a head that maps the student's vectors into the teacher's space.

    Args:
        encoder: The student's backbone; its final Normalize is removed.
        dim: Dimension of the teacher's vectors.
        normalizes: Whether the teacher's vectors have norm 1.
        head: `auto`, `none`, `linear` or `mlp`.
        bias: Whether the head has a bias.
        prompts: The prompts that the student is trained and saved with.
        like: The teacher's layout, for the similarity function and the default prompt.

    Raises:
        InvalidInput: `none` although the dimensions differ.
    """
    specs = list(encoder.layout.modules)
    modules = list(encoder.model)
    while specs[-1].kind == "Normalize":
        specs.pop()
        modules.pop()
    if head == "auto":
        head = "none" if encoder.dim == dim else "linear"
    if head == "none" and encoder.dim != dim:
        raise InvalidInput(
            f"--head none: the student has {encoder.dim} dimensions, the teacher {dim}",
            "use --head linear",
        )

    def add(inputs: int, outputs: int, with_bias: bool, activation: nn.Module) -> None:
        config = {
            "in_features": inputs,
            "out_features": outputs,
            "bias": with_bias,
            "activation_function": f"torch.nn.modules.{_import_path(activation)}",
        }
        specs.append(ModuleSpec("Dense", f"{len(specs)}_Dense", config, f"{MODELS}.Dense"))
        modules.append(Dense(inputs, outputs, bias=with_bias, activation_function=activation))

    with quiet():
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Dense, Normalize

        if head == "mlp":
            hidden = max(encoder.dim, dim)
            add(encoder.dim, hidden, True, torch.nn.SiLU())
            add(hidden, dim, bias, torch.nn.Identity())
        elif head == "linear":
            add(encoder.dim, dim, bias, torch.nn.Identity())
        if normalizes:
            specs.append(
                ModuleSpec("Normalize", f"{len(specs)}_Normalize", {}, f"{MODELS}.Normalize")
            )
            modules.append(Normalize())
        model = SentenceTransformer(modules=modules, device=str(encoder.runtime.device))
    like = like or encoder.layout
    default = like.default_prompt_name
    layout = replace(
        encoder.layout,
        modules=tuple(specs),
        dim=dim,
        normalizes=normalizes,
        prompts=dict(prompts),
        default_prompt_name=default if default in prompts else None,
        similarity=like.similarity,
        truncate_dim=None,
        max_length=encoder.max_length,
    )
    return Encoder(model, encoder.checkpoint, encoder.runtime, encoder.max_length, layout)


def _import_path(activation: nn.Module) -> str:
    """Path of a class relative to `torch.nn.modules`, as `activation.SiLU`."""
    kind = type(activation)
    return f"{kind.__module__.removeprefix('torch.nn.modules.')}.{kind.__name__}"


def fit_head(student: Encoder, texts: list[np.ndarray], targets: np.ndarray) -> None:
    """Initialize the last Dense by ridge regression from pooled vectors to the teacher's vectors.

    W, b = argmin Σ ‖W h + b − t‖² + λ ‖W − W₀‖², in float64; W₀ is the best multiple of the
    identity if the dimensions are equal, otherwise 0, and λ is selected from a grid on a held-out
    fifth of the texts.

    Args:
        student: A student with a head.
        texts: Token ids of a sample of texts.
        targets: (texts, dim), vectors of the teacher.
    """
    dense = [module for module in student.model if type(module).__name__ == "Dense"]
    if not dense or len(texts) < 5:
        return
    layer = dense[-1].linear
    hidden: list[np.ndarray] = []
    handle = layer.register_forward_pre_hook(
        lambda module, inputs: hidden.append(inputs[0].detach().double().cpu().numpy())
    )
    student.model.eval()
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            student.forward(student.collate(texts[start : start + 32]))
    handle.remove()
    weight, bias = ridge(np.concatenate(hidden), targets.astype(np.float64), layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))


def ridge(x: np.ndarray, y: np.ndarray, with_bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weight (out, in) and bias (out,) of `fit_head`, from (n, in) and (n, out) float64."""

    def fit(x: np.ndarray, y: np.ndarray, penalties: tuple[float, ...]) -> list[np.ndarray]:
        mean_x, mean_y = (x.mean(0), y.mean(0)) if with_bias else (0.0, 0.0)
        x, y = x - mean_x, y - mean_y
        start = np.zeros((x.shape[1], y.shape[1]))
        if x.shape[1] == y.shape[1]:
            start = np.eye(x.shape[1]) * ((x * y).sum() / max((x * x).sum(), 1e-30))
        values, vectors = np.linalg.eigh(x.T @ x)
        projected = vectors.T @ (x.T @ (y - x @ start))
        scale = max(values.mean(), 1e-30)
        return [
            start + vectors @ (projected / (values + penalty * scale)[:, None])
            for penalty in penalties
        ]

    def bias(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        offset: np.ndarray = y.mean(0) - x.mean(0) @ weight
        return offset if with_bias else np.zeros(y.shape[1])

    grid = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    test = np.arange(len(x)) % 5 == 0
    errors = []
    for weight in fit(x[~test], y[~test], grid):
        predicted = x[test] @ weight + bias(x[~test], y[~test], weight)
        norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(y[test], axis=1)
        errors.append(-((predicted * y[test]).sum(1) / np.maximum(norms, 1e-30)).mean())
    weight = fit(x, y, (grid[int(np.argmin(errors))],))[0]
    return weight.T, bias(x, y, weight)


def reinitialize(encoder: Encoder) -> None:
    """Replace the weights by the architecture's random initialization."""
    first = encoder.model[0]
    if encoder.static:
        torch.nn.init.normal_(first.embedding.weight, std=first.embedding.embedding_dim**-0.5)
        return
    fresh = type(first.auto_model)(first.auto_model.config)
    first.auto_model.load_state_dict(fresh.state_dict())


def checkpoint_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """The most frequent dtype of a checkpoint's floating-point weights; None if it has none."""
    names = {"F32": torch.float32, "F64": torch.float32}
    names |= {"BF16": DTYPES["bf16"], "F16": DTYPES["fp16"]}
    counts: dict[torch.dtype, int] = {}
    for spec in checkpoint.tensors.values():
        if spec.dtype in names:
            dtype = names[spec.dtype]
            counts[dtype] = counts.get(dtype, 0) + spec.numel
    return max(counts, key=lambda dtype: counts[dtype]) if counts else None


def write_router(student: Path, teacher: Checkpoint, folder: Path, dim: int) -> None:
    """Write a sentence-transformers Router: queries use the student, documents the teacher.

    Args:
        student: Folder of the finished student.
        teacher: The teacher.
        folder: Output folder; needs sentence-transformers 5 or newer to load.
        dim: Dimension of the student's vectors; the teacher's are truncated to it.
    """
    with quiet():
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Dense, Normalize, Router

        cpu = torch.device("cpu")
        queries = load(Checkpoint.open(student), cpu, None, substitute=0.0)
        documents = load(teacher, cpu, None, substitute=0.0)
        prompts = {name: text or "" for name, text in queries.prompts.items()}
        modules = list(documents)
        width = teacher.layout.dim or embedding_dimension(documents) or dim
        if width != dim:
            identity = torch.nn.Identity()
            first = torch.eye(dim, width)
            modules.append(Dense(width, dim, False, identity, init_weight=first))
            modules += [Normalize()] if teacher.layout.normalizes else []
        router = Router.for_query_document(list(queries), modules)
        model = SentenceTransformer(
            modules=[router],
            device="cpu",
            prompts=prompts,
            similarity_fn_name=teacher.layout.similarity,  # type: ignore[arg-type]
        )
        model.save_pretrained(str(folder), create_model_card=False)
    readable(folder)
