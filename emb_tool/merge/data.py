"""Data that a merge can use: texts, pairs and the tasks of --dev."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.corpus import FEW_TEXTS
from emb_tool.data.pairs import read_pairs
from emb_tool.data.text_options import TextOptions
from emb_tool.data.texts import hashes, scan
from emb_tool.errors import InvalidInput
from emb_tool.evaluate import dev
from emb_tool.merge.base import Merge

if TYPE_CHECKING:
    from emb_tool.data.pairs import Example
    from emb_tool.merge.job import MergeJob

DATA_SETTINGS = ("dev", "pairs", "texts", "teacher")
"""Settings that name data; the recipe of a search result has none of them."""


class MergeData:
    """The data that a job names, before any model is opened.

    Args:
        job: The resolved job.
    """

    def __init__(self, job: MergeJob) -> None:
        self.job = job

    @cached_property
    def tasks(self) -> dev.Tasks:
        """The tasks of --dev and --eval."""
        return dev.Tasks(self.job.dev, self.job.eval)

    @cached_property
    def pairs(self) -> list[Example]:
        """The examples of --pairs."""
        return read_pairs(self.job.pairs)

    def check(self) -> list[str]:
        """Read local data, and refuse data that are missing or not used.

        Returns:
            Warnings about the tasks and pairs.
        """
        job, method = self.job, cast(Merge, self.job.method)
        data_kinds = method.data_kinds
        present = [name for name in DATA_SETTINGS if getattr(job, name)]
        flags = " or ".join(f"--{name}" for name in data_kinds)
        if method.needs_data and not set(present) & set(data_kinds):
            raise InvalidInput(f"{method.name} needs data", f"give {flags}")
        accepted = {*data_kinds, "teacher"} if data_kinds else set()
        for name in present:
            if name not in accepted:
                hint = f"it uses {flags}" if data_kinds else "leave it out"
                raise InvalidInput(f"{method.name} does not use --{name}", hint)
        if "texts" in present and "pairs" in present:
            raise InvalidInput(
                "--texts and --pairs cannot be combined",
                "give one: pairs have labels, texts do not",
            )
        if "texts" in present and method.searches_weights and not job.teacher:
            raise InvalidInput(
                f"{method.name} on --texts needs target vectors",
                "give their model with --teacher, or give --pairs",
            )
        warnings: list[str] = []
        self.tasks.check(warnings.append, reference=bool(job.teacher))
        if job.teacher:
            Checkpoint.open(job.teacher)
        if job.pairs:
            warnings += self._check_pairs()
        if job.texts:
            scan(job.texts, TextOptions.of(job))
        return warnings

    def _check_pairs(self) -> list[str]:
        """Warnings about the pairs."""
        warnings = []
        self.refuse_few("--pairs", len(self.pairs))
        if len(self.pairs) < FEW_TEXTS:
            warnings.append(
                f"--pairs: {len(self.pairs):,} pairs are few to determine weights; differences"
                " between the models' losses may be due to chance"
            )
        queries = {pair.query for pair in self.pairs}
        for task in self.tasks.reported:
            if overlap := len(queries.intersection(task.items())):
                warnings.append(
                    f"{overlap:,} of the queries of --eval {task.spec} are also in --pairs: its"
                    " reported score is too high"
                )
        return warnings

    def refuse_few(self, flag: str, count: int) -> None:
        """Refuse fewer examples than the method needs."""
        method = cast(Merge, self.job.method)
        minimum = method.min_examples(len(self.job.models))
        if count < minimum:
            raise InvalidInput(
                f"{flag}: {count} examples are too few for {method.name} with"
                f" {len(self.job.models)} models",
                f"give at least {minimum}, preferably some hundred",
            )

    def digests(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts, pairs and --dev tasks."""
        return hashes([*self.job.texts, *self.job.pairs]) | dev.digests(self.tasks.dev)
