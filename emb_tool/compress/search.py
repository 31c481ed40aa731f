"""`--target` and `--target-retention`: search for a chain by writing and measuring candidates."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from emb_tool.checkpoint.result_cache import Result
from emb_tool.compress import chains
from emb_tool.compress.chains import Family
from emb_tool.compress.step import CompressStep, run_steps
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.report import Table

if TYPE_CHECKING:
    from emb_tool.compress.calibration import CalibrationContext

CLOSE_TO_TARGET = 0.005
"""Relative distance below the target size at which the budget is no longer adjusted."""

MAX_SOLVER_STEPS = 3
"""Maximum number of times that a budget is solved for: from headers, then from written sizes."""


@dataclass
class Candidate:
    """One chain.

    Args:
        steps: Its steps.
        bytes: Bytes of the weight files.
        retention: Minimum retention that was measured; None if it was not measured.
        error: Why the chain is not applicable.
    """

    steps: tuple[CompressStep, ...]
    bytes: int
    retention: float | None = None
    error: str | None = None

    @property
    def spec(self) -> str:
        """The chain as command-line options."""
        return chains.chain_spec(self.steps)

    @property
    def score(self) -> float:
        """The retention; -1 if it was not measured."""
        return -1.0 if self.retention is None else self.retention


class ChainSearch:
    """Search over chains that writes and measures few of them.

    Args:
        start: The model after the steps that were given with `-m`.
        context: Calibration texts.
        measure: Maps a folder to its minimum retention.
        scratch: Folder for the checkpoints to measure.
        vocabulary: Whether `vocab` may be tried.
    """

    def __init__(
        self,
        start: CheckpointEditor,
        context: CalibrationContext,
        measure: Callable[[Path], float],
        scratch: Path,
        *,
        vocabulary: bool,
    ) -> None:
        self.start, self.context, self.measure, self.scratch = start, context, measure, scratch
        self.prefixes = [(), chains.parse_chain(["vocab"])] if vocabulary else [()]
        self.candidates: list[Candidate] = []
        self._prefixed: dict[tuple[CompressStep, ...], CheckpointEditor] = {(): start}

    def _prefixed_draft(self, prefix: tuple[CompressStep, ...]) -> CheckpointEditor:
        """The model after the first steps of a chain, computed once."""
        if prefix not in self._prefixed:
            self._prefixed[prefix] = run_steps(prefix, self.start, self.context)
        return self._prefixed[prefix]

    # -- the best at a size -----------------------------------------------------------------------

    def find_best(self, size: int) -> Candidate | None:
        """The chain with the highest retention within a size.

        If a chain without measurable loss fits, it is used. Otherwise a hill climb over the bits of
        the linear layers, which starts where linear layers and token table have similar bits per
        weight; the remaining bytes are the budget of the table. Then the same with a trimmed
        vocabulary.

        Args:
            size: Maximum bytes of the weight files.

        Returns:
            None if no chain fits; the smallest chain is measured then.
        """
        for steps in chains.nearly_lossless_chains(self.start):
            planned = chains.plan_chain(self.start, steps)
            if planned is not None and chains.file_bytes(planned) <= size:
                return self._evaluate((), steps)
        index: int | None = None
        for prefix in self.prefixes:
            index = self._search_families(prefix, size, index)
        if not self._fitting(size):
            for prefix in self.prefixes:
                if (smallest := chains.smallest_chain(self._prefixed_draft(prefix))) is not None:
                    self._evaluate(prefix, smallest)
        return max(self._fitting(size), key=lambda chain: chain.score, default=None)

    def _fitting(self, size: int) -> list[Candidate]:
        return [
            chain
            for chain in self.candidates
            if chain.retention is not None and chain.bytes <= size
        ]

    def _search_families(
        self, prefix: tuple[CompressStep, ...], size: int, index: int | None
    ) -> int | None:
        """Hill climb over the families: move to a neighbor as long as its retention is higher.

        Args:
            prefix: First steps of the chains.
            size: Maximum bytes.
            index: Family to start with [similar bits per weight in linear layers and table].

        Returns:
            Index of the best family; None if none fits.
        """
        families = chains.families(self._prefixed_draft(prefix))
        if chains.is_static(self.start):
            for family in families:
                self._solve_share(prefix, family, size)
            return None
        if index is None:
            index = chains.most_balanced(
                families, [f.share(self._prefixed_draft(prefix), size) for f in families]
            )
        scores: dict[int, float] = {}

        def score(number: int) -> float:
            if number not in scores:
                chain = (
                    self._solve_share(prefix, families[number], size)
                    if 0 <= number < len(families)
                    else None
                )
                scores[number] = chain.score if chain and chain.bytes <= size else -1.0
            return scores[number]

        while index is not None:
            best = max((index, index - 1, index + 1), key=score)
            if best == index:
                return index if score(index) >= 0 else None
            index = best
        return None

    def _solve_share(
        self, prefix: tuple[CompressStep, ...], family: Family, size: int
    ) -> Candidate | None:
        """Measure the chain of a family whose budget of the table fills a size.

        The budget is solved for from headers first, then from the sizes of compressed drafts; only
        the final chain is measured.
        """
        draft, fitting = self._prefixed_draft(prefix), None
        share = family.share(draft, size)
        for _ in range(MAX_SOLVER_STEPS):
            if share is None:
                break
            steps = family.steps(share)
            if chains.plan_chain(draft, steps) is None:  # the codebooks alone exceed the budget
                family = replace(family, table="int")
                steps = family.steps(share)
            try:
                gap = size - chains.file_bytes(run_steps(steps, draft, self.context))
            except InvalidInput as error:
                self.candidates.append(Candidate((*prefix, *steps), size, error=error.message))
                break
            if gap >= 0:
                fitting = steps
            adjusted = chains.adjust_share(share, gap, draft)
            if 0 <= gap <= CLOSE_TO_TARGET * size or adjusted == share:
                break
            share = adjusted
        return self._evaluate(prefix, fitting) if fitting else None

    # -- the smallest chain for a retention -------------------------------------------------------

    def find_smallest(self, share: float) -> Candidate | None:
        """The smallest chain with a retention; stops after two consecutive chains below it."""
        best, failed = None, 0
        sizes = {
            (prefix, steps): planned.nbytes
            for prefix in self.prefixes
            for steps in chains.fixed_chains(self.start)
            if (planned := chains.plan_chain(self._prefixed_draft(prefix), steps)) is not None
        }
        for prefix, steps in sorted(sizes, key=lambda chain: -sizes[chain]):
            chain = self._evaluate(prefix, steps)
            if chain.score >= share:
                best, failed = chain, 0
            else:
                failed += 1
                if failed == 2:
                    break
        return best

    # -- results ----------------------------------------------------------------------------------

    def measured(self) -> list[Candidate]:
        """The measured chains, largest first.

        Raises:
            InvalidInput: No chain is applicable.
        """
        measured = [chain for chain in self.candidates if chain.retention is not None]
        if not measured:
            reason = next((f": {c.error}" for c in self.candidates if c.error), "")
            raise InvalidInput(f"no chain fits this model{reason}", "give the steps with -m")
        return sorted(measured, key=lambda chain: -chain.bytes)

    def draft(self, chain: Candidate) -> CheckpointEditor:
        """The draft after a chain; fast for measured chains, whose results are cached."""
        return run_steps(chain.steps, self.start, self.context)

    def _evaluate(
        self, prefix: tuple[CompressStep, ...], steps: tuple[CompressStep, ...]
    ) -> Candidate:
        chain = Candidate((*prefix, *steps), 0)
        for other in self.candidates:
            if other.spec == chain.spec:
                return other
        self.candidates.append(chain)

        def write_and_measure() -> Result:
            folder = self.scratch / "chain"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            run_steps(steps, self._prefixed_draft(prefix), self.context).write(folder)
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            retention = self.measure(folder)
            shutil.rmtree(folder)
            return Result({}, {"bytes": size, "retention": retention})

        try:
            result = self.context.result(
                self.start, "chains measured", write_and_measure, chain.spec
            )
        except InvalidInput as error:
            chain.error = error.message
            self.context.progress.say(f"{chain.spec} is not applicable: {error.message}")
            return chain
        chain.bytes, chain.retention = result.facts["bytes"], float(result.facts["retention"])
        self.context.progress.say(
            f"{chain.bytes / 1e6:,.2f} MB keep {chain.retention:.2%}: {chain.spec}"
        )
        return chain

    def to_dicts(self) -> list[dict[str, object]]:
        """All candidates, for the report."""
        return [
            {"chain": c.spec, "bytes": c.bytes, "retention": c.retention, "refused": c.error}
            for c in self.candidates
        ]

    def table(self, chosen: Candidate) -> Table:
        """Table of the measured chains; Pareto-optimal ones have a star."""
        table = Table("chains measured", ["", "", "MB", "retention", "chain"])
        measured = self.measured()
        for number, chain in enumerate(measured, 1):
            optimal = all(chain.score > c.score for c in measured if c.bytes < chain.bytes)
            mark = "chosen" if chain is chosen else "*" if optimal else ""
            size = f"{chain.bytes / 1e6:,.2f}"
            table.rows.append([str(number), mark, size, f"{chain.score:.2%}", chain.spec])
        return table

    def plot(self, path: str, input_bytes: int, chosen: Candidate) -> None:
        """Plot retention against size, with the numbers of the table."""
        from emb_tool.reporting import plots

        points = [plots.Point("before", input_bytes, 1.0, True)]
        for number, chain in enumerate(self.measured(), 1):
            label = f"{number} chosen" if chain is chosen else str(number)
            points.append(plots.Point(label, chain.bytes, chain.score))
        plots.draw({("chains measured", "retention"): points}, path)
