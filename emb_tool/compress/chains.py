"""The chains that `--target` chooses from, with the budget of the token table as a free parameter.

The linear layers have a discrete set of formats. The bytes that remain go to the token table, whose
size is almost continuous: `pq` fills its budget with frequent rows as integers, `int` with more
bits and smaller groups.
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

TRANSFORMER_CHAINS = (
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
"""Chains for transformers, largest first: linear layers, then tables."""

STATIC_CHAINS = (
    ("cast:dtype=fp16",),
    ("int:bits=8",),
    ("int:bits=6",),
    ("int:bits=4,group_size=32",),
    ("int:bits=4",),
    ("pq:budget=0.1",),
    ("pq:budget=0.07",),
)
"""Chains for static embeddings, largest first."""

LINEAR_SPECS = (
    "int:bits=8,tables=0",
    "gptq:bits=6",
    "gptq:bits=5",
    "gptq:bits=4",
    "gptq:bits=3,group_size=32",
    "gptq:bits=2,group_size=32",
)
"""Formats of the linear layers where the budget of the table is solved for, largest first."""

MAX_PQ_SHARE = 0.16
"""Largest budget at which `pq` loses less than `int` on a token table (measured)."""

SHARE_RANGE = (0.03, 0.26)
"""Smallest useful budget (measured) and largest (8 bits with scales), as shares of float32
bytes."""

SHARE_DECIMALS = 4
"""Decimals of a solved budget, so that the recorded value is the one that was applied."""


def parse_chain(texts: Sequence[str]) -> tuple[CompressStep, ...]:
    """Steps from their specs, as in `-m SPEC`."""
    parsed = [registry.parse(text) for text in texts]
    return tuple(
        cast(CompressStep, registry.build(registry.load("compress", name), settings))
        for name, settings in parsed
    )


def step_spec(step: CompressStep) -> str:
    """The spec of a step, as in `-m SPEC`, without default values."""
    values = step.model_dump(mode="json", exclude_defaults=True)
    settings = ",".join(
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in values.items()
    )
    return step.name + (f":{settings}" if settings else "")


def is_static(draft: CheckpointEditor) -> bool:
    """Whether a model is a static embedding."""
    return draft.layout.family == "static"


def fixed_chains(
    draft: CheckpointEditor, vocabulary: bool = False
) -> list[tuple[CompressStep, ...]]:
    """Chains without free parameters, largest first.

    Args:
        draft: The model.
        vocabulary: Also return each chain with a trimmed vocabulary.
    """
    weights = STATIC_CHAINS if is_static(draft) else TRANSFORMER_CHAINS
    prefixes: list[tuple[str, ...]] = [(), ("vocab",)] if vocabulary else [()]
    return [parse_chain((*prefix, *steps)) for prefix in prefixes for steps in weights]


def nearly_lossless_chains(draft: CheckpointEditor) -> list[tuple[CompressStep, ...]]:
    """Chains without measurable loss, largest first; if one of them fits, no search is needed."""
    return fixed_chains(draft)[:2]


@dataclass(frozen=True)
class Family:
    """Chains that differ in the budget of the token table, a share of its float32 bytes.

    Args:
        linear: Spec of the step for linear layers; None for a static embedding.
        table: Method for the table, `pq` or `int`; None: the better one at a given budget.
    """

    linear: str | None
    table: str | None = None

    def steps(self, share: float) -> tuple[CompressStep, ...]:
        """The chain at a given budget of the table."""
        table = self.table or ("pq" if share < MAX_PQ_SHARE else "int")
        linear = () if self.linear is None else (self.linear,)
        tables = ("int:bits=8",) if table == "pq" and self.linear is not None else ()
        return parse_chain((*linear, f"{table}:budget={share:.{SHARE_DECIMALS}f}", *tables))

    @property
    def bits(self) -> int:
        """Bits per weight of the linear layers."""
        (step,) = parse_chain([str(self.linear)])
        return int(getattr(step, "bits"))  # noqa: B009

    def share(self, draft: CheckpointEditor, size: int) -> float | None:
        """The budget of the table at which a size is met, computed from headers.

        Args:
            draft: The model, with its vocabulary trimmed if the chain trims it.
            size: Bytes of the weight files.

        Returns:
            A share of the float32 bytes of the table; None if no budget meets the size.
        """
        max_share = SHARE_RANGE[1]
        largest = plan_chain(draft, self.steps(max_share))
        if largest is None:
            return None
        return adjust_share(max_share, size - estimate(draft, largest, max_share), draft)


def estimate(draft: CheckpointEditor, planned: CheckpointEditor, share: float) -> int:
    """Estimated bytes of the weight files of a chain.

    The table is counted with its full budget, since `pq` chooses its frequent rows only when it is
    fitted.

    Args:
        draft: The model.
        planned: The model after planning the chain.
        share: Budget of the token table, a share of its float32 bytes.
    """
    module = draft.table_name().removesuffix(".weight")
    table_nbytes = sum(
        spec.nbytes for spec in planned.specs() if spec.name.startswith(f"{module}.")
    )
    return file_bytes(planned) - table_nbytes + int(share * table_bytes(draft))


def adjust_share(share: float, gap: int, draft: CheckpointEditor) -> float | None:
    """A budget of the table that closes a gap to the target size.

    Args:
        share: The current budget.
        gap: Target size minus current size, in bytes.
        draft: The model.

    Returns:
        The new budget, limited to `SHARE_RANGE`; None if it would be below.
    """
    scale = 10**SHARE_DECIMALS
    adjusted = floor((share + gap / table_bytes(draft)) * scale) / scale
    return None if adjusted < SHARE_RANGE[0] else min(adjusted, SHARE_RANGE[1])


def file_bytes(draft: CheckpointEditor) -> int:
    """Bytes of the weight files of a draft, including headers."""
    parts = [draft.tensors, *draft.modules.values()]
    headers = (header([lazy.spec for lazy in part.values()]) for part in parts if part)
    return draft.nbytes + sum(len(text) for text, _, _ in headers)


def most_balanced(families: Sequence[Family], shares: Sequence[float | None]) -> int | None:
    """Index of the family whose linear layers and token table have the closest bits per weight.

    Args:
        families: Families of a model that is not a static embedding.
        shares: Budget of each; None where the family does not fit.
    """
    differences = {
        number: abs(family.bits - 32 * share)
        for number, (family, share) in enumerate(zip(families, shares, strict=True))
        if share is not None
    }
    return min(differences, key=lambda number: differences[number], default=None)


def smallest_chain(draft: CheckpointEditor) -> tuple[CompressStep, ...] | None:
    """The chain with the fewest bytes, computed from headers; None if none is applicable."""
    candidates = [
        *fixed_chains(draft),
        *(family.steps(SHARE_RANGE[0]) for family in families(draft)),
    ]
    sizes = {
        steps: planned.nbytes
        for steps in candidates
        if (planned := plan_chain(draft, steps)) is not None
    }
    return min(sizes, key=lambda steps: sizes[steps], default=None)


def table_bytes(draft: CheckpointEditor) -> int:
    """Bytes of the token table in float32."""
    return 4 * draft.spec(draft.table_name()).numel


def families(draft: CheckpointEditor) -> list[Family]:
    """Families for a model, largest linear layers first; none if its token table is unknown."""
    if is_static(draft):
        return [Family(None, table) for table in ("int", "pq")]
    try:
        draft.table_name()
    except InvalidInput:
        return []
    return [Family(linear) for linear in LINEAR_SPECS]


def plan_chain(draft: CheckpointEditor, steps: Sequence[CompressStep]) -> CheckpointEditor | None:
    """A model after planning a chain, from headers; None if a step is not applicable."""
    planned = draft.copy()
    try:
        for step in steps:
            plan_step(step, planned)
    except InvalidInput:
        return None
    return planned


def chain_spec(steps: Sequence[CompressStep]) -> str:
    """A chain as command-line options."""
    return " ".join(f"-m {step_spec(step)}" for step in steps)


def preview_chains(
    draft: CheckpointEditor, size: int | None, vocabulary: bool
) -> list[tuple[str, int]]:
    """Chains that a search would try, with sizes estimated from headers, largest first.

    Args:
        draft: The model.
        size: Target size in bytes; None for a target retention.
        vocabulary: Whether `vocab` may be tried; its effect depends on the texts.

    Returns:
        Pairs of chain and estimated bytes.

    Raises:
        InvalidInput: No chain reaches the size.
    """
    if size is None:
        planned = {
            chain_spec(steps): plan_chain(draft, steps) for steps in fixed_chains(draft, vocabulary)
        }
        sizes = {name: file_bytes(chain) for name, chain in planned.items() if chain is not None}
        return sorted(sizes.items(), key=lambda item: -item[1])
    for steps in nearly_lossless_chains(draft):
        chain = plan_chain(draft, steps)
        if chain is not None and file_bytes(chain) <= size:
            return [(chain_spec(steps), file_bytes(chain))]
    sizes, min_bytes = {}, draft.nbytes
    for family in families(draft):
        if (largest := plan_chain(draft, family.steps(SHARE_RANGE[1]))) is None:
            continue
        min_bytes = min(min_bytes, estimate(draft, largest, 0.0 if vocabulary else SHARE_RANGE[0]))
        if (share := family.share(draft, size)) is not None:
            chain = plan_chain(draft, family.steps(share)) or largest
            sizes[chain_spec(family.steps(share))] = estimate(draft, chain, share)
        if vocabulary:
            sizes[
                chain_spec((*parse_chain(("vocab",)), *family.steps(share or SHARE_RANGE[0])))
            ] = size
    for steps in fixed_chains(draft):
        chain = plan_chain(draft, steps)
        min_bytes = min(min_bytes, file_bytes(chain) if chain is not None else min_bytes)
    if min_bytes > size:
        raise InvalidInput(
            f"--target {size / 1e6:g} MB: the smallest chain has about {min_bytes / 1e6:,.2f} MB",
            "use a larger target, or make a smaller model first: embtool distill --student-layers",
        )
    return sorted(sizes.items(), key=lambda item: -item[1])
