"""Agreement with a reference model: similarity of the vectors and overlap of the neighbors."""

from __future__ import annotations

import heapq
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PrivateAttr

from emb_tool.data.text_field import Note
from emb_tool.data.text_options import DEFAULT, Delimiter, Header, TextField, TextOptions
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.task import Score, Task
from emb_tool.fields import FlagInfo

if TYPE_CHECKING:
    from emb_tool.evaluate.model_pair import ModelPair, Vectors

NEIGHBORS = 10


class Agreement(Task):
    """Similarity to the reference's vectors and nearest neighbors."""

    name: ClassVar[str] = "agreement"
    paper: ClassVar[str] = "arXiv:2509.12539"
    main: ClassVar[str | None] = "neighbor overlap"
    needs_reference: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {"texts": "texts"}
    prompted: ClassVar[dict[str, str]] = {"texts": "prompt_name"}

    path: Annotated[
        str, Field(description="texts: a file, a folder or hub:NAME"), FlagInfo(metavar="PATH")
    ]
    limit: Annotated[
        int,
        Field(ge=3, description="maximum number of texts, sampled by the hash of their content"),
    ] = 2000
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    prompt_name: Annotated[
        str | None,
        Field(description="prompt of the texts [each model's default prompt, if any]"),
        FlagInfo(metavar="NAME"),
    ] = None

    _texts: list[str] | None = PrivateAttr(None)

    def check(self) -> list[str]:
        """Read the texts."""
        self._load()
        return self._notes

    def items(self) -> list[str]:
        """The texts."""
        return self._load()

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """Compare both models' vectors of the texts: see `similarity_metrics`."""
        assert reference is not None
        texts = self._load()
        what = f"texts of {self.label}"
        vectors = pair.document.vectors(texts, self.prompt_name, what)
        expected = reference.document.vectors(texts, self.prompt_name, what)
        return Score({**similarity_metrics(vectors, expected), "texts": len(texts)})

    def _load(self) -> list[str]:
        if self._texts is None:
            self._texts = sample_by_content(self.path, self.limit, TextOptions.of(self), self.note)
            if len(self._texts) < 3:
                raise InvalidInput(
                    f"{self.path}: {len(self._texts)} distinct texts are too few to compare",
                    "give at least 3",
                )
        return self._texts


def similarity_metrics(
    first: Vectors, second: Vectors, num_neighbors: int = NEIGHBORS
) -> dict[str, float]:
    """Similarity of two models' vectors of the same texts.

    Args:
        first: (texts, dim) vectors of one model.
        second: (texts, other dim) vectors of the other model; the widths may differ.
        num_neighbors: Nearest neighbors of each text. Random vectors of n texts share a fraction
            of num_neighbors / (n - 1).

    Returns:
        `neighbor overlap`, the mean fraction of a text's nearest neighbors that both models
        share. At equal widths also `cosine mean`, `cosine p5` and `cosine p1` (percentiles) of
        the cosine between the two vectors of a text, and `cosine floor`, the mean cosine between
        the vectors of two different texts.
    """
    import numpy as np

    from emb_tool.evaluate.nearest_neighbors import search, unit

    first, second = unit(first), unit(second)
    rows = np.arange(len(first))
    k = min(num_neighbors, len(first) - 1)
    neighbors = [search(vectors, vectors, k, exclude=rows) for vectors in (first, second)]
    shared = (neighbors[0][:, :, None] == neighbors[1][:, None, :]).any(2).mean()
    figures = {"neighbor overlap": float(shared)}
    if first.shape[1] != second.shape[1]:
        return figures
    cosine = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    order = np.random.default_rng(0).permutation(rows)
    floor = np.einsum("ij,ij->i", first[order], second[np.roll(order, 1)], dtype=np.float64)
    return figures | {
        "cosine mean": float(cosine.mean()),
        "cosine p5": float(np.percentile(cosine, 5)),
        "cosine p1": float(np.percentile(cosine, 1)),
        "cosine floor": float(floor.mean()),
    }


def sample_by_content(
    source: str, limit: int, options: TextOptions = DEFAULT, note: Note | None = None
) -> list[str]:
    """At most `limit` distinct texts, in the order of the source, without empty ones.

    The texts with the lowest hashes are selected. The selection does not depend on the order of
    the file and covers all of it.

    Args:
        source: As for `read_texts`.
        limit: Maximum number of texts.
        options: As for `read_texts`.
        note: As for `read_texts`.
    """
    from emb_tool.data.texts import read_texts, scan

    scan([source], options)
    selected: list[tuple[int, int, str]] = []
    hashes: set[int] = set()
    for record in read_texts([source], options, note=note):
        if not record.text.strip():
            continue
        value = int.from_bytes(blake2b(record.text.encode(), digest_size=8).digest(), "big")
        if value in hashes or (len(selected) == limit and value > -selected[0][0]):
            continue
        hashes.add(value)
        entry = (-value, record.row, record.text)
        if len(selected) < limit:
            heapq.heappush(selected, entry)
        else:
            hashes.discard(-heapq.heappushpop(selected, entry)[0])
    return [text for _, _, text in sorted(selected, key=lambda entry: entry[1])]
