"""The check of a lengthened model: what stock libraries make of the written files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.errors import Failed
from emb_tool.evaluate.roots import root_of
from emb_tool.evaluate.windows import UNLIMITED, limited
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table

if TYPE_CHECKING:
    from emb_tool.encoder import Encoder

SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Lengths of the short inputs, of the original length."""

ALIKE = 1 - 1e-5
"""Cosine from which two runs of a text in different batches count as the same vector."""


def check_extended(
    request: dict[str, Any], rename: Callable[[Report, str, str], None], progress: Progress
) -> Report:
    """Open a lengthened model as a user would and hold it against the one it was made from.

    Args:
        request: `folder`, `name`, `device`, `dtype`; `extended`, the input's path; `sample`, a
            jsonl file of texts; `original` and `target` lengths in tokens; `longest`, tokens of the
            longest text run; `exact`, whether short inputs are to keep their vectors to the bit;
            `rows` of the table of positions or None; `rotary`, what `_check_rotary` expects, or
            None; `tasks`.
        rename: Lets a report call the folder by its final name.
        progress: Shows how far it is.

    Raises:
        Failed: The files do not do what they say.
    """
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.encoder import Encoder
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.evaluate.run import evaluate
    from emb_tool.runtime import Runtime

    name, folder = request["name"], request["folder"]
    original, target = request["original"], request["target"]
    runtime = Runtime.start(request["device"], request["dtype"])
    report = Report("check")
    if request["tasks"]:
        report = evaluate(
            EvalJob(
                models=(folder,), task=tuple(request["tasks"]), reference=request["extended"],
                device=request["device"], dtype=request["dtype"],
            ),
            runtime, progress=progress, root=root_of(request),
        )  # fmt: skip
        rename(report, folder, name)
    written = Checkpoint.open(folder)
    if not request["tasks"]:
        report.measures.append(Measure("weights", written.weight_bytes(), "B", model=name))
    with progress.task("opening it"):
        after = Encoder.open(written, runtime)
    _check_lengths(after, target, request["rows"])
    if request["rotary"]:
        _check_rotary(after, request["rotary"], original, target)
    lines = Path(request["sample"]).read_text(encoding="utf-8").splitlines()
    inputs = Inputs(after, " ".join(json.loads(line)["text"] for line in lines))
    before = Encoder.open(request["extended"], runtime)
    before.max_length = original
    table = Table("as written", ["", ""])
    table.rows.append(["tokens read", f"{after.max_length:,}"])
    with progress.task("short inputs"):
        table.rows.append(_short(before, after, inputs, original, request["exact"], report))
    del before
    with progress.task(f"inputs of up to {request['longest']:,} tokens"):
        table.rows.append(_batches(after, inputs, original, request["longest"], report))
    report.tables.append(table)
    return report


def _check_lengths(encoder: Encoder, target: int, rows: int | None) -> None:
    """sentence-transformers' limit, the tokenizer's, and the table, as they are in memory."""
    model = encoder.model
    found = {"max_seq_length": model.max_seq_length, "the encoder's limit": encoder.max_length}
    found["the tokenizer's limit"] = min(model.tokenizer.model_max_length, target)  # may be higher
    for what, length in found.items():
        if length != target:
            raise Failed(f"{what} is {length} after loading, not {target}", None)
    if rows is not None:
        body = model[0].auto_model
        table = next(m for n, m in body.named_modules() if n.endswith("position_embeddings"))
        if table.num_embeddings != rows:  # packed ones too
            raise Failed(
                f"the table of positions has {table.num_embeddings} rows, not {rows}", None
            )


def _check_rotary(encoder: Encoder, expected: dict[str, Any], original: int, target: int) -> None:
    """What the model turns by, at the original length and at the target, against the formulas.

    Raises:
        Failed: They differ by more than float32 does, or no rotary module is found.
    """
    import torch

    body = encoder.model[0].auto_model
    modules = [m for m in body.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if not modules:
        raise Failed(f"{type(body).__name__} has no rotary module that could be checked", None)
    for module in modules:
        types: Any = module.rope_type if isinstance(module.rope_type, dict) else {None: ""}
        for layer in types:
            if layer not in (None, "full_attention"):
                continue
            start = f"{layer}_" if layer else ""
            for key, length in (("short", original), ("long", target)):
                ids = torch.arange(length, device=encoder.runtime.device)[None]
                more = {"layer_type": layer} if layer else {}
                module(torch.zeros(1, device=encoder.runtime.device), ids, **more)
                found = getattr(module, f"{start}inv_freq").double().cpu().numpy()
                factor = float(getattr(module, f"{start}attention_scaling"))
                wanted = np.array(expected[key])
                worst = np.abs(found / wanted - 1).max() if found.shape == wanted.shape else np.inf
                if worst > 1e-5 or abs(factor - expected["attention_factor"]) > 1e-6:
                    raise Failed(
                        f"at {length} tokens the reloaded model's rotary frequencies differ from "
                        f"the formula by a factor of up to {1 + worst:.6g}, its attention factor "
                        f"is {factor:.6g}, not {expected['attention_factor']:.6g}",
                        None,
                    )


class Inputs:
    """Token ids of any length, of real text, special tokens where they belong.

    Args:
        encoder: Whose tokenizer.
        text: Taken again and again where it is too short.
    """

    def __init__(self, encoder: Encoder, text: str) -> None:
        whole = limited(encoder).tokenize([text])[0]
        self._lead, self._trail = encoder.frame()
        self._inner = whole[len(self._lead) : len(whole) - len(self._trail)]

    def cut(self, length: int, start: int = 0) -> np.ndarray:
        """(length,) int32 ids; `start` tokens of the text are left out."""
        room = max(length - len(self._lead) - len(self._trail), 0)
        body = np.resize(np.roll(self._inner, -start), room)
        return np.concatenate([self._lead, body, self._trail]).astype(np.int32)


def _short(
    before: Encoder, after: Encoder, inputs: Inputs, original: int, exact: bool, report: Report
) -> list[str]:
    """Inputs up to the original length, in the same batches through both models."""
    lengths = sorted({max(3, round(share * original)) for share in SHARES})
    ids = [inputs.cut(n, 97 * i) for n in lengths for i in range(2)]
    old, new = before.encode_ids(ids), after.encode_ids(ids)
    same = bool((old == new).all())
    cosine = _cosines(old, new)
    report.measures += [
        Measure("bitwise equal", int(same), of="short inputs"),
        Measure("least cosine", float(cosine.min()), of="short inputs"),
    ]
    if exact and not same:
        raise Failed(f"inputs up to {original} tokens do not keep their vectors to the bit", None)
    if not same:
        report.warn(
            f"inputs up to {original:,} tokens get other vectors than before (cosine "
            f"{cosine.min():.4f} to {cosine.max():.4f}): an index is to be made anew"
        )
    told = "equal to the bit" if same else f"cosine {cosine.min():.4f} to {cosine.max():.4f}"
    return [f"inputs up to {original:,} tokens, against the input", told]


def _batches(
    encoder: Encoder, inputs: Inputs, original: int, longest: int, report: Report
) -> list[str]:
    """A text alone, padded beside a long one, and after a long one: is its vector the same?"""
    long = inputs.cut(longest)
    lengths = (original // 8, original, original + 8)
    probes = [inputs.cut(max(3, n), 31) for n in lengths if n <= longest]
    alone = np.concatenate([encoder.encode_ids([p]) for p in probes])
    vector = encoder.encode_ids([long])
    if not np.isfinite(vector).all():
        raise Failed(f"the vector of a text of {len(long)} tokens is not finite", None)
    after = np.concatenate([encoder.encode_ids([p]) for p in probes])
    beside = encoder.encode_ids([*probes, long], batch_tokens=UNLIMITED)[: len(probes)]
    worst = {"after a long text": _cosines(alone, after).min()}
    worst["beside a long text"] = _cosines(alone, beside).min()
    for what, value in worst.items():
        report.measures.append(Measure("least cosine", float(value), of=what))
        if value < ALIKE:
            report.warn(
                f"a text's vector depends on its batch: {what} its cosine to itself is {value:.4f};"
                " encode texts of like length together"
            )
    told = ", ".join(f"{value:.7f} {what}" for what, value in worst.items())
    return [f"a text alone, against itself (longest run: {len(long):,} tokens)", told]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray = (a * b).sum(1) / np.maximum(norms, 1e-30)
    return cosines
