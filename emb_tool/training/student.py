"""From a checkpoint to a student: a head into the teacher's space, started at its best place."""

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
"""Where old and new versions of sentence-transformers alike find their modules."""


def attach_head(
    encoder: Encoder,
    dim: int,
    normalises: bool,
    head: str,
    bias: bool,
    prompts: dict[str, str],
    like: Layout | None = None,
) -> Encoder:
    """A student that answers in the teacher's space.

    Args:
        encoder: The student's body; its own closing Normalize is taken off.
        dim: Width of the teacher's vectors.
        normalises: Whether the teacher's vectors have norm 1.
        head: `auto`, `none`, `linear` or `mlp`.
        bias: Whether the head has one.
        prompts: The prompts that it is trained and saved with.
        like: The teacher's layout: its similarity and its default prompt go with its space.

    Raises:
        InvalidInput: No head where the widths differ.
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
            f"--head none: the student is {encoder.dim} wide and the teacher {dim}",
            "use --head linear",
        )

    def add(inputs: int, outputs: int, with_bias: bool, activation: nn.Module) -> None:
        config = {
            "in_features": inputs,
            "out_features": outputs,
            "bias": with_bias,
            "activation_function": f"torch.nn.modules.{_home(activation)}",
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
        if normalises:
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
        normalises=normalises,
        prompts=dict(prompts),
        default_prompt_name=default if default in prompts else None,
        similarity=like.similarity,
        truncate_dim=None,
        max_length=encoder.max_length,
    )
    return Encoder(model, encoder.checkpoint, encoder.runtime, encoder.max_length, layout)


def _home(activation: nn.Module) -> str:
    """`activation.SiLU`, `linear.Identity`: where torch keeps it."""
    kind = type(activation)
    return f"{kind.__module__.removeprefix('torch.nn.modules.')}.{kind.__name__}"


def fit_head(student: Encoder, texts: list[np.ndarray], targets: np.ndarray) -> None:
    """Start the last Dense at the ridge regression from pooled vectors to the teacher's.

    W, b = argmin Σ ‖W h + b − t‖² + λ ‖W − W₀‖², in float64; W₀ is the best multiple of the
    identity where the widths are equal, else 0, and λ the one of a grid that does best on a fifth
    of the texts that it was not fitted to.

    Args:
        student: With a head.
        texts: Token ids of a sample.
        targets: (texts, dim) of the teacher.
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
        for at in range(0, len(texts), 32):
            student.forward(student.collate(texts[at : at + 32]))
    handle.remove()
    weight, bias = ridge(np.concatenate(hidden), targets.astype(np.float64), layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))


def ridge(x: np.ndarray, y: np.ndarray, with_bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, in) and bias (out,) of `fit_head`, from (n, in) and (n, out) float64."""

    def fit(x: np.ndarray, y: np.ndarray, shares: tuple[float, ...]) -> list[np.ndarray]:
        mean_x, mean_y = (x.mean(0), y.mean(0)) if with_bias else (0.0, 0.0)
        x, y = x - mean_x, y - mean_y
        start = np.zeros((x.shape[1], y.shape[1]))
        if x.shape[1] == y.shape[1]:
            start = np.eye(x.shape[1]) * ((x * y).sum() / max((x * x).sum(), 1e-30))
        values, vectors = np.linalg.eigh(x.T @ x)
        moved = vectors.T @ (x.T @ (y - x @ start))
        scale = max(values.mean(), 1e-30)
        return [start + vectors @ (moved / (values + share * scale)[:, None]) for share in shares]

    def bias(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        shift: np.ndarray = y.mean(0) - x.mean(0) @ weight
        return shift if with_bias else np.zeros(y.shape[1])

    grid = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    test = np.arange(len(x)) % 5 == 0
    errors = []
    for weight in fit(x[~test], y[~test], grid):
        guess = x[test] @ weight + bias(x[~test], y[~test], weight)
        norms = np.linalg.norm(guess, axis=1) * np.linalg.norm(y[test], axis=1)
        errors.append(-((guess * y[test]).sum(1) / np.maximum(norms, 1e-30)).mean())
    weight = fit(x, y, (grid[int(np.argmin(errors))],))[0]
    return weight.T, bias(x, y, weight)


def start_from_scratch(encoder: Encoder) -> None:
    """Put the architecture's own random initialisation in place of the weights."""
    first = encoder.model[0]
    if encoder.static:
        torch.nn.init.normal_(first.embedding.weight, std=first.embedding.embedding_dim**-0.5)
        return
    fresh = type(first.auto_model)(first.auto_model.config)
    first.auto_model.load_state_dict(fresh.state_dict())


def checkpoint_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """The dtype that most of a checkpoint's floating-point weights have; None if it has none."""
    names = {"F32": torch.float32, "F64": torch.float32}
    names |= {"BF16": DTYPES["bf16"], "F16": DTYPES["fp16"]}
    counts: dict[torch.dtype, int] = {}
    for spec in checkpoint.tensors.values():
        if spec.dtype in names:
            dtype = names[spec.dtype]
            counts[dtype] = counts.get(dtype, 0) + spec.numel
    return max(counts, key=lambda dtype: counts[dtype]) if counts else None


def write_router(student: Path, teacher: Checkpoint, folder: Path, dim: int) -> None:
    """A sentence-transformers Router: queries by the student, documents by the teacher.

    Args:
        student: Its finished folder.
        teacher: The teacher.
        folder: Where to; sentence-transformers 5 or newer opens it.
        dim: Width of the student's vectors; a wider teacher is cut to it.
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
            modules += [Normalize()] if teacher.layout.normalises else []
        router = Router.for_query_document(list(queries), modules)
        model = SentenceTransformer(
            modules=[router],
            device="cpu",
            prompts=prompts,
            similarity_fn_name=teacher.layout.similarity,  # type: ignore[arg-type]
        )
        model.save_pretrained(str(folder), create_model_card=False)
    readable(folder)
