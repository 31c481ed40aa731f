"""A search turns data into the weights of another method.

That method is what is carried out and recorded: the recipe makes the same model again without data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from emb_tool import registry
from emb_tool.checkpoint.files import write_atomically
from emb_tool.config import dump
from emb_tool.merge.base import Merge
from emb_tool.merge.linear import Linear
from emb_tool.merge.task_arithmetic import TaskArithmetic
from emb_tool.merge.weights import Weights
from emb_tool.report import Table

if TYPE_CHECKING:
    from emb_tool.merge.evaluator import MergeEvaluator

RESULT_FILE = "found.json"

DIGITS = 6
"""Decimals of the weights that are found: what is recorded is what is carried out."""


class SearchResult(NamedTuple):
    """What looking at data has given.

    Args:
        method: What carries it out.
        facts: For the report.
        table: For the user.
    """

    method: Merge
    facts: dict[str, Any]
    table: Table | None = None


class DataDrivenMerge(Merge):
    """A method that looks at data before the tensors are merged."""

    def find(self, bench: MergeEvaluator) -> SearchResult:
        """Look."""
        raise NotImplementedError


class WeightSearch(DataDrivenMerge):
    """A method that finds weights and leaves the merging to another, which is recorded."""

    finds_weights: ClassVar[bool] = True


def save_search_result(state: Path, found: SearchResult) -> None:
    """Keep what was found until the merge is whole: a resume must go on with the same weights."""
    method = dump(found.method)
    table = found.table.to_json() if found.table else None
    told = {"method": method, "facts": found.facts, "table": table}
    write_atomically(state / RESULT_FILE, json.dumps(told))


def load_search_result(state: Path) -> SearchResult | None:
    """What an interrupted merge had found."""
    if not (state / RESULT_FILE).is_file():
        return None
    held = json.loads((state / RESULT_FILE).read_text(encoding="utf-8"))
    cls = registry.load("merge", held["method"].pop("name"))
    method = registry.build(cls, held["method"], RESULT_FILE)
    return SearchResult(method, held["facts"], Table(**held["table"]) if held["table"] else None)


def linear_method(weights: np.ndarray) -> Linear:
    """`linear` with these shares."""
    return Linear(weights=Weights(np.round(weights, DIGITS).tolist()))


def task_arithmetic_method(coefficients: np.ndarray) -> TaskArithmetic:
    """`task-arithmetic` with these factors."""
    return TaskArithmetic(weights=Weights(np.round(coefficients, DIGITS).tolist()))


def candidates_table(bench: MergeEvaluator) -> Table:
    """What was measured, the best first."""
    tasks = [task.label for task in bench.setup.data.tasks.dev]
    return Table("mixes measured", ["mean", *tasks, *bench.names], bench.rows())
