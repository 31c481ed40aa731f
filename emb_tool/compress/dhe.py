"""`dhe`: a small network computes rows from hashes of their ids."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.table_method import TableMethod


class Dhe(TableMethod):
    """Deep hash embeddings, fitted to the table by regression.

    For tables that are trained further; the fit to a trained table is slow and has a large error.
    """

    name = "dhe"
    kind: ClassVar[str] = "dhe"
    paper = "arXiv:2010.10784"

    hashes: Annotated[int, Field(ge=1, description="hash functions: inputs of the network")] = 1024
    hidden: Annotated[
        int | None, Field(ge=1, description="width of the hidden layers [by the budget]")
    ] = None
    layers: Annotated[int, Field(ge=1, description="number of hidden layers")] = 3
    epochs: Annotated[float, Field(gt=0, description="passes over the rows of the table")] = 5
    lr: Annotated[float, Field(gt=0, le=1, description="initial learning rate of AdamW")] = 1e-3
