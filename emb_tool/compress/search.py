"""`--target` and `--target-retention`: chains of sound methods, measured, the best one taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from emb_tool import registry
from emb_tool.checkpoint.kept import Result
from emb_tool.draft import Draft
from emb_tool.errors import Refused
from emb_tool.report import Table
from emb_tool.surgery import Surgery, carry_out, plan_step

if TYPE_CHECKING:
    from emb_tool.calibration import Work

WEIGHTS = (
    ("cast:dtype=fp16",),
    ("int:bits=8",),
    ("gptq:bits=6", "int:bits=8"),
    ("gptq:bits=5", "int:bits=6"),
    ("gptq:bits=4", "int:bits=8"),
    ("gptq:bits=4", "int:bits=6"),
    ("gptq:bits=4", "int:bits=4,group=32"),
    ("gptq:bits=3,group=32", "int:bits=4,group=64"),
    ("gptq:bits=3,group=32", "pq:budget=0.1", "int:bits=8"),
    ("gptq:bits=2,group=32", "pq:budget=0.08", "int:bits=8"),
)
"""How the weights of a transformer are kept, the largest first: linear layers, then tables."""

TABLES = (
    ("cast:dtype=fp16",),
    ("int:bits=8",),
    ("int:bits=6",),
    ("int:bits=4,group=32",),
    ("int:bits=4",),
    ("pq:budget=0.1",),
    ("pq:budget=0.07",),
)
"""Likewise for a static table, which has nothing else."""

TRIES = 3
"""Chains measured below a size: the largest that fit, of which the best is taken."""


@dataclass
class Tried:
    """One chain.

    Args:
        steps: What it does.
        bytes: Of its weights.
        kept: Least share kept in what is measured; None while it is only planned.
    """

    steps: tuple[Surgery, ...]
    bytes: int
    kept: float | None = None

    @property
    def spelled(self) -> str:
        """As one would type it."""
        return " ".join(f"-m {spell(step)}" for step in self.steps)


def spell(step: Surgery) -> str:
    """A step as `-m` takes it, defaults left out."""
    values = step.model_dump(mode="json", exclude_defaults=True)
    settings = ",".join(
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in values.items()
    )
    return step.name + (f":{settings}" if settings else "")


def chains(draft: Draft) -> list[tuple[Surgery, ...]]:
    """The chains to choose from, without and with a trimmed vocabulary."""
    known = TABLES if draft.layout.family == "static" else WEIGHTS
    found = []
    for first in ((), ("vocab",)):
        for rest in known:
            names = [registry.parse(text) for text in (*first, *rest)]
            steps = [registry.build(registry.load("compress", n), s) for n, s in names]
            found.append(tuple(cast("list[Surgery]", steps)))
    return found


class Search:
    """Plans every chain, then writes and measures as few as it takes.

    Args:
        start: The model, with the steps that were asked for besides.
        work: Texts.
        measure: Maps a folder to the least share kept.
        scratch: Where chains are written to be measured.
    """

    def __init__(
        self, start: Draft, work: Work, measure: Callable[[Path], float], scratch: Path
    ) -> None:
        self.start, self.work, self.measure, self.scratch = start, work, measure, scratch
        self._trimmed: Draft | None = None
        self.tried = self._plan()

    def _plan(self) -> list[Tried]:
        """The chains by their sizes, the largest first; those that do not fit are left out."""
        found = []
        for steps in chains(self.start):
            try:
                draft, rest = self._begin(steps)
                draft = draft.copy()
                for step in rest:
                    plan_step(step, draft)
                found.append(Tried(steps, draft.nbytes))
            except Refused:
                continue
        if not found:
            raise Refused("no chain fits this model", "name the steps yourself, with -m")
        return sorted(found, key=lambda chain: -chain.bytes)

    def _begin(self, steps: Sequence[Surgery]) -> tuple[Draft, list[Surgery]]:
        """The model as the weights' steps find it, and these; a vocabulary is trimmed once."""
        if steps[0].stage != "vocabulary":
            return self.start, list(steps)
        if self._trimmed is None:
            self._trimmed = carry_out(steps[:1], self.start, self.work)
        return self._trimmed, list(steps[1:])

    def below(self, size: int) -> Tried | None:
        """The best of the largest chains that fit; None, with the smallest tried, if none does."""
        fitting: list[Tried] = []
        for chain in [chain for chain in self.tried if chain.bytes <= size]:
            self._try(chain)
            if chain.bytes <= size:  # headers and padding were not planned
                fitting.append(chain)
            if len(fitting) == TRIES:
                break
        if not fitting:
            self._try(self.tried[-1])
        return max(fitting, key=lambda chain: chain.kept or 0.0, default=None)

    def keeping(self, share: float) -> Tried | None:
        """The smallest chain that keeps a share; the search ends when two in a row do not."""
        best, failed = None, 0
        for chain in self.tried:
            if self._try(chain) >= share:
                best, failed = chain, 0
            else:
                failed += 1
                if failed == 2:
                    break
        return best

    def nearest(self) -> Tried:
        """What comes closest where the aim cannot be reached: the best of those measured."""
        measured = [chain for chain in self.tried if chain.kept is not None]
        return max(measured, key=lambda chain: chain.kept or 0.0)

    def draft(self, chain: Tried) -> Draft:
        """What a chain makes; its steps' results are kept, so once it was tried this is quick."""
        draft, rest = self._begin(chain.steps)
        return carry_out(rest, draft, self.work)

    def _try(self, chain: Tried) -> float:
        def measured() -> Result:
            folder = self.scratch / "chain"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self.draft(chain).write(folder)
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            kept = self.measure(folder)
            shutil.rmtree(folder)
            return Result({}, {"bytes": size, "kept": kept})

        found = self.work.result(self.start, "chains measured", measured, chain.spelled)
        size, kept = chain.bytes, chain.kept = found.facts["bytes"], float(found.facts["kept"])
        self.work.progress.say(f"{size / 1e6:,.2f} MB keep {kept:.2%}: {chain.spelled}")
        return kept

    def told(self) -> list[dict[str, object]]:
        """Every chain as plain data."""
        return [{"chain": c.spelled, "bytes": c.bytes, "kept": c.kept} for c in self.tried]

    def _measured(self) -> list[Tried]:
        """What was measured, the largest first."""
        measured = [chain for chain in self.tried if chain.kept is not None]
        return sorted(measured, key=lambda chain: -chain.bytes)

    def table(self, chosen: Tried) -> Table:
        """What was measured; a star where nothing smaller keeps more."""
        table = Table("chains measured", ["", "", "MB", "kept", "chain"])
        measured = self._measured()
        for number, chain in enumerate(measured, 1):
            kept = chain.kept or 0.0
            best = all(kept > (c.kept or 0.0) for c in measured if c.bytes < chain.bytes)
            mark = "chosen" if chain is chosen else "*" if best else ""
            size = f"{chain.bytes / 1e6:,.2f}"
            table.rows.append([str(number), mark, size, f"{kept:.2%}", chain.spelled])
        return table

    def draw(self, path: str, whole: int, chosen: Tried) -> None:
        """Picture of what is kept against size; chains by their numbers in the table."""
        from emb_tool.evaluate import plot

        points = [plot.Point("before", whole, 1.0, True)]
        for number, chain in enumerate(self._measured(), 1):
            label = f"{number} chosen" if chain is chosen else str(number)
            points.append(plot.Point(label, chain.bytes, chain.kept or 0.0, False))
        plot.draw({("chains measured", "share kept"): points}, path)
