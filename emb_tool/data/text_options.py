"""Settings of text files: the text field, the delimiter, and whether there is a header.

They are shared by all jobs and tasks that read texts.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from emb_tool.fields import DATA, FlagInfo

DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|"}
"""Delimiter characters of tables, by the names that `--delimiter` accepts."""


def _by_name(value: Any) -> Any:
    """The name of a delimiter given by name or character."""
    names = {char: name for name, char in DELIMITERS.items()} | {"\\t": "tab"}
    return names.get(value, value) if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    """A column number as text; recipes may contain an integer, `text_field: 2`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


TextField = Annotated[
    str | None,
    BeforeValidator(_as_text),
    Field(
        description="field of the text, or its column number from 1 [text, or the only candidate]"
    ),
    FlagInfo(DATA, "FIELD"),
]

Delimiter = Annotated[
    Literal["tab", "comma", "semicolon", "bar"] | None,
    BeforeValidator(_by_name),
    Field(description="delimiter of csv and tsv files [detected from the first line]"),
    FlagInfo(DATA),
]

Header = Annotated[
    bool | None,
    Field(description="whether the first line of csv and tsv files is a header [detected]"),
    FlagInfo(DATA),
]


class TextOptions(NamedTuple):
    """How texts are read from the files of some sources.

    Args:
        field: Name of the field or column of the text, or a column number from 1.
        delimiter: Name of the delimiter.
        header: Whether the first line of a table is a header.
        task: Specification of the task with these settings; "" if they are flags.
    """

    field: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    task: str = ""

    @classmethod
    def of(cls, settings: Any, field: str | None = None) -> TextOptions:
        """The options of a job or a task.

        Args:
            settings: Has `delimiter`, `header` and optionally `text_field`.
            field: Overrides its `text_field`.
        """
        field = field or getattr(settings, "text_field", None)
        return cls(field, settings.delimiter, settings.header, getattr(settings, "spec", ""))

    @property
    def is_given(self) -> bool:
        """Whether any option is set."""
        return (self.field, self.delimiter, self.header) != (None, None, None)

    def spelled(self, **settings: object) -> str:
        """Settings in command line syntax: as flags, or as part of the task specification.

        Args:
            **settings: Values of `text_field`, `delimiter` or `header`.
        """
        words = []
        if self.task:
            words = [re.sub(rf",({'|'.join(settings)})=[^,]*", "", self.task)]
        for key, value in settings.items():
            flag = key.replace("_", "-")
            if self.task:
                words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
            elif isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words.append(f"--{flag} {value}")
        return ("," if self.task else " ").join(words)


DEFAULT = TextOptions()
"""No option is set."""
