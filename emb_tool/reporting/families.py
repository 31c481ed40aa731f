"""Outputs that go back to one model: only these are compared with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from emb_tool.formatting import percent, public_name, redact
from emb_tool.report import Report, Table
from emb_tool.reporting.summary import Ancestor, Quality, Summary


@dataclass
class Family:
    """The outputs of one root.

    Args:
        name: The root's, told apart from those of other families.
        root: The model; None for a merge of several that have no base.
        members: Output's name to its figures.
    """

    name: str
    root: Ancestor | None
    members: dict[str, Summary] = field(default_factory=dict)


class Retention(NamedTuple):
    """An output against one of its ancestors.

    Args:
        size: Bytes over the ancestor's.
        quality: A row a task.
        neighbours: Share of its ten nearest neighbours kept.
    """

    size: float | None
    quality: Sequence[Quality]
    neighbours: float | None


def group_outputs(summaries: Mapping[str, Summary]) -> list[Family]:
    """Outputs by root, in their order; what has none is alone."""
    found: dict[str, Family] = {}
    for name, summary in summaries.items():
        root = summary.root
        key = root.key if root else f"/{name}"  # no digest, and no hub id
        called = public_name(root.name) if root else f"the inputs of {name}"
        found.setdefault(key, Family(called, root)).members[name] = summary
    names = [family.name for family in found.values()]
    for family in found.values():
        if family.root and names.count(family.name) > 1:
            family.name += f" ({family.root.key[:8]})"
    return list(found.values())


def of_root(summary: Summary) -> Retention:
    """An output against its root."""
    if summary.root is None or summary.root == summary.input:
        return Retention(summary.share, summary.quality, summary.neighbours)
    size = summary.after and summary.root.bytes and summary.after / summary.root.bytes
    return Retention(size or None, summary.root_quality, summary.root_neighbours)


def of_input(summary: Summary) -> Retention | None:
    """An output against its input; None where that is the root, or several models."""
    if summary.input is None or summary.root == summary.input:
        return None
    return Retention(summary.share, summary.quality, summary.neighbours)


def root_table(report: Report) -> Table | None:
    """What an output keeps of its root; None where that is its input, or was not measured."""
    summary = Summary.of(report)
    root, overlap = summary.root, summary.root_neighbours
    rows = [[f"{redact(q.of)}, {q.figure}", f"{q.kept:.1f} %"] for q in summary.root_quality]
    if overlap is not None:
        rows.append(["ten nearest neighbours, held-out texts", percent(overlap)])
    if root is None or not rows:
        return None
    return Table(f"kept of {public_name(root.name)}, the root", ["", "kept"], rows)
