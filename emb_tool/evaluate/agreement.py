"""Agreement with a reference: are its vectors, or at least its neighbours, the same?"""

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

NEIGHBOURS = 10


class Agreement(Task):
    """Likeness to the reference's vectors and neighbours."""

    name: ClassVar[str] = "agreement"
    paper: ClassVar[str] = "arXiv:2509.12539"
    main: ClassVar[str | None] = "neighbour overlap"
    needs_reference: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {"texts": "texts"}
    prompted: ClassVar[dict[str, str]] = {"texts": "prompt_name"}

    path: Annotated[
        str, Field(description="texts: a file, a folder or hub:NAME"), FlagInfo(metavar="PATH")
    ]
    limit: Annotated[
        int, Field(ge=3, description="texts taken of them, by hash of their content")
    ] = 2000
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    prompt_name: Annotated[
        str | None,
        Field(description="prompt of the texts [each model's default, if any]"),
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
        """Both models' vectors of the texts, held against each other: see `likeness`."""
        assert reference is not None
        texts = self._load()
        what = f"texts of {self.label}"
        mine = pair.document.vectors(texts, self.prompt_name, what)
        theirs = reference.document.vectors(texts, self.prompt_name, what)
        return Score({**similarity_metrics(mine, theirs), "texts": len(texts)})

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
    mine: Vectors, theirs: Vectors, neighbours: int = NEIGHBOURS
) -> dict[str, float]:
    """How alike two models' vectors of the same texts are.

    Args:
        mine: (texts, dim) one model's vectors.
        theirs: (texts, dim or another width) the other's.
        neighbours: Of a text; of n texts (neighbours / (n - 1)) are shared by chance.

    Returns:
        `neighbour overlap`, the mean share of a text's nearest other texts that both models
        agree on. At equal widths also `cosine mean`, `cosine p5` and `cosine p1` (percentiles)
        of the two vectors of a text, and `cosine floor`, their mean for vectors of two different
        texts: what unrelated vectors reach.
    """
    import numpy as np

    from emb_tool.evaluate.nearest_neighbors import search, unit

    mine, theirs = unit(mine), unit(theirs)
    own = np.arange(len(mine))
    k = min(neighbours, len(mine) - 1)
    near = [search(vectors, vectors, k, exclude=own) for vectors in (mine, theirs)]
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(2).mean()
    figures = {"neighbour overlap": float(shared)}
    if mine.shape[1] != theirs.shape[1]:
        return figures
    cosine = np.einsum("ij,ij->i", mine, theirs, dtype=np.float64)
    order = np.random.default_rng(0).permutation(own)
    other = np.einsum("ij,ij->i", mine[order], theirs[np.roll(order, 1)], dtype=np.float64)
    return figures | {
        "cosine mean": float(cosine.mean()),
        "cosine p5": float(np.percentile(cosine, 5)),
        "cosine p1": float(np.percentile(cosine, 1)),
        "cosine floor": float(other.mean()),
    }


def sample_by_content(
    source: str, limit: int, options: TextOptions = DEFAULT, note: Note | None = None
) -> list[str]:
    """At most `limit` distinct texts, in the order of the source, empty ones left out.

    The ones whose hash is lowest are taken: the same whatever the order of the file, and spread
    over all of it.

    Args:
        source: As for `read_texts`.
        limit: How many.
        options: As for `read_texts`.
        note: As for `read_texts`.
    """
    from emb_tool.data.texts import read_texts, scan

    scan([source], options)
    chosen: list[tuple[int, int, str]] = []
    hashes: set[int] = set()
    for record in read_texts([source], options, note=note):
        if not record.text.strip():
            continue
        value = int.from_bytes(blake2b(record.text.encode(), digest_size=8).digest(), "big")
        if value in hashes or (len(chosen) == limit and value > -chosen[0][0]):
            continue
        hashes.add(value)
        entry = (-value, record.row, record.text)
        if len(chosen) < limit:
            heapq.heappush(chosen, entry)
        else:
            hashes.discard(-heapq.heappushpop(chosen, entry)[0])
    return [text for _, _, text in sorted(chosen, key=lambda entry: entry[1])]
