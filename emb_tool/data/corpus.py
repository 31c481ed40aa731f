"""Distinct texts on disk: read once, deduplicated by content, a part of them held out.

A corpus is a folder of memory-mapped arrays beside one file of UTF-8 bytes, so that ten million
texts need no memory in proportion, bar the 32 bytes a text that sorting their keys takes.
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
"""At most one text in so many is held out, unless more is asked for."""

FEW_TEXTS = 300
"""Below so many texts what is fitted to them is fitted to their wording."""

_MANIFEST = "corpus.json"
_ARRAYS = ("offsets", "keys", "roles", "rows", "train", "heldout")


def text_key(text: str) -> bytes:
    """The 16 bytes that name a text by its content: BLAKE2b-128 of its UTF-8 bytes."""
    return blake2b(text.encode("utf-8"), digest_size=16).digest()


def is_sampled(text: bytes, share: float, seed: int) -> bool:
    """Whether a text is in a random sample: by its content, whatever stands around it.

    Args:
        text: UTF-8.
        share: Probability.
        seed: Samples of different seeds are independent.
    """
    key = seed.to_bytes(8, "little")
    value = int.from_bytes(blake2b(text, digest_size=8, key=key).digest(), "little")
    return value < share * 2**64


def check_parts(
    what: str, fitted: int, heldout: int, asked: int, *, share: int = HELD_OUT_SHARE
) -> str | None:
    """Refuse to fit where nothing is left to tell how well, unless that was asked for.

    Args:
        what: The flag that names the texts.
        fitted: Distinct texts to fit to.
        heldout: Distinct texts held out.
        asked: How many the user wants held out at most; 0: none.
        share: At most one in so many is.

    Returns:
        A warning where there are few.

    Raises:
        InvalidInput: No text to fit to, or too few held out to tell anything.
    """
    total = fitted + heldout
    if asked and heldout < MIN_HELD_OUT:
        raise InvalidInput(
            f"{what}: of {total:,} distinct texts {heldout} can be held out (one in {share} at"
            f" most); what they are for takes {MIN_HELD_OUT} at least",
            f"give at least {share * MIN_HELD_OUT} texts, better some thousand; or decline, and"
            " nothing is measured on texts of its own: --holdout 0",
        )
    if not fitted:
        raise InvalidInput(
            f"{what}: no text is left to fit to", "lower --holdout, or give more texts"
        )
    if fitted < FEW_TEXTS:
        return (
            f"{what}: {fitted:,} distinct texts are few to fit to: what is learned is their"
            " wording; some thousand is what it takes"
        )
    return None


class Corpus:
    """Distinct texts, memory-mapped. Indices run over documents first, then queries.

    Attributes:
        keys: (n, 16) uint8, `text_key` of each text.
        roles: (n,) uint8, 0 document, 1 query.
        rows: (n,) int64, number of the record that it came from: documents first, then queries,
            empty texts and duplicates counted. Vectors beside the texts are found by it.
        train: int64, indices to train on.
        heldout: int64, indices held out: the texts of the lowest keys, so that the choice hangs
            on content alone; a text held out in one role is held out in both.
        counts: `records` read (`read` too), of them `empty` and `duplicates` dropped and `left_out`
            of a sample; `documents`, `queries` and `heldout` kept; `document_records` of the
            records came from documents; `limited` is 1 if a source went on beyond the limit.
        digest: Hex name of the texts with their roles, order and rows.
        fields: Of sources whose text is not in a field `text`, the field that it is in.
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
        # Read by position, not mapped: pages once read do not stay in the process's memory.
        self._texts = (folder / "texts.bin").open("rb", buffering=0)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> str:
        start, end = self._offsets[index]
        return os.pread(self._texts.fileno(), int(end - start), int(start)).decode("utf-8")

    def tell(self, note: Callable[[str], None]) -> None:
        """Tell where the text of each source stands, if not in a field `text`."""
        for source, field in self.fields.items():
            note(field_sentence(source, field))

    def texts(self, indices: Iterable[int]) -> list[str]:
        """The texts at these indices, in their order."""
        return [self[int(i)] for i in indices]

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus.open, (self.folder,)

    @classmethod
    def open(cls, folder: Path) -> Corpus | None:
        """The corpus in a folder, or None where there is none, or not a whole one."""
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
        """Read texts into a folder; whitespace around them is cut off, empty ones are dropped.

        The folder appears whole or not at all; an earlier corpus in it is replaced.

        Args:
            folder: Where to; its parent exists.
            documents: Sources as for `read_texts`.
            queries: Likewise; a text may be a document and a query, but only once each.
            options: How the documents are read.
            query_options: How the queries are read.
            limit: Records read at most, of documents and of queries each.
            holdout: Texts held out at most.
            share: Never more than one text in so many is held out.
            sample: About what share to take of each source of documents, by their content; one
                share is that of all; () takes everything.
            seed: Of that choice.

        Raises:
            InvalidInput: What `read_texts` refuses; no texts; a folder that holds something else.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
            raise InvalidInput(
                f"{folder} is not empty and holds no corpus", "name another folder, or empty it"
            )
        building = folder.with_name(folder.name + ".building")
        shutil.rmtree(building, ignore_errors=True)  # what a killed run left
        building.mkdir()
        try:
            shares = list(sample) * (len(documents) if len(sample) == 1 else 1)
            parts = [(documents, options, shares), (queries, query_options, [])]
            fields: dict[str, str] = {}
            counts = _gather(building, parts, limit, seed, fields.__setitem__)
            counts |= deduplicate(building, counts.pop("document_texts"), holdout, share)
            _seal(building, counts, fields)
            if folder.is_dir():
                shutil.rmtree(folder)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        built = cls.open(folder)
        assert built is not None
        return built


def _gather(
    folder: Path,
    parts: Sequence[tuple[Sequence[str], TextOptions, Sequence[float]]],
    limit: int | None,
    seed: int,
    note: Note,
) -> dict[str, int]:
    """Stream all texts that are not empty to texts.bin, their keys, spans and rows beside it."""
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

        for sources, options, shares in parts:
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
        raise InvalidInput(f"--fraction takes none of {left_out} texts", "take a larger share")
    if position == 0:
        raise InvalidInput(
            f"no texts: {records} records, all empty", "name sources that hold texts"
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
    """Name the content, write the manifest and force all of it to disk."""
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
    """Bytes of every file but the manifest."""
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.name != _MANIFEST}
