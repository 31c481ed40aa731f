"""Which field of a record holds the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emb_tool.data import files
from emb_tool.errors import Refused
from emb_tool.registry import did_you_mean


class Picker:
    """Takes the text out of the records of one file.

    Args:
        field: The field asked for, or None.
        fields: All fields of the first record.
        strings: Those of them that hold strings.
        where: Place of the first record.
    """

    def __init__(
        self, field: str | None, fields: Sequence[str], strings: Sequence[str], where: str
    ) -> None:
        if field is not None:
            if field not in fields:
                raise _missing(field, fields, where)
            self.column = field
        elif "text" in fields:
            self.column = "text"
        elif len(strings) == 1:
            self.column = strings[0]
        else:
            raise Refused(
                f"{where}: no field 'text', and {len(strings)} others hold strings; "
                f"there are: {', '.join(fields)}",
                "name the one that holds the text with --text-field",
            )
        self.titled = field is None and self.column == "text" and "_id" in fields

    def __call__(self, record: Mapping[str, Any], where: str) -> str:
        """The text of one record."""
        try:
            text = record[self.column]
        except KeyError:
            raise _missing(self.column, list(record), where) from None
        if not isinstance(text, str):
            raise Refused(
                f"{where}: field {self.column!r} holds {files.shown(text)}, not a string",
                "correct or remove the record, or name another field with --text-field",
            )
        return titled(record.get("title"), text) if self.titled else text


def _missing(field: str, fields: Sequence[str], where: str) -> Refused:
    near = did_you_mean(field, fields)
    return Refused(
        f"{where}: no field {field!r}; there are: {', '.join(fields)}",
        near if near.startswith("did") else "name the one that holds the text with --text-field",
    )


def titled(title: Any, text: str) -> str:
    """A BEIR document as one text: title, space, text."""
    return f"{title} {text}".strip() if isinstance(title, str) else text


def pick_texts(
    records: Iterator[tuple[Mapping[str, Any], str]], field: str | None
) -> Iterator[tuple[str, str]]:
    """The text of each record, by what the first one holds."""
    pick = None
    for record, where in records:
        if pick is None:
            strings = [key for key, value in record.items() if isinstance(value, str)]
            pick = Picker(field, list(record), strings, where)
        yield pick(record, where), where
