"""Families of outputs with one root model; only these are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from emb_tool.formatting import percent, public_name, redact
from emb_tool.report import Report, Table
from emb_tool.reporting.summary import Ancestor, Quality, Summary


@dataclass
class Family:
    """The outputs of one root model.

    Args:
        name: Name of the root, unique among families.
        root: The root; None for a merge without a base.
        members: Summaries by output name.
    """

    name: str
    root: Ancestor | None
    members: dict[str, Summary] = field(default_factory=dict)


class Retention(NamedTuple):
    """Size and quality of an output relative to one of its ancestors.

    Args:
        size: Size as a fraction of the ancestor's.
        quality: One row per task.
        neighbors: Fraction of the ten nearest neighbors retained.
    """

    size: float | None
    quality: Sequence[Quality]
    neighbors: float | None


def group_outputs(summaries: Mapping[str, Summary]) -> list[Family]:
    """Group outputs by root, in order; an output without a root forms its own family."""
    families: dict[str, Family] = {}
    for name, summary in summaries.items():
        root = summary.root
        key = root.key if root else f"/{name}"  # neither a digest nor a hub id
        label = public_name(root.name) if root else f"the inputs of {name}"
        families.setdefault(key, Family(label, root)).members[name] = summary
    names = [family.name for family in families.values()]
    for family in families.values():
        if family.root and names.count(family.name) > 1:
            family.name += f" ({family.root.key[:8]})"
    return list(families.values())


def of_root(summary: Summary) -> Retention:
    """Size and quality of an output relative to its root."""
    if summary.root is None or summary.root == summary.input:
        return Retention(summary.share, summary.quality, summary.neighbors)
    size = summary.after and summary.root.bytes and summary.after / summary.root.bytes
    return Retention(size or None, summary.root_quality, summary.root_neighbors)


def of_input(summary: Summary) -> Retention | None:
    """The same relative to its input; None if that is the root, or several models."""
    if summary.input is None or summary.root == summary.input:
        return None
    return Retention(summary.share, summary.quality, summary.neighbors)


def root_table(report: Report) -> Table | None:
    """Retention of the root's figures; None if the root is the input or was not measured."""
    summary = Summary.of(report)
    root, overlap = summary.root, summary.root_neighbors
    rows = [[f"{redact(q.of)}, {q.figure}", f"{q.retention:.1f} %"] for q in summary.root_quality]
    if overlap is not None:
        rows.append(["ten nearest neighbors, held-out texts", percent(overlap)])
    if root is None or not rows:
        return None
    return Table(
        f"retention relative to {public_name(root.name)}, the root", ["", "retention"], rows
    )
