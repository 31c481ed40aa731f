"""The chains that `--target` chooses from: sound methods, one number left to be solved.

How linear layers are kept comes in steps of some bits. What they leave of a size goes to the token
table, in which almost any number of bytes can be spent: `pq` fills a budget with frequent rows in
whole numbers, `int` with bits and finer groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import cast

from emb_tool import registry
from emb_tool.checkpoint.writer import header
from emb_tool.compress.step import CompressStep, plan_step
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput

WEIGHTS = (
    ("cast:dtype=fp16",),
    ("int:bits=8",),
    ("gptq:bits=6", "int:bits=8"),
    ("gptq:bits=5", "int:bits=6"),
    ("gptq:bits=4", "int:bits=8"),
    ("gptq:bits=4", "int:bits=6"),
    ("gptq:bits=4", "int:bits=4,group_size=32"),
    ("gptq:bits=3,group_size=32", "int:bits=4,group_size=64"),
    ("gptq:bits=3,group_size=32", "pq:budget=0.1", "int:bits=8"),
    ("gptq:bits=2,group_size=32", "pq:budget=0.08", "int:bits=8"),
)
"""How the weights of a transformer are kept, the largest first: linear layers, then tables."""

TABLES = (
    ("cast:dtype=fp16",),
    ("int:bits=8",),
    ("int:bits=6",),
    ("int:bits=4,group_size=32",),
    ("int:bits=4",),
    ("pq:budget=0.1",),
    ("pq:budget=0.07",),
)
"""Likewise for a static table, which has nothing else."""

LINEAR = (
    "int:bits=8,tables=0",
    "gptq:bits=6",
    "gptq:bits=5",
    "gptq:bits=4",
    "gptq:bits=3,group_size=32",
    "gptq:bits=2,group_size=32",
)
"""How linear layers are kept where the table's share is solved for, the largest first."""

PQ_UP_TO = 0.16
"""Share of float32 up to which `pq` keeps more of a token table than `int` (measured)."""

SHARES = (0.03, 0.26)
"""Of a table's float32 bytes: the least that was found of use, and 8 bits with their scales."""

DIGITS = 4
"""Decimals of a share that is solved for: what is recorded is what is carried out."""


def build(texts: Sequence[str]) -> tuple[CompressStep, ...]:
    """Steps as typed after `-m`."""
    named = [registry.parse(text) for text in texts]
    return tuple(
        cast(CompressStep, registry.build(registry.load("compress", name), settings))
        for name, settings in named
    )


def step_spec(step: CompressStep) -> str:
    """A step as `-m` takes it, defaults left out."""
    values = step.model_dump(mode="json", exclude_defaults=True)
    settings = ",".join(
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in values.items()
    )
    return step.name + (f":{settings}" if settings else "")


def is_static(draft: CheckpointEditor) -> bool:
    """Whether a model is a table and nothing else."""
    return draft.layout.family == "static"


def fixed_chains(
    draft: CheckpointEditor, vocabulary: bool = False
) -> list[tuple[CompressStep, ...]]:
    """Chains without anything to solve for, the largest first.

    Args:
        draft: The model.
        vocabulary: Also with a trimmed vocabulary.
    """
    known = TABLES if is_static(draft) else WEIGHTS
    heads: list[tuple[str, ...]] = [(), ("vocab",)] if vocabulary else [()]
    return [build((*head, *rest)) for head in heads for rest in known]


def nearly_lossless_chains(draft: CheckpointEditor) -> list[tuple[CompressStep, ...]]:
    """Chains that lose next to nothing, the largest first: what fits of them needs no search."""
    return fixed_chains(draft)[:2]


@dataclass(frozen=True)
class Family:
    """Chains that differ in the share of its float32 bytes that the token table gets.

    Args:
        linear: How linear layers are kept; None for a static table.
        table: `pq` or `int`; None takes what keeps more at a share.
    """

    linear: str | None
    table: str | None = None

    def steps(self, share: float) -> tuple[CompressStep, ...]:
        """The chain at a share."""
        table = self.table or ("pq" if share < PQ_UP_TO else "int")
        first = () if self.linear is None else (self.linear,)
        rest = ("int:bits=8",) if table == "pq" and self.linear is not None else ()
        return build((*first, f"{table}:budget={share:.{DIGITS}f}", *rest))

    @property
    def bits(self) -> int:
        """Of a weight of the linear layers."""
        (step,) = build([str(self.linear)])
        return int(getattr(step, "bits"))  # noqa: B009

    def share(self, draft: CheckpointEditor, size: int) -> float | None:
        """The share at which headers say that a size is met; None if it is not at any.

        Args:
            draft: The model, its vocabulary trimmed where it is to be.
            size: Bytes of tensors.
        """
        most = SHARES[1]
        largest = plan_chain(draft, self.steps(most))
        if largest is None:
            return None
        return adjust_share(most, size - estimate(draft, largest, most), draft)


def estimate(draft: CheckpointEditor, made: CheckpointEditor, share: float) -> int:
    """Bytes of a chain with a share; `pq` fills it with rows that its plan cannot tell.

    Args:
        draft: The model.
        made: What the chain makes of it, planned.
        share: Of its token table.
    """
    module = draft.table_name().removesuffix(".weight")
    held = sum(spec.nbytes for spec in made.specs() if spec.name.startswith(f"{module}."))
    return file_bytes(made) - held + int(share * table_bytes(draft))


def adjust_share(share: float, gap: int, draft: CheckpointEditor) -> float | None:
    """A share that takes up a gap; None below the least.

    Args:
        share: The one that left it.
        gap: Bytes that are left, below 0 bytes too many.
        draft: The model.
    """
    scale = 10**DIGITS
    found = floor((share + gap / table_bytes(draft)) * scale) / scale
    return None if found < SHARES[0] else min(found, SHARES[1])


def file_bytes(draft: CheckpointEditor) -> int:
    """Bytes of the weight files of a draft, their headers included."""
    parts = [draft.tensors, *draft.modules.values()]
    headers = (header([lazy.spec for lazy in part.values()]) for part in parts if part)
    return draft.nbytes + sum(len(text) for text, _, _ in headers)


def most_balanced(families: Sequence[Family], shares: Sequence[float | None]) -> int | None:
    """The family whose linear layers and token table have the most similar bits a weight.

    Args:
        families: Of a model that is no static table.
        shares: Of each; None where it cannot be made.
    """
    unlike = {
        number: abs(family.bits - 32 * share)
        for number, (family, share) in enumerate(zip(families, shares, strict=True))
        if share is not None
    }
    return min(unlike, key=lambda number: unlike[number], default=None)


def smallest_chain(draft: CheckpointEditor) -> tuple[CompressStep, ...] | None:
    """The chain of fewest bytes by headers; None where none can be made."""
    every = [*fixed_chains(draft), *(family.steps(SHARES[0]) for family in families(draft))]
    sizes = {
        steps: made.nbytes for steps in every if (made := plan_chain(draft, steps)) is not None
    }
    return min(sizes, key=lambda steps: sizes[steps], default=None)


def table_bytes(draft: CheckpointEditor) -> int:
    """Bytes of the token table in float32, which a share is of."""
    return 4 * draft.spec(draft.table_name()).numel


def families(draft: CheckpointEditor) -> list[Family]:
    """Those of a model, the largest linear layers first; none where no table can be made out."""
    if is_static(draft):
        return [Family(None, table) for table in ("int", "pq")]
    try:
        draft.table_name()
    except InvalidInput:
        return []
    return [Family(linear) for linear in LINEAR]


def plan_chain(draft: CheckpointEditor, steps: Sequence[CompressStep]) -> CheckpointEditor | None:
    """What a chain makes of a model, from headers; None where a step does not fit it."""
    made = draft.copy()
    try:
        for step in steps:
            plan_step(step, made)
    except InvalidInput:
        return None
    return made


def chain_spec(steps: Sequence[CompressStep]) -> str:
    """A chain as one would type it."""
    return " ".join(f"-m {step_spec(step)}" for step in steps)


def preview_chains(
    draft: CheckpointEditor, size: int | None, vocabulary: bool
) -> list[tuple[str, int]]:
    """Chains that a search would try, with the bytes that headers promise, the largest first.

    Args:
        draft: The model.
        size: Bytes that are aimed at; None: a share to be kept.
        vocabulary: Whether `vocab` may be tried; how much it leaves only the texts tell.

    Raises:
        InvalidInput: A size that no chain comes down to.
    """
    if size is None:
        made = {
            chain_spec(steps): plan_chain(draft, steps) for steps in fixed_chains(draft, vocabulary)
        }
        found = {name: file_bytes(chain) for name, chain in made.items() if chain is not None}
        return sorted(found.items(), key=lambda item: -item[1])
    for steps in nearly_lossless_chains(draft):
        chain = plan_chain(draft, steps)
        if chain is not None and file_bytes(chain) <= size:
            return [(chain_spec(steps), file_bytes(chain))]
    found, least = {}, draft.nbytes
    for family in families(draft):
        if (largest := plan_chain(draft, family.steps(SHARES[1]))) is None:
            continue
        least = min(least, estimate(draft, largest, 0.0 if vocabulary else SHARES[0]))
        if (share := family.share(draft, size)) is not None:
            chain = plan_chain(draft, family.steps(share)) or largest
            found[chain_spec(family.steps(share))] = estimate(draft, chain, share)
        if vocabulary:
            found[chain_spec((*build(("vocab",)), *family.steps(share or SHARES[0])))] = size
    for steps in fixed_chains(draft):
        chain = plan_chain(draft, steps)
        least = min(least, file_bytes(chain) if chain is not None else least)
    if least > size:
        raise InvalidInput(
            f"--target {size / 1e6:g} MB: the smallest chain has about {least / 1e6:,.2f} MB",
            "a larger target; or a smaller model first, with embtool distill --student-layers",
        )
    return sorted(found.items(), key=lambda item: -item[1])
