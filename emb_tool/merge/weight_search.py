"""Base classes of methods that use data, and results of weight searches.

A search determines the weights of another method, which is then run and recorded: the recipe
reproduces the model without the data.
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

RESULT_FILE = "search_result.json"

DIGITS = 6
"""Decimals of the weights of a search result, in the merge and in the recipe."""


class SearchResult(NamedTuple):
    """Result of a data-driven method.

    Args:
        method: The method to merge with.
        facts: Facts for the report.
        table: Table for the report.
    """

    method: Merge
    facts: dict[str, Any]
    table: Table | None = None


class DataDrivenMerge(Merge):
    """A method that uses data before the tensors are merged."""

    def find(self, evaluator: MergeEvaluator) -> SearchResult:
        """Search for weights or gather statistics.

        Args:
            evaluator: Evaluates mixes.
        """
        raise NotImplementedError


class WeightSearch(DataDrivenMerge):
    """A method that determines the weights of another method, which merges and is recorded."""

    searches_weights: ClassVar[bool] = True


def save_search_result(state: Path, result: SearchResult) -> None:
    """Save a search result, so that a resumed merge uses the same weights."""
    method = dump(result.method)
    table = result.table.to_json() if result.table else None
    data = {"method": method, "facts": result.facts, "table": table}
    write_atomically(state / RESULT_FILE, json.dumps(data))


def load_search_result(state: Path) -> SearchResult | None:
    """Load the search result of an interrupted merge, None if there is none."""
    if not (state / RESULT_FILE).is_file():
        return None
    data = json.loads((state / RESULT_FILE).read_text(encoding="utf-8"))
    cls = registry.load("merge", data["method"].pop("name"))
    method = registry.build(cls, data["method"], RESULT_FILE)
    return SearchResult(method, data["facts"], Table(**data["table"]) if data["table"] else None)


def linear_method(weights: np.ndarray) -> Linear:
    """`linear` with these weights."""
    return Linear(weights=Weights(np.round(weights, DIGITS).tolist()))


def task_arithmetic_method(coefficients: np.ndarray) -> TaskArithmetic:
    """`task-arithmetic` with these factors."""
    return TaskArithmetic(weights=Weights(np.round(coefficients, DIGITS).tolist()))


def candidates_table(evaluator: MergeEvaluator) -> Table:
    """Table of the evaluated mixes, best first."""
    tasks = [task.label for task in evaluator.setup.data.tasks.dev]
    return Table("evaluated mixes", ["mean", *tasks, *evaluator.names], evaluator.rows())
