"""Comparison of an output with the root model that its input was derived from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import EmbToolError
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.check_process import CheckTarget


def open_root(target: CheckTarget) -> Checkpoint | None:
    """Open the root model of the input; None if the input is itself the root."""
    if target.root is None:
        return None
    root = Checkpoint.open(target.root.path)
    root.name = target.root.name
    return root


@contextmanager
def warn_on_failure(report: Report, root: Checkpoint) -> Iterator[None]:
    """Turn a failure on a root into a warning, because the output itself passed its check.

    The root may need more memory than is available.
    """
    from emb_tool.runtime.device import Runtime

    try:
        yield
    except Exception as error:
        if not isinstance(error, EmbToolError) and not Runtime.is_out_of_memory(error):
            raise
        reason = error.message if isinstance(error, EmbToolError) else "out of memory"
        report.warn(f"not measured against its root {root.name}: {reason}")


def neighbor_overlap(
    lines: Sequence[Mapping[str, str]],
    vectors: np.ndarray,
    output: Encoder,
    root: Checkpoint,
    name: str,
    progress: Progress,
) -> Measure:
    """Fraction of the ten nearest neighbors of held-out texts that output and root share.

    Args:
        lines: `text` and `prompt` of each; the root uses its own prompt of the same name.
        vectors: (texts, dim) of the output.
        output: The output model.
        root: The root model; its width may differ.
        name: Name of the output.
        progress: Reports progress.
    """
    from emb_tool.evaluate.agreement import similarity_metrics
    from emb_tool.model.encoder import Encoder

    encoder = Encoder.open(root, output.runtime)
    names = {text: key for key, text in output.checkpoint.layout.prompts.items()}
    expected = np.empty((len(lines), encoder.dim), np.float32)
    with progress.task("held-out texts by the root", len(lines), "texts") as advance:
        for prompt in {line["prompt"] for line in lines}:
            rows = [i for i, line in enumerate(lines) if line["prompt"] == prompt]
            root_prompt = root.layout.prompts.get(names.get(prompt, ""), "")
            texts = [lines[i]["text"] for i in rows]
            expected[rows] = encoder.encode(texts, root_prompt, progress=advance)
    overlap = similarity_metrics(vectors, expected)["neighbor overlap"]
    return Measure("neighbor overlap", overlap, of="held-out texts", model=name, against=root.name)
