"""Base class of methods that use statistics of every model on texts: Fisher diagonals, Grams.

Statistics are as large as the tensors. They are written to a file per model and read slice by slice
during the merge.
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
    """A method that needs statistics of every model on representative texts.

    The recipe names the texts, not the statistics. Statistics that are computed again from the same
    texts on the same kind of machine agree except for rounding of sums. With `statistics` they are
    stored, so the merge can be reproduced byte for byte without the texts.

    Attributes:
        kind: Kind of statistics, the prefix of their file names.
    """

    kind: ClassVar[str]
    data_kinds: ClassVar[tuple[str, ...]] = ("texts", "pairs")

    statistics: Annotated[
        str | None,
        Field(
            description="folder where statistics are stored, one file per model; existing files are"
            " read instead of computed [none]"
        ),
        FlagInfo(metavar="PATH"),
    ] = None
    tokens: Annotated[
        int, Field(ge=1, description="number of tokens that each model is run on")
    ] = 32768

    _files: list[Any] = PrivateAttr(default_factory=list)

    @property
    def needs_data(self) -> bool:
        """False if stored statistics exist."""
        folder = Path(self.statistics or "nowhere").expanduser()
        return not any(folder.glob(f"{self.kind}-*.safetensors"))

    def find(self, evaluator: MergeEvaluator) -> SearchResult:
        """Compute missing statistics, model by model, and open all files."""
        folder = evaluator.state / "statistics"
        if self.statistics:
            folder = Path(self.statistics).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.kind}-{_identity(evaluator, i)}.safetensors"
                 for i in range(len(evaluator.names))]  # fmt: skip
        facts: dict[str, Any] = {"gathered": 0}
        for index, path in enumerate(paths):
            if not path.is_file():
                if not evaluator.has_texts:
                    raise InvalidInput(
                        f"{folder} has no {self.kind} statistics of {evaluator.names[index]}",
                        "give --texts or --pairs to compute them",
                    )
                evaluator.mixture.set(np.eye(len(evaluator.names))[index])
                statistics = self.gather(evaluator)
                self._check(statistics, evaluator.names[index])
                save_tensors(path, statistics)
                facts["gathered"] += 1
        if evaluator.has_texts and facts["gathered"] < len(paths) and self.statistics:
            evaluator.progress.warn(
                f"{self.name}: {len(paths) - facts['gathered']} models' statistics are read from"
                f" {folder}; the texts are not used for these models"
            )
        order = canonical_order(evaluator.setup.slots)  # the order of models in the merge
        return SearchResult(self.with_statistics([paths[i] for i in order]), facts)

    def gather(self, evaluator: MergeEvaluator) -> Mapping[str, torch.Tensor]:
        """Statistics of the current mixture, by canonical tensor name."""
        raise NotImplementedError

    def _check(self, statistics: Mapping[str, torch.Tensor], model: str) -> None:
        """Refuse NaN and infinity, which would affect the whole merge."""
        bad = [name for name, values in statistics.items() if not values.isfinite().all()]
        if bad:
            raise InvalidInput(
                f"{model}: its {self.kind} statistics on the texts are not finite (NaN or"
                f" infinity), first in {bad[0]}",
                "its weights or its config.json are damaged: restore the original files, or leave"
                " it out",
            )

    def with_statistics(self, paths: list[Path]) -> StatisticsMerge:
        """A copy of this method with its statistics files open.

        Args:
            paths: One file per model, in the order in which they are merged.
        """
        method = self.model_copy()
        files = OpenFiles()
        method._files = [
            {name: files.tensor(path, name) for name in read_header(path).tensors} for path in paths
        ]
        return method


def batches(evaluator: MergeEvaluator, tokens: int, batch_tokens: int) -> Iterator[dict[str, Any]]:
    """Batches of the job's texts or pairs in random order, up to a number of tokens.

    Args:
        evaluator: The texts and the model.
        tokens: Approximate number of tokens, of queries and documents together.
        batch_tokens: Padded tokens per batch.
    """
    from emb_tool.data.batches import plan_batches

    encoder = evaluator.mixture.encoder
    rng = np.random.default_rng(evaluator.job.seed)
    by_role = evaluator.texts()
    for role, texts in by_role.items():
        prompt = encoder.prompt(role)
        ids: list[np.ndarray] = []
        remaining = tokens // len(by_role)
        for indices in np.array_split(rng.permutation(len(texts)), max(1, len(texts) // 256)):
            token_ids = encoder.tokenize([texts[i] for i in indices], prompt)
            ends = np.cumsum([len(row) for row in token_ids])
            ids += token_ids[: 1 + int(np.searchsorted(ends, remaining))]
            remaining -= int(ends[-1])
            if remaining <= 0:
                break
        for batch in plan_batches(np.array([len(row) for row in ids]), batch_tokens, rng):
            yield encoder.collate([ids[i] for i in batch], encoder.prompt_length(prompt))


def _identity(evaluator: MergeEvaluator, index: int) -> str:
    """The first digits of a model's digest, part of the file name of its statistics."""
    return evaluator.setup.models[index].fingerprint()[:16]
