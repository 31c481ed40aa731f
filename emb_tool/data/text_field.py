"""Selection of the record field or table column that contains the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from emb_tool.data import files
from emb_tool.data.dialect import OTHER_NAMES, check_distinct, is_known
from emb_tool.data.text_options import TextOptions
from emb_tool.errors import InvalidInput
from emb_tool.registry import did_you_mean

Note = Callable[[str, str], None]
"""Called with the name of a source and the field that its texts are read from."""


class Source:
    """A source of texts: the settings and the text field that its files share.

    Args:
        name: Name as given by the user.
        options: Settings for its files.
        note: Called with the field, unless it is `text`.
    """

    def __init__(self, name: str, options: TextOptions, note: Note | None = None) -> None:
        self.name, self.options, self.note = name, options, note
        self._field: str | None = None
        self._first = ""

    def check_field(self, field: str, where: str) -> None:
        """Check that a file has the same text field as the files before it.

        Raises:
            InvalidInput: The field differs.
        """
        if self._field is None:
            self._field, self._first = field, where
            if self.note and not is_text(field):
                self.note(self.name, field)
        elif field != self._field:
            raise InvalidInput(
                f"{where}: its text would be {field_label(field)}, that of {self._first} is"
                f" {field_label(self._field)}",
                f"set the field of all files: {self.options.spelled(text_field='NAME')}",
            )


def is_text(field: str) -> bool:
    """Whether a field is called `text`, ignoring case."""
    return field.casefold() == "text"


def field_label(field: str) -> str:
    """A field in a message: its name, or the number of an unnamed column."""
    return f"column {field}" if field.isdecimal() else f"field {field!r}"


def field_sentence(source: str, field: str) -> str:
    """The note about a source whose text is not in a field `text`."""
    return f"{source}: the text is {field_label(field)}"


class Picker:
    """Extracts the text of the records of one file.

    Args:
        options: The user's settings.
        fields: All fields of the first record.
        strings: The fields with string values.
        where: Position of the first record.
    """

    def __init__(
        self, options: TextOptions, fields: Sequence[str], strings: Sequence[str], where: str
    ) -> None:
        self._options = options
        check_distinct(fields, where)
        field = options.field
        text_field = next(
            (name for name in ("text", *fields) if is_text(name) and name in fields), None
        )
        candidates = [name for name in strings if not is_known(name, names=OTHER_NAMES)]
        if field is not None:
            if field not in fields:
                raise _missing(field, fields, where, options)
            self.column = field
        elif text_field is not None:
            self.column = text_field
        elif len(candidates) == 1:
            self.column = candidates[0]
        else:
            raise InvalidInput(
                f"{where}: no field 'text', and {len(candidates)} others may contain the text; "
                f"fields: {', '.join(fields)}",
                f"set the field: {options.spelled(text_field='NAME')}",
            )
        self.titled = field is None and self.column == text_field and "_id" in fields

    def __call__(self, record: Mapping[str, Any], where: str) -> str:
        """The text of one record."""
        try:
            text = record[self.column]
        except KeyError:
            raise _missing(self.column, list(record), where, self._options) from None
        if not isinstance(text, str):
            raise InvalidInput(
                f"{where}: field {self.column!r} is {files.format_json(text)}, not a string",
                "correct or remove the record, or set another field: "
                + self._options.spelled(text_field="NAME"),
            )
        return titled(record.get("title"), text) if self.titled else text


def _missing(field: str, fields: Sequence[str], where: str, options: TextOptions) -> InvalidInput:
    suggestion = did_you_mean(field, fields)
    hint = f"set the field of the text: {options.spelled(text_field='NAME')}"
    return InvalidInput(
        f"{where}: no field {field!r}; fields: {', '.join(fields)}",
        suggestion if suggestion.startswith("did") else hint,
    )


def titled(title: Any, text: str) -> str:
    """A BEIR document as one text: title, space, text."""
    return f"{title} {text}".strip() if isinstance(title, str) else text


def pick_texts(
    records: Iterator[tuple[Mapping[str, Any], str]], source: Source
) -> Iterator[tuple[str, str]]:
    """The text of each record; the first record determines the field."""
    pick = None
    for record, where in records:
        if pick is None:
            strings = [key for key, value in record.items() if isinstance(value, str)]
            pick = Picker(source.options, list(record), strings, where)
            source.check_field(pick.column, where)
        yield pick(record, where), where
