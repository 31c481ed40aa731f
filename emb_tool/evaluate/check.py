"""The process that checks the output of a run: it opens the files as written.

It reads lines of JSON from standard input and answers on standard output.
`runtime/check_process.py` starts it, possibly before the files exist, with a `Warmup` on its own
line.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from functools import partial
from typing import Annotated

from pydantic import Field, TypeAdapter

from emb_tool.errors import EmbToolError, InvalidInput
from emb_tool.evaluate.extended_check import ExtendedCheck
from emb_tool.evaluate.heldout_check import HeldoutCheck
from emb_tool.evaluate.merged_check import MergedCheck
from emb_tool.evaluate.tensors_check import TablesCheck, TensorsCheck
from emb_tool.evaluate.written_model import vectors_of
from emb_tool.progress.relay import ProgressSender
from emb_tool.runtime.check_process import Check, Warmup

AnyCheck = HeldoutCheck | TablesCheck | TensorsCheck | MergedCheck | ExtendedCheck
"""Every kind of check, one class each."""

REQUEST: TypeAdapter[Warmup | AnyCheck] = TypeAdapter(
    Annotated[Warmup | AnyCheck, Field(discriminator="kind")]
)
"""Parses a line of standard input."""


def answer(check: Check) -> dict[str, object]:
    """The report or the error, in the format that `check_process.ask` reads."""
    try:
        report = check.run(ProgressSender(partial(print, flush=True)))
    except Exception as error:
        if input_error := failure_of_inputs(check):
            return {"invalid_input": input_error.message, "hint": input_error.hint}
        if isinstance(error, EmbToolError):
            return {"failed": error.message}
        raise
    return {"report": report.to_file()}


def failure_of_inputs(check: Check) -> InvalidInput | None:
    """The error of an input model that fails too, so that the input is invalid, not the output."""
    models, texts = check.untested_inputs()
    sample, target = (*texts, " ".join(texts)), check.target
    for model in models:
        try:
            vectors_of(model, sample, target.device, target.dtype)
        except InvalidInput as error:
            return error
    return None


def main() -> None:
    """Run the check on the last line; a `Warmup` line before it names models to encode with."""
    gc.set_threshold(1 << 20)  # modules and vocabularies are many long-lived objects
    from emb_tool.model import encoder  # noqa: F401  (the import takes seconds and overlaps with writing)

    for line in sys.stdin:
        request = REQUEST.validate_json(line)
        if isinstance(request, Warmup):
            for model in request.models:
                with suppress(EmbToolError):  # raised again when the check uses the model
                    vectors_of(model, request.texts, request.device, request.dtype)
        else:
            print(json.dumps(answer(request)))


if __name__ == "__main__":
    main()
