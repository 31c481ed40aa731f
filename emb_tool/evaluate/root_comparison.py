"""A check's second row: what an output keeps of the model that its input goes back to."""

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
    """What the input goes back to, where that is another model."""
    if target.root is None:
        return None
    root = Checkpoint.open(target.root.path)
    root.name = target.root.name
    return root


@contextmanager
def warn_on_failure(report: Report, root: Checkpoint) -> Iterator[None]:
    """Turn a failure on a root into a warning: the output itself has passed its check.

    The root may need more memory than this machine has.
    """
    from emb_tool.runtime.device import Runtime

    try:
        yield
    except Exception as error:
        if not isinstance(error, EmbToolError) and not Runtime.is_out_of_memory(error):
            raise
        why = error.message if isinstance(error, EmbToolError) else "memory ran out"
        report.warn(f"not measured against its root {root.name}: {why}")


def neighbor_overlap(
    lines: Sequence[Mapping[str, str]],
    vectors: np.ndarray,
    output: Encoder,
    root: Checkpoint,
    name: str,
    progress: Progress,
) -> Measure:
    """The ten nearest neighbours of held-out texts that are still those of the root.

    Args:
        lines: `text` and `prompt` of each; the root puts its own prompt of that name before it.
        vectors: (texts, dim) of the output.
        output: The model that gave them.
        root: Another; its dim may be another, too.
        name: The output's.
        progress: Shows how far it is.
    """
    from emb_tool.evaluate.agreement import similarity_metrics
    from emb_tool.model.encoder import Encoder

    encoder = Encoder.open(root, output.runtime)
    names = {text: key for key, text in output.checkpoint.layout.prompts.items()}
    goal = np.empty((len(lines), encoder.dim), np.float32)
    with progress.task("held-out texts by the root", len(lines), "texts") as advance:
        for prompt in {line["prompt"] for line in lines}:
            mine = [i for i, line in enumerate(lines) if line["prompt"] == prompt]
            own = root.layout.prompts.get(names.get(prompt, ""), "")
            texts = [lines[i]["text"] for i in mine]
            goal[mine] = encoder.encode(texts, own, progress=advance)
    overlap = similarity_metrics(vectors, goal)["neighbour overlap"]
    return Measure("neighbour overlap", overlap, of="held-out texts", model=name, against=root.name)
