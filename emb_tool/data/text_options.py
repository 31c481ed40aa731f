"""What the user says of files of texts: the field, what divides cells, whether there is a header.

The settings are the same for every job and every task that reads texts.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from emb_tool.fields import DATA, FlagInfo

DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|"}
"""Characters that divide the cells of a table, by the names that `--delimiter` takes."""


def _by_name(value: Any) -> Any:
    """A delimiter by its name, whether the name or the character was typed."""
    names = {char: name for name, char in DELIMITERS.items()} | {"\\t": "tab"}
    return names.get(value, value) if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    """A column's number as a recipe has it, `text_field: 2`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


TextField = Annotated[
    str | None,
    BeforeValidator(_as_text),
    Field(description="field of the text, or its column's number from 1 [text, or the only one]"),
    FlagInfo(DATA, "FIELD"),
]

Delimiter = Annotated[
    Literal["tab", "comma", "semicolon", "bar"] | None,
    BeforeValidator(_by_name),
    Field(description="what divides the cells of csv and tsv files [seen in the first line]"),
    FlagInfo(DATA),
]

Header = Annotated[
    bool | None,
    Field(description="whether the first line of csv and tsv files names the columns [seen]"),
    FlagInfo(DATA),
]


class TextOptions(NamedTuple):
    """How the texts of some sources are found in their files.

    Args:
        field: Name of the field or column that holds the text, or a column's number from 1.
        delimiter: Name of what divides cells.
        header: Whether the first line of a table names its columns.
        task: The task that these are settings of, as it was typed; "" where they are flags.
    """

    field: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    task: str = ""

    @classmethod
    def of(cls, settings: Any, field: str | None = None) -> TextOptions:
        """Those of a job or of a task.

        Args:
            settings: Has `delimiter`, `header` and, unless it reads no texts, `text_field`.
            field: In place of its `text_field`.
        """
        field = field or getattr(settings, "text_field", None)
        return cls(field, settings.delimiter, settings.header, getattr(settings, "spec", ""))

    @property
    def is_given(self) -> bool:
        """Whether the user says anything."""
        return (self.field, self.delimiter, self.header) != (None, None, None)

    def spelled(self, **settings: object) -> str:
        """Settings as the user would type them: as flags, or behind the task.

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
"""Nothing is said."""
