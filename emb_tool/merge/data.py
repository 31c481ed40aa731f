"""What a merge may look at: texts, pairs and the tasks of --dev."""

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

DATA = ("dev", "pairs", "texts", "teacher")
"""Settings of a job that a search looks at; a recipe with the weights found has none of them."""


class MergeData:
    """What a job names to look at, before any model is opened.

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
        """Read what is local, and refuse what is missing or not looked at.

        Returns:
            What the user should know of the tasks.
        """
        job, method = self.job, cast(Merge, self.job.method)
        looks_at = method.looks_at
        given = [name for name in DATA if getattr(job, name)]
        told = " or ".join(f"--{name}" for name in looks_at)
        if method.needs_data and not set(given) & set(looks_at):
            raise InvalidInput(f"{method.name} looks at data, and there is none", f"give {told}")
        wanted = {*looks_at, "teacher"} if looks_at else set()
        for name in given:
            if name not in wanted:
                hint = f"it looks at {told}" if looks_at else "leave it out"
                raise InvalidInput(f"{method.name} does not look at --{name}", hint)
        if "texts" in given and "pairs" in given:
            raise InvalidInput(
                "--texts and --pairs: give one of them", "pairs have labels, texts none"
            )
        if "texts" in given and method.finds_weights and not job.teacher:
            raise InvalidInput(
                f"{method.name} on --texts needs vectors to come near to",
                "name their model with --teacher, or give --pairs",
            )
        said: list[str] = []
        self.tasks.check(said.append, reference=bool(job.teacher))
        if job.teacher:
            Checkpoint.open(job.teacher)
        if job.pairs:
            said += self._check_pairs()
        if job.texts:
            scan(job.texts, TextOptions.of(job))
        return said

    def _check_pairs(self) -> list[str]:
        """What the user should know of the pairs."""
        said = []
        self.refuse_few("--pairs", len(self.pairs))
        if len(self.pairs) < FEW_TEXTS:
            said.append(
                f"--pairs: {len(self.pairs):,} pairs are few to find weights from; differences of"
                " the models' losses on them may be chance"
            )
        queries = {pair.query for pair in self.pairs}
        for task in self.tasks.reported:
            if shared := len(queries.intersection(task.items())):
                said.append(
                    f"{shared:,} of the queries of --eval {task.spec} are in --pairs, too: what is"
                    " reported is too good"
                )
        return said

    def refuse_few(self, flag: str, count: int) -> None:
        """Refuse fewer examples than the method takes."""
        method = cast(Merge, self.job.method)
        least = method.least_examples(len(self.job.models))
        if count < least:
            raise InvalidInput(
                f"{flag}: {count} examples do not determine what {method.name} learns of"
                f" {len(self.job.models)} models",
                f"give at least {least}, better some hundred",
            )

    def digests(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts, pairs and the tasks that choose."""
        return hashes([*self.job.texts, *self.job.pairs]) | dev.digests(self.tasks.dev)
