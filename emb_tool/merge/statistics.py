"""What a merge weighs elements by, gathered by running every model: Fisher diagonals, Grams.

Statistics are as large as tensors. They are written to a file for each model, and read from there
slice by slice while the merge streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PrivateAttr

from emb_tool.checkpoint.elements import OpenFiles
from emb_tool.checkpoint.header import read_header
from emb_tool.checkpoint.result_cache import save_tensors
from emb_tool.errors import InvalidInput
from emb_tool.fields import FlagInfo
from emb_tool.merge.base import Averaging
from emb_tool.merge.model_order import canonical_order
from emb_tool.merge.weight_search import DataDrivenMerge, SearchResult

if TYPE_CHECKING:
    import torch

    from emb_tool.merge.evaluator import MergeEvaluator


class StatisticsMerge(DataDrivenMerge, Averaging):
    """A method that needs statistics of every model on texts like those that it will see.

    The recipe names the texts, not the statistics: made again from the same texts on the same kind
    of machine these are the same but for the rounding of sums. `statistics` keeps them, so that a
    merge can be made again, byte for byte, without the texts.

    Attributes:
        kind: What the statistics are, for their files' names.
    """

    kind: ClassVar[str]
    looks_at: ClassVar[tuple[str, ...]] = ("texts", "pairs")

    statistics: Annotated[
        str | None,
        Field(
            description="folder to keep the statistics in, one file for each model; those that are"
            " there are read instead of gathered [none]"
        ),
        FlagInfo(metavar="PATH"),
    ] = None
    tokens: Annotated[int, Field(ge=1, description="tokens that each model is run on")] = 32768

    _held: list[Any] = PrivateAttr(default_factory=list)

    @property
    def needs_data(self) -> bool:
        """Not where there are statistics."""
        stated = Path(self.statistics or "nowhere").expanduser()
        return not any(stated.glob(f"{self.kind}-*.safetensors"))

    def find(self, bench: MergeEvaluator) -> SearchResult:
        """Gather what is not there yet, model by model, and open it."""
        folder = bench.state / "statistics"
        if self.statistics:
            folder = Path(self.statistics).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.kind}-{_identity(bench, i)}.safetensors"
                 for i in range(len(bench.names))]  # fmt: skip
        facts: dict[str, Any] = {"gathered": 0}
        for number, path in enumerate(paths):
            if not path.is_file():
                if not bench.has_texts:
                    raise InvalidInput(
                        f"{folder} holds no {self.kind} of {bench.names[number]}",
                        "give --texts or --pairs to gather it from",
                    )
                bench.mixture.set(np.eye(len(bench.names))[number])
                made = self.gather(bench)
                self._check(made, bench.names[number])
                save_tensors(path, made)
                facts["gathered"] += 1
        if bench.has_texts and facts["gathered"] < len(paths) and self.statistics:
            bench.progress.warn(
                f"{self.name}: {len(paths) - facts['gathered']} models' statistics are taken from"
                f" {folder} as they are; the texts are not looked at for these"
            )
        order = canonical_order(bench.setup.slots)  # models come in it when they are merged
        return SearchResult(self.with_statistics([paths[i] for i in order]), facts)

    def gather(self, bench: MergeEvaluator) -> Mapping[str, torch.Tensor]:
        """Statistics of the model that the mixture is now, by canonical name of the tensor."""
        raise NotImplementedError

    def _check(self, statistics: Mapping[str, torch.Tensor], model: str) -> None:
        """Refuse what would spread from one model over the whole merge."""
        bad = [name for name, held in statistics.items() if not held.isfinite().all()]
        if bad:
            raise InvalidInput(
                f"{model}: its {self.kind} on the texts is not finite (NaN or infinity), first at"
                f" {bad[0]}",
                "its weights or its config.json are broken: restore the original files, or leave"
                " it out",
            )

    def with_statistics(self, paths: list[Path]) -> StatisticsMerge:
        """This method with its statistics at hand.

        Args:
            paths: A file for each model, in the order in which they are merged.
        """
        made = self.model_copy()
        files = OpenFiles()
        made._held = [
            {name: files.tensor(path, name) for name in read_header(path).tensors} for path in paths
        ]
        return made


def batches(bench: MergeEvaluator, tokens: int, batch_tokens: int) -> Iterator[dict[str, Any]]:
    """The job's texts (or its pairs) as inputs of the model, in random order until they are enough.

    Args:
        bench: Has the texts and the model.
        tokens: About how many, queries and documents together.
        batch_tokens: Padded tokens of a batch.
    """
    from emb_tool.data.batches import plan_batches

    encoder = bench.mixture.encoder
    rng = np.random.default_rng(bench.job.seed)
    by_role = bench.texts()
    for role, texts in by_role.items():
        prompt = encoder.prompt(role)
        ids: list[np.ndarray] = []
        left = tokens // len(by_role)
        for some in np.array_split(rng.permutation(len(texts)), max(1, len(texts) // 256)):
            found = encoder.tokenize([texts[i] for i in some], prompt)
            ends = np.cumsum([len(row) for row in found])
            ids += found[: 1 + int(np.searchsorted(ends, left))]
            left -= int(ends[-1])
            if left <= 0:
                break
        for batch in plan_batches(np.array([len(row) for row in ids]), batch_tokens, rng):
            yield encoder.collate([ids[i] for i in batch], encoder.prompt_length(prompt))


def _identity(bench: MergeEvaluator, number: int) -> str:
    """The beginning of a model's digest: what its file of statistics is called by."""
    return bench.setup.models[number].fingerprint()[:16]
