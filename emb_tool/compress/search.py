"""`--target` and `--target-retention`: chains of sound methods, measured, the best one taken."""

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
"""Share of a target within which its bytes are used up."""

MAX_SOLVER_STEPS = 3
"""Times that a share is solved for: from headers, then from what was written."""


@dataclass
class Candidate:
    """One chain.

    Args:
        steps: What it does.
        bytes: Of its weights.
        kept: Least share kept in what is measured; None while it is only planned.
        refused: Why it cannot be made.
    """

    steps: tuple[CompressStep, ...]
    bytes: int
    kept: float | None = None
    refused: str | None = None

    @property
    def spelled(self) -> str:
        """As one would type it."""
        return chains.chain_spec(self.steps)

    @property
    def score(self) -> float:
        """What is kept; below 0 where nothing was measured."""
        return -1.0 if self.kept is None else self.kept


class ChainSearch:
    """Writes and measures as few chains as it takes.

    Args:
        start: The model, with the steps that were asked for besides.
        work: Texts.
        measure: Maps a folder to the least share kept.
        scratch: Where chains are written to be measured.
        vocabulary: Whether `vocab` may be tried.
    """

    def __init__(
        self,
        start: CheckpointEditor,
        work: CalibrationContext,
        measure: Callable[[Path], float],
        scratch: Path,
        *,
        vocabulary: bool,
    ) -> None:
        self.start, self.work, self.measure, self.scratch = start, work, measure, scratch
        self.heads = [(), chains.build(["vocab"])] if vocabulary else [()]
        self.tried: list[Candidate] = []
        self._headed: dict[tuple[CompressStep, ...], CheckpointEditor] = {(): start}

    def _after(self, head: tuple[CompressStep, ...]) -> CheckpointEditor:
        """The model as a chain's other steps find it; a vocabulary is trimmed once."""
        if head not in self._headed:
            self._headed[head] = run_steps(head, self.start, self.work)
        return self._headed[head]

    # -- the best at a size -----------------------------------------------------------------------

    def below(self, size: int) -> Candidate | None:
        """The best chain that fits; None, with the smallest tried, if none does.

        What loses next to nothing is taken where it fits. Else linear layers get more bits or
        fewer, from where they and the token table have about as many, for as long as that keeps
        more; what they leave is the table's, solved for each time. The same with a trimmed
        vocabulary.

        Args:
            size: Bytes of the weight files at most.
        """
        for steps in chains.nearly_lossless_chains(self.start):
            made = chains.plan_chain(self.start, steps)
            if made is not None and chains.file_bytes(made) <= size:
                return self._try((), steps)
        at: int | None = None
        for head in self.heads:
            at = self._climb(head, size, at)
        if not self._fitting(size):
            for head in self.heads:
                if (least := chains.smallest_chain(self._after(head))) is not None:
                    self._try(head, least)
        return max(self._fitting(size), key=lambda chain: chain.score, default=None)

    def _fitting(self, size: int) -> list[Candidate]:
        return [chain for chain in self.tried if chain.kept is not None and chain.bytes <= size]

    def _climb(self, head: tuple[CompressStep, ...], size: int, at: int | None) -> int | None:
        """Measure chains of the families, from one on as long as a neighbour keeps more.

        Args:
            head: Steps before theirs.
            size: Bytes at most.
            at: The family to begin with [where linear layers and table have about as many bits].

        Returns:
            The best family's number; None where none fits.
        """
        known = chains.families(self._after(head))
        if chains.is_static(self.start):
            for family in known:
                self._solved(head, family, size)
            return None
        if at is None:
            at = chains.most_balanced(known, [f.share(self._after(head), size) for f in known])
        kept: dict[int, float] = {}

        def keeps(number: int) -> float:
            if number not in kept:
                chain = (
                    self._solved(head, known[number], size) if 0 <= number < len(known) else None
                )
                kept[number] = chain.score if chain and chain.bytes <= size else -1.0
            return kept[number]

        while at is not None:
            best = max((at, at - 1, at + 1), key=keeps)
            if best == at:
                return at if keeps(at) >= 0 else None
            at = best
        return None

    def _solved(
        self, head: tuple[CompressStep, ...], family: Family, size: int
    ) -> Candidate | None:
        """Measure the chain of a family that uses a size up, or as much of it as it can.

        The share of the token table is solved for from headers first, then from the bytes of what
        was made; it is measured last, once.
        """
        draft, fitting = self._after(head), None
        share = family.share(draft, size)
        for _ in range(MAX_SOLVER_STEPS):
            if share is None:
                break
            steps = family.steps(share)
            if chains.plan_chain(draft, steps) is None:  # its codebooks alone are larger
                family = replace(family, table="int")
                steps = family.steps(share)
            try:
                gap = size - chains.file_bytes(run_steps(steps, draft, self.work))
            except InvalidInput as error:
                self.tried.append(Candidate((*head, *steps), size, refused=error.message))
                break
            if gap >= 0:
                fitting = steps
            moved = chains.adjust_share(share, gap, draft)
            if 0 <= gap <= CLOSE_TO_TARGET * size or moved == share:
                break
            share = moved
        return self._try(head, fitting) if fitting else None

    # -- the smallest that keeps a share ----------------------------------------------------------

    def keeping(self, share: float) -> Candidate | None:
        """The smallest chain that keeps a share; the search ends when two in a row do not."""
        best, failed = None, 0
        sizes = {
            (head, steps): made.nbytes
            for head in self.heads
            for steps in chains.fixed_chains(self.start)
            if (made := chains.plan_chain(self._after(head), steps)) is not None
        }
        for head, steps in sorted(sizes, key=lambda chain: -sizes[chain]):
            chain = self._try(head, steps)
            if chain.score >= share:
                best, failed = chain, 0
            else:
                failed += 1
                if failed == 2:
                    break
        return best

    # -- what was found ---------------------------------------------------------------------------

    def measured(self) -> list[Candidate]:
        """What was measured, the largest first.

        Raises:
            InvalidInput: Nothing was.
        """
        found = [chain for chain in self.tried if chain.kept is not None]
        if not found:
            why = next((f": {c.refused}" for c in self.tried if c.refused), "")
            raise InvalidInput(f"no chain fits this model{why}", "name the steps yourself, with -m")
        return sorted(found, key=lambda chain: -chain.bytes)

    def draft(self, chain: Candidate) -> CheckpointEditor:
        """What a chain makes; its steps' results are kept, so once it was tried this is quick."""
        return run_steps(chain.steps, self.start, self.work)

    def _try(self, head: tuple[CompressStep, ...], steps: tuple[CompressStep, ...]) -> Candidate:
        chain = Candidate((*head, *steps), 0)
        for other in self.tried:
            if other.spelled == chain.spelled:
                return other
        self.tried.append(chain)

        def measured() -> Result:
            folder = self.scratch / "chain"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            run_steps(steps, self._after(head), self.work).write(folder)
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            kept = self.measure(folder)
            shutil.rmtree(folder)
            return Result({}, {"bytes": size, "kept": kept})

        try:
            found = self.work.result(self.start, "chains measured", measured, chain.spelled)
        except InvalidInput as error:
            chain.refused = error.message
            self.work.progress.say(f"{chain.spelled} cannot be made: {error.message}")
            return chain
        chain.bytes, chain.kept = found.facts["bytes"], float(found.facts["kept"])
        self.work.progress.say(
            f"{chain.bytes / 1e6:,.2f} MB keep {chain.kept:.2%}: {chain.spelled}"
        )
        return chain

    def told(self) -> list[dict[str, object]]:
        """Every chain as plain data."""
        return [
            {"chain": c.spelled, "bytes": c.bytes, "kept": c.kept, "refused": c.refused}
            for c in self.tried
        ]

    def table(self, chosen: Candidate) -> Table:
        """What was measured; a star where nothing smaller keeps more."""
        table = Table("chains measured", ["", "", "MB", "kept", "chain"])
        measured = self.measured()
        for number, chain in enumerate(measured, 1):
            best = all(chain.score > c.score for c in measured if c.bytes < chain.bytes)
            mark = "chosen" if chain is chosen else "*" if best else ""
            size = f"{chain.bytes / 1e6:,.2f}"
            table.rows.append([str(number), mark, size, f"{chain.score:.2%}", chain.spelled])
        return table

    def draw(self, path: str, whole: int, chosen: Candidate) -> None:
        """Picture of what is kept against size; chains by their numbers in the table."""
        from emb_tool.reporting import plots

        points = [plots.Point("before", whole, 1.0, True)]
        for number, chain in enumerate(self.measured(), 1):
            label = f"{number} chosen" if chain is chosen else str(number)
            points.append(plots.Point(label, chain.bytes, chain.score))
        plots.draw({("chains measured", "share kept"): points}, path)
