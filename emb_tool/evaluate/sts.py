"""Semantic textual similarity: rank correlation of cosine with human scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PrivateAttr

from emb_tool.data.text_options import Delimiter, Header, TextOptions
from emb_tool.evaluate.task import Score, Task
from emb_tool.fields import FlagInfo

if TYPE_CHECKING:
    from emb_tool.data.sts import Sts as Data
    from emb_tool.evaluate.model_pair import ModelPair


class Sts(Task):
    """Spearman correlation of cosine with human scores."""

    name: ClassVar[str] = "sts"
    paper: ClassVar[str] = "arXiv:1708.00055"
    main: ClassVar[str | None] = "spearman"
    retains: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {"pairs": "pairs"}
    prompted: ClassVar[dict[str, str]] = {
        "first sentences": "prompt_name", "second sentences": "prompt_name",
    }  # fmt: skip

    path: Annotated[
        str,
        Field(description="tsv, csv or jsonl file with two sentences and a score per row"),
        FlagInfo(metavar="PATH"),
    ]
    prompt_name: Annotated[
        str | None,
        Field(description="prompt of both sentences [the model's default prompt, if any]"),
        FlagInfo(metavar="NAME"),
    ] = None
    delimiter: Delimiter = None
    header: Header = None

    _data: Data | None = PrivateAttr(None)

    def check(self) -> list[str]:
        """Read the pairs."""
        self._load()
        return []

    def items(self) -> list[str]:
        """The pairs."""
        data = self._load()
        return [f"{left}\n{right}" for left, right in zip(data.left, data.right, strict=True)]

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """Spearman's rank correlation of cosine and score over the pairs."""
        import numpy as np

        from emb_tool.evaluate.metrics import RankedPairs
        from emb_tool.evaluate.nearest_neighbors import unit

        data = self._load()
        first, second = (f"{what} of {self.label}" for what in self.prompted)
        left = unit(pair.query.vectors(data.left, self.prompt_name, first))
        right = unit(pair.document.vectors(data.right, self.prompt_name, second))
        cosine = np.einsum("ij,ij->i", left, right, dtype=np.float64)
        ranked = RankedPairs(cosine, np.asarray(data.scores, np.float64))
        figures = {"spearman": float(ranked.spearman()[0]), "pairs": len(data.left)}
        return Score(figures, ranked.spearman, len(data.left))

    def _load(self) -> Data:
        if self._data is None:
            from emb_tool.data.sts import load_sts

            self._data = load_sts(self.path, TextOptions.of(self))
        return self._data
