"""The check of a model on held-out texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from emb_tool.config import MIN_HELD_OUT
from emb_tool.errors import RunFailed
from emb_tool.evaluate.root_comparison import neighbor_overlap, open_root, warn_on_failure
from emb_tool.evaluate.written_model import evaluate_tasks
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.runtime.check_process import Check


class HeldoutCheck(Check):
    """Open the written model as a user would, and compare its vectors with the expected ones.

    Args:
        texts: A jsonl file of held-out texts, with `text` and its `prompt`.
        vectors: A file of the expected vectors, (texts, dim).
        against: Name of the model that the expected vectors come from.
        rotated: Whether the model's vectors are in another basis than the expected ones.
        tasks: As of `embtool eval`.
        reference: As of `embtool eval`.
        min_retention: Minimum retention in `tasks`; without tasks, minimum neighbor overlap.
    """

    kind: Literal["heldout"] = "heldout"
    texts: Path
    vectors: Path
    against: str
    rotated: bool = False
    tasks: tuple[str, ...] = ()
    reference: Path | None = None
    min_retention: float | None = None

    def run(self, progress: Progress) -> Report:
        """See `Check.run`."""
        from emb_tool.checkpoint.reader import Checkpoint
        from emb_tool.evaluate.agreement import similarity_metrics
        from emb_tool.model.encoder import Encoder
        from emb_tool.runtime.device import Runtime

        target = self.target
        name, runtime = target.name, Runtime.start(target.device, target.dtype)
        written, root = Checkpoint.open(target.folder), open_root(target)
        report = evaluate_tasks(
            written, target, self.tasks, runtime, progress,
            root=root, reference=self.reference, min_retention=self.min_retention,
        )  # fmt: skip
        with progress.task("opening the model"):
            encoder = Encoder.open(written, runtime)
        if not self.tasks:
            report.measures.append(Measure("dimensions", encoder.dim, "dimensions", model=name))
        tensors = [*encoder.model.parameters(), *encoder.model.buffers()]
        resident = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        report.measures.append(Measure("resident", resident, "B", model=name))
        lines = [json.loads(line) for line in self.texts.read_text(encoding="utf-8").splitlines()]
        expected = np.load(self.vectors)
        if len(lines) < MIN_HELD_OUT:
            return report
        vectors = np.empty((len(lines), encoder.dim), np.float32)
        with progress.task("held-out texts", len(lines), "texts") as advance:
            for prompt in {line["prompt"] for line in lines}:
                rows = [i for i, line in enumerate(lines) if line["prompt"] == prompt]
                texts = [lines[i]["text"] for i in rows]
                vectors[rows] = encoder.encode(texts, prompt, progress=advance)
        if not np.isfinite(vectors).all():
            raise RunFailed("the vectors of the output are not finite", None)
        figures = similarity_metrics(vectors, expected)
        if self.rotated:  # cosines between different bases are meaningless
            figures = {"neighbor overlap": figures["neighbor overlap"]}
        report.measures += [
            Measure(key, value, of="held-out texts", model=name) for key, value in figures.items()
        ]
        table = Table(f"held-out texts, against {self.against}", ["", Path(name).name])
        table.rows = [[key, f"{value:.4f}"] for key, value in figures.items()]
        report.tables.append(table)
        if root is not None:
            with warn_on_failure(report, root):
                report.measures.append(
                    neighbor_overlap(lines, vectors, encoder, root, name, progress)
                )
        minimum, overlap = self.min_retention, figures["neighbor overlap"]
        if minimum is not None and not self.tasks and overlap < minimum:
            report.gate = (
                f"{name} keeps {overlap:.2%} of the ten nearest neighbors, less than "
                f"--min-retention {100 * minimum:g} %"
            )
        return report
