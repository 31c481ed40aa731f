"""A corpus of distinct texts on disk, deduplicated by content, with a held-out split.

A corpus is a folder of memory-mapped arrays and one file of UTF-8 bytes. Memory use is independent
of the number of texts, except for 32 bytes per text while their keys are sorted.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from emb_tool.config import MIN_HELD_OUT
from emb_tool.data.deduplicate import CHUNK, deduplicate
from emb_tool.data.text_field import Note, field_sentence
from emb_tool.data.text_options import DEFAULT, TextOptions
from emb_tool.data.texts import read_texts
from emb_tool.errors import InvalidInput

SCHEMA = 2

HELD_OUT_SHARE = 10
"""By default at most one in this many texts is held out."""

FEW_TEXTS = 300
"""With fewer texts a fit overfits their wording."""

_MANIFEST = "corpus.json"
_ARRAYS = ("offsets", "keys", "roles", "rows", "train", "heldout")


def text_key(text: str) -> bytes:
    """A 16-byte key of the content of a text: BLAKE2b-128 of its UTF-8 bytes."""
    return blake2b(text.encode("utf-8"), digest_size=16).digest()


def is_sampled(text: bytes, share: float, seed: int) -> bool:
    """Whether a text is in a random sample, decided by its content alone.

    Args:
        text: The text in UTF-8.
        share: Sampling probability.
        seed: Samples of different seeds are independent.
    """
    key = seed.to_bytes(8, "little")
    value = int.from_bytes(blake2b(text, digest_size=8, key=key).digest(), "little")
    return value < share * 2**64


def check_parts(
    what: str, fitted: int, heldout: int, requested: int, *, share: int = HELD_OUT_SHARE
) -> str | None:
    """Reject a split without enough held-out texts, unless the user requested none.

    Args:
        what: The flag that names the texts.
        fitted: Distinct texts to fit to.
        heldout: Distinct texts held out.
        requested: Maximum number of held-out texts that the user requested; 0 for none.
        share: At most one in this many texts is held out.

    Returns:
        A warning if there are few texts, else None.

    Raises:
        InvalidInput: No text to fit to, or fewer than `MIN_HELD_OUT` held-out texts.
    """
    total = fitted + heldout
    if requested and heldout < MIN_HELD_OUT:
        raise InvalidInput(
            f"{what}: only {heldout} of {total:,} distinct texts can be held out (at most one in"
            f" {share}); at least {MIN_HELD_OUT} are required",
            f"give at least {share * MIN_HELD_OUT} texts, better some thousand; or disable the"
            " evaluation on held-out texts: --holdout 0",
        )
    if not fitted:
        raise InvalidInput(
            f"{what}: no text is left to fit to", "lower --holdout, or give more texts"
        )
    if fitted < FEW_TEXTS:
        return (
            f"{what}: {fitted:,} distinct texts are few and the fit may overfit them;"
            " use some thousand"
        )
    return None


class Corpus:
    """Distinct texts, memory-mapped. Documents have the first indices, then queries.

    Attributes:
        keys: (n, 16) uint8, `text_key` of each text.
        roles: (n,) uint8, 0 document, 1 query.
        rows: (n,) int64, record number of each text: documents first, then queries, including
            empty texts and duplicates. It indexes precomputed vectors of the texts.
        train: int64, indices of the training texts.
        heldout: int64, indices of the held-out texts: those with the lowest keys, so that the split
            depends only on content; a text held out in one role is held out in both.
        counts: `records` read (also as `read`), of which `empty` and `duplicates` were dropped and
            `left_out` by sampling; `documents`, `queries` and `heldout` retained;
            `document_records` read from documents; `limited` is 1 if a source exceeded the limit.
        digest: Hex digest of the texts with their roles, order and rows.
        fields: The text field of each source in which it is not `text`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        self.folder = folder
        self.keys: np.ndarray = arrays["keys"]
        self.roles: np.ndarray = arrays["roles"]
        self.rows: np.ndarray = arrays["rows"]
        self.train: np.ndarray = arrays["train"]
        self.heldout: np.ndarray = arrays["heldout"]
        self.counts: dict[str, int] = manifest["counts"]
        self.digest: str = manifest["digest"]
        self.fields: dict[str, str] = manifest["fields"]
        self._offsets = arrays["offsets"]
        # read by offset rather than mapped, so that pages do not count as memory of the process
        self._texts = (folder / "texts.bin").open("rb", buffering=0)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> str:
        start, end = self._offsets[index]
        return os.pread(self._texts.fileno(), int(end - start), int(start)).decode("utf-8")

    def tell(self, note: Callable[[str], None]) -> None:
        """Report the text field of each source in which it is not `text`."""
        for source, field in self.fields.items():
            note(field_sentence(source, field))

    def texts(self, indices: Iterable[int]) -> list[str]:
        """The texts at these indices, in their order."""
        return [self[int(i)] for i in indices]

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus.open, (self.folder,)

    @classmethod
    def open(cls, folder: Path) -> Corpus | None:
        """The corpus in a folder; None if there is none or it is incomplete."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
            if manifest["schema"] != SCHEMA or manifest["sizes"] != _sizes(folder):
                return None
            return cls(folder, manifest)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def build(
        cls,
        folder: Path,
        documents: Sequence[str],
        queries: Sequence[str] = (),
        *,
        options: TextOptions = DEFAULT,
        query_options: TextOptions = DEFAULT,
        limit: int | None = None,
        holdout: int = 0,
        share: int = HELD_OUT_SHARE,
        sample: Sequence[float] = (),
        seed: int = 0,
    ) -> Corpus:
        """Read texts into a folder; surrounding whitespace is stripped, empty texts are dropped.

        The folder is created atomically and replaces an earlier corpus.

        Args:
            folder: The output folder; its parent exists.
            documents: Sources as for `read_texts`.
            queries: Likewise; a text may be both a document and a query, once each.
            options: How the documents are read.
            query_options: How the queries are read.
            limit: Maximum number of records, of documents and of queries each.
            holdout: Maximum number of held-out texts.
            share: At most one in this many texts is held out.
            sample: Approximate fraction of each source of documents to sample, by content; one
                value applies to all sources; () is everything.
            seed: Seed of the sampling.

        Raises:
            InvalidInput: As `read_texts`; no texts; a folder with other content.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
            raise InvalidInput(
                f"{folder} is not empty and is not a corpus", "name another folder, or empty it"
            )
        building = folder.with_name(folder.name + ".building")
        shutil.rmtree(building, ignore_errors=True)  # left by a killed run
        building.mkdir()
        try:
            shares = list(sample) * (len(documents) if len(sample) == 1 else 1)
            inputs = [(documents, options, shares), (queries, query_options, [])]
            fields: dict[str, str] = {}
            counts = _gather(building, inputs, limit, seed, fields.__setitem__)
            counts |= deduplicate(building, counts.pop("document_texts"), holdout, share)
            _seal(building, counts, fields)
            if folder.is_dir():
                shutil.rmtree(folder)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        corpus = cls.open(folder)
        assert corpus is not None
        return corpus


def _gather(
    folder: Path,
    inputs: Sequence[tuple[Sequence[str], TextOptions, Sequence[float]]],
    limit: int | None,
    seed: int,
    note: Note,
) -> dict[str, int]:
    """Stream all non-empty texts to texts.bin, and write their keys, spans and rows."""
    keys, spans, rows = bytearray(), array("q"), array("q")
    position = records = empty = left_out = limited = 0
    per_role: list[tuple[int, int]] = []  # after each role: records, texts

    with (
        (folder / "texts.bin").open("wb") as texts_file,
        (folder / "keys.raw").open("wb") as keys_file,
        (folder / "spans.raw").open("wb") as spans_file,
        (folder / "rows.raw").open("wb") as rows_file,
    ):

        def flush() -> None:
            _write(keys_file, keys)
            _write(spans_file, spans)
            _write(rows_file, rows)

        for sources, options, shares in inputs:
            first = records
            stream = read_texts(sources, options, note=note)
            for record in islice(stream, limit):
                records += 1
                text = record.text.strip()
                if not text:
                    empty += 1
                    continue
                data = text.encode("utf-8")
                if shares and not is_sampled(data, shares[record.source], seed):
                    left_out += 1
                    continue
                texts_file.write(data)
                keys += blake2b(data, digest_size=16).digest()
                spans.append(position)
                position += len(data)
                spans.append(position)
                rows.append(first + record.row)
                if len(rows) >= CHUNK:
                    flush()
            if limit is not None and next(stream, None) is not None:
                limited = 1
            per_role.append((records, records - empty - left_out))
        flush()
    if position == 0 and left_out:
        raise InvalidInput(f"--fraction selects none of {left_out} texts", "use a larger fraction")
    if position == 0:
        raise InvalidInput(
            f"no texts: {records} records, all empty", "name sources that contain texts"
        )
    return {
        "records": records,
        "read": records,
        "empty": empty,
        **({"left_out": left_out} if left_out else {}),
        "document_records": per_role[0][0],
        "document_texts": per_role[0][1],
        "limited": limited,
    }


def _write(file: BinaryIO, buffer: bytearray | array[int]) -> None:
    file.write(buffer)
    del buffer[:]


def _seal(folder: Path, counts: dict[str, int], fields: dict[str, str]) -> None:
    """Compute the digest, write the manifest and sync everything to disk."""
    digest = blake2b(digest_size=16)
    for name in ("keys", "roles", "rows"):
        with (folder / f"{name}.npy").open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    manifest = {
        "schema": SCHEMA,
        "counts": counts,
        "fields": fields,
        "digest": digest.hexdigest(),
        "sizes": _sizes(folder),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file except the manifest."""
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.name != _MANIFEST}
