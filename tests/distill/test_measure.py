"""What the report says of a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from emb_tool.distill.measure import tell
from emb_tool.progress import Progress
from emb_tool.report import Report
from emb_tool.training.outcome import Outcome


@pytest.mark.parametrize(
    ("resumed_at", "key"), [(None, "truncated"), (10, "truncated_since_resume")]
)
def test_texts_cut_are_those_of_the_last_sitting(resumed_at: int | None, key: str) -> None:
    student: Any = SimpleNamespace(truncated=3, max_length=32)
    report, progress = Report("distill"), Progress(0)
    tell(report, progress, Outcome(texts=20, resumed_at=resumed_at), student, 20)
    told = {k: v for k, v in report.facts["training"].items() if k.startswith("truncated")}
    assert told == {key: 3}
    (warning,) = [line for line in progress.warnings if "longer than the 32 tokens" in line]
    assert ("since --resume" in warning) == (resumed_at is not None)
