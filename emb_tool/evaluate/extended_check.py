"""The check of an extended model: the written files as stock libraries load them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from emb_tool.data.builtin_texts import sample_texts
from emb_tool.data.text_options import TextOptions
from emb_tool.errors import RunFailed
from emb_tool.evaluate.length_baselines import UNLIMITED, limit_length
from emb_tool.evaluate.root_comparison import open_root
from emb_tool.evaluate.written_model import evaluate_tasks
from emb_tool.method import Settings
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.runtime.check_process import Check

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder

SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Lengths of the short inputs, as fractions of the longest one."""

BLOCK = 4096
"""Texts tokenized at a time."""

MIN_COSINE = 1 - 1e-5
"""Minimum cosine at which a text's vectors from two different batches count as equal."""


class RotaryFrequencies(Settings):
    """The rotary frequencies that a model is expected to compute.

    Args:
        short: Radians per token of each pair for inputs up to the original length, (d/2,).
        long: The same for longer inputs.
        attention_factor: Factor of the cosine and sine.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    attention_factor: float


class ExtendedCheck(Check):
    """Open an extended model as a user would, and compare it with its source model.

    Args:
        source: Folder of the source model.
        original: Length that the source model was trained at, in tokens.
        extended: Length that the extended model must read, in tokens.
        short: Longest input that the source reads without truncation, at trained positions, in
            tokens.
        longest: Longest text that is encoded, in tokens.
        exact: Whether the vectors of short inputs must be bit-identical.
        rows: Rows of the position table, if there is one.
        rotary: The expected rotary frequencies, if known.
        texts: Files of the user's texts, counted by length.
        text_options: How they are read.
        limit: Maximum number of texts.
        prompt_name: Their prompt.
        tasks: As of `embtool eval`.
    """

    kind: Literal["extended"] = "extended"
    source: Path
    original: int
    extended: int
    short: int
    longest: int
    exact: bool
    rows: int | None = None
    rotary: RotaryFrequencies | None = None
    texts: tuple[str, ...] = ()
    text_options: TextOptions = TextOptions()
    limit: int | None = None
    prompt_name: str | None = None
    tasks: tuple[str, ...] = ()

    def run(self, progress: Progress) -> Report:
        """See `Check.run`."""
        from emb_tool.checkpoint.reader import Checkpoint
        from emb_tool.model.encoder import Encoder
        from emb_tool.runtime.device import Runtime

        target = self.target
        runtime = Runtime.start(target.device, target.dtype)
        written, root = Checkpoint.open(target.folder), open_root(target) if self.tasks else None
        report = evaluate_tasks(
            written, target, self.tasks, runtime, progress, root=root, reference=self.source
        )
        with progress.task("opening the model"):
            after = Encoder.open(written, runtime)
        _check_lengths(after, self.extended, self.rows)
        if self.rotary:
            _check_rotary(after, self.rotary, self.original, self.extended)
        inputs = Inputs(after, " ".join(sample_texts()))
        before = Encoder.open(self.source, runtime)  # as a user loads it, with its own limit
        table = Table("as written", ["", ""])
        table.rows.append(["tokens read", f"{after.max_length:,}"])
        with progress.task("short inputs"):
            table.rows.append(_short(before, after, inputs, self.short, self.exact, report))
        with progress.task("longer inputs"):
            table.rows.append(_longer(before, after, inputs, self, report))
        if self.texts:
            with progress.task("counting tokens of the texts"):
                table.rows += _to_reencode(before, self, report)
        del before
        with progress.task(f"inputs of up to {self.longest:,} tokens"):
            table.rows.append(_batches(after, inputs, self.original, self.longest, report))
        report.tables.append(table)
        return report

    def untested_inputs(self) -> tuple[Sequence[Path], Sequence[str]]:
        """The source model: an extension runs no model before its check."""
        return [self.source], sample_texts()


def _check_lengths(encoder: Encoder, target: int, rows: int | None) -> None:
    """Check the loaded limits of sentence-transformers and tokenizer, and the position table."""
    model = encoder.model
    limits = {"max_seq_length": model.max_seq_length, "the encoder's limit": encoder.max_length}
    limits["the tokenizer's limit"] = min(model.tokenizer.model_max_length, target)  # may be higher
    for name, length in limits.items():
        if length != target:
            raise RunFailed(f"{name} is {length} after loading, not {target}", None)
    if rows is not None:
        body = model[0].auto_model
        table = next(m for n, m in body.named_modules() if n.endswith("position_embeddings"))
        if table.num_embeddings != rows:  # also of packed tables
            raise RunFailed(f"the position table has {table.num_embeddings} rows, not {rows}", None)


def _check_rotary(
    encoder: Encoder, expected: RotaryFrequencies, original: int, target: int
) -> None:
    """Compare the rotary frequencies at the original and the target length with the formulas.

    Raises:
        RunFailed: They differ by more than float32 rounding, or there is no rotary module.
    """
    import torch

    body = encoder.model[0].auto_model
    modules = [m for m in body.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if not modules:
        raise RunFailed(f"{type(body).__name__} has no rotary module to check", None)
    for module in modules:
        types: Any = module.rope_type if isinstance(module.rope_type, dict) else {None: ""}
        for layer in types:
            if layer not in (None, "full_attention"):
                continue
            prefix = f"{layer}_" if layer else ""
            for frequencies, length in ((expected.short, original), (expected.long, target)):
                ids = torch.arange(length, device=encoder.runtime.device)[None]
                kwargs = {"layer_type": layer} if layer else {}
                module(torch.zeros(1, device=encoder.runtime.device), ids, **kwargs)
                actual = getattr(module, f"{prefix}inv_freq").double().cpu().numpy()
                factor = float(getattr(module, f"{prefix}attention_scaling"))
                wanted = np.array(frequencies)
                same_shape = actual.shape == wanted.shape
                worst = np.abs(actual / wanted - 1).max() if same_shape else np.inf
                if worst > 1e-5 or abs(factor - expected.attention_factor) > 1e-6:
                    raise RunFailed(
                        f"at {length} tokens the reloaded model's rotary frequencies differ from "
                        f"the formula by a factor of up to {1 + worst:.6g}, its attention factor "
                        f"is {factor:.6g}, not {expected.attention_factor:.6g}",
                        None,
                    )


class Inputs:
    """Inputs of any length from real text, as token ids with special tokens or as texts.

    Args:
        encoder: The encoder whose tokenizer is used.
        text: Source text, repeated if it is too short.
    """

    def __init__(self, encoder: Encoder, text: str) -> None:
        self._unlimited, self._words = limit_length(encoder), text.split()
        ids = self._unlimited.tokenize([text])[0]
        self._prefix, self._suffix = encoder.frame()
        self._inner = ids[len(self._prefix) : len(ids) - len(self._suffix)]

    def cut(self, length: int, start: int = 0) -> np.ndarray:
        """(length,) int32 ids; the first `start` tokens of the text are skipped."""
        size = max(length - len(self._prefix) - len(self._suffix), 0)
        body = np.resize(np.roll(self._inner, -start), size)
        return np.concatenate([self._prefix, body, self._suffix]).astype(np.int32)

    def text(self, length: int, start: int = 0) -> str:
        """As many words as fit into `length` tokens with the special tokens, at least one.

        Args:
            length: Maximum number of tokens.
            start: Words of the text that are skipped.
        """
        start %= len(self._words)
        repeats = 1 + length // len(self._words)
        words = (self._words[start:] + self._words[:start]) * repeats

        def tokens(count: int) -> int:
            return len(self._unlimited.tokenize([" ".join(words[:count])])[0])

        count = bisect_right(range(1, length + 1), length, key=tokens)
        return " ".join(words[: max(count, 1)])


def _short(
    before: Encoder, after: Encoder, inputs: Inputs, short: int, exact: bool, report: Report
) -> list[str]:
    """Compare both models on texts that the source reads in full, at trained positions."""
    lengths = sorted({max(3, round(share * short)) for share in SHARES})
    texts = [inputs.text(n, 97 * i) for n in lengths for i in range(2)]
    old, new = before.encode(texts), after.encode(texts)
    same = bool((old == new).all())
    cosine = _cosines(old, new)
    report.measures += [
        Measure("bitwise equal", int(same), of="short inputs"),
        Measure("least cosine", float(cosine.min()), of="short inputs"),
    ]
    if exact and not same:
        raise RunFailed(f"vectors of inputs up to {short:,} tokens are not bit-identical", None)
    if not same:
        report.warn(
            f"inputs up to {short:,} tokens have different vectors than before (cosine "
            f"{cosine.min():.4f} to {cosine.max():.4f}): an index must be rebuilt"
        )
    result = "bit-identical" if same else _range(cosine)
    return [f"inputs up to {short:,} tokens, against the input", result]


def _longer(
    before: Encoder, after: Encoder, inputs: Inputs, check: ExtendedCheck, report: Report
) -> list[str]:
    """Compare both models on longer texts, each with its own limit.

    The texts reach up to the trained positions if the source truncates earlier, else up to the
    target length.
    """
    short, original, limit = check.short, check.original, before.max_length
    end = min(original if original > short else check.extended, check.longest)
    lengths = sorted({short + max(1, round(share * (end - short))) for share in SHARES})
    texts = [inputs.text(n, 31 * i) for i, n in enumerate(lengths)]
    old, new = before.encode(texts), after.encode(texts)
    cosine = _cosines(old, new)
    report.measures.append(Measure("least cosine", float(cosine.min()), of="longer inputs"))
    what = f"inputs of {short + 1:,} to {end:,} tokens"
    if (old == new).all():
        return [f"{what}, against the input", "bit-identical"]
    truncated = limit is not None and limit <= short
    if truncated and short < original:
        report.warn(
            f"{what} were truncated to {limit:,}, the input's own limit, and no longer are "
            f"({_range(cosine)}): re-encode every text of more than {short:,} tokens"
        )
    note = f", which truncated them to {limit:,}" if truncated else ""
    return [f"{what}, against the input{note}", f"{_range(cosine)}: re-encode them"]


def _to_reencode(before: Encoder, check: ExtendedCheck, report: Report) -> list[list[str]]:
    """Count the user's texts whose vectors change: the longer ones, or all.

    Also count those between the source's own limit and the end of its position table.
    """
    from emb_tool.data.texts import read_texts

    short, original = check.short, check.original
    reader = limit_length(before, original + 1)  # one more token distinguishes longer texts
    unchanged = bool(report.value("bitwise equal", "short inputs"))
    prompt = before.prompt(check.prompt_name)
    records = islice(read_texts(check.texts, check.text_options), check.limit)
    texts = longer = between = 0
    while block := list(islice(records, BLOCK)):
        ids = reader.tokenize([record.text for record in block], prompt)
        texts += len(ids)
        longer += sum(len(row) > short for row in ids)
        between += sum(short < len(row) <= original for row in ids)
    changed = longer if unchanged else texts
    report.measures += [
        Measure("texts", texts, "texts", of="texts"),
        Measure("texts to re-encode", changed, "texts", of="texts"),
    ]
    names = ", ".join(Path(name).name for name in check.texts)
    which = f"of more than {short:,} tokens" if unchanged else "whose vectors change"
    rows = [[f"texts of {names} {which}: re-encode them", _share(changed, texts)]]
    if short < original:
        what = f"texts of {short + 1:,} to {original:,} tokens"
        report.measures.append(Measure(what, between, "texts", of="texts"))
        rows.append([f"of these, {what}: truncated before", _share(between, texts)])
    return rows


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({100 * count / max(total, 1):.1f} %)"


def _range(cosine: np.ndarray) -> str:
    return f"cosine {cosine.min():.4f} to {cosine.max():.4f}"


def _batches(
    encoder: Encoder, inputs: Inputs, original: int, longest: int, report: Report
) -> list[str]:
    """Compare a text's vectors when encoded alone, in a batch with a long text, and after one."""
    long = inputs.cut(longest)
    lengths = (original // 8, original, original + 8)
    probes = [inputs.cut(max(3, n), 31) for n in lengths if n <= longest]
    alone = np.concatenate([encoder.encode_ids([p]) for p in probes])
    vector = encoder.encode_ids([long])
    if not np.isfinite(vector).all():
        raise RunFailed(f"the vector of a text of {len(long)} tokens is not finite", None)
    after = np.concatenate([encoder.encode_ids([p]) for p in probes])
    beside = encoder.encode_ids([*probes, long], batch_tokens=UNLIMITED)[: len(probes)]
    worst = {"after a long text": _cosines(alone, after).min()}
    worst["beside a long text"] = _cosines(alone, beside).min()
    for what, value in worst.items():
        report.measures.append(Measure("least cosine", float(value), of=what))
        if value < MIN_COSINE:
            report.warn(
                f"a text's vector depends on its batch: {what} its cosine to itself is {value:.4f};"
                " encode texts of similar length together"
            )
    result = ", ".join(f"{value:.7f} {what}" for what, value in worst.items())
    return [f"a text alone, against itself (longest run: {len(long):,} tokens)", result]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray = (a * b).sum(1) / np.maximum(norms, 1e-30)
    return cosines
