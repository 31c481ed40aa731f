"""The process that checks the output of a run: files as written, opened by a fresh process.

Reads lines of JSON from standard input and answers on standard output. `runtime/check_process.py`
starts it, perhaps before the files are there, with a `Warmup` on a line of its own.
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
"""Every kind of check: a class each, with its fields and its work."""

REQUEST: TypeAdapter[Warmup | AnyCheck] = TypeAdapter(
    Annotated[Warmup | AnyCheck, Field(discriminator="kind")]
)
"""What a line of standard input is."""


def answer(check: Check) -> dict[str, object]:
    """The report, or what is at fault, as `check_process.ask` reads it."""
    try:
        report = check.run(ProgressSender(partial(print, flush=True)))
    except Exception as error:
        if fault := failure_of_inputs(check):
            return {"invalid_input": fault.message, "hint": fault.hint}
        if isinstance(error, EmbToolError):
            return {"failed": error.message}
        raise
    return {"report": report.to_file()}


def failure_of_inputs(check: Check) -> InvalidInput | None:
    """Why a model that the files were made of fails too: it is at fault, not the files."""
    models, texts = check.untested_inputs()
    sample, target = (*texts, " ".join(texts)), check.target
    for model in models:
        try:
            vectors_of(model, sample, target.device, target.dtype)
        except InvalidInput as error:
            return error
    return None


def main() -> None:
    """Answer the last line; one before it names models whose vectors will be asked for."""
    gc.set_threshold(1 << 20)  # modules and vocabularies are many objects, and no garbage
    from emb_tool.model import encoder  # noqa: F401  (takes seconds, while files may still be written)

    for line in sys.stdin:
        request = REQUEST.validate_json(line)
        if isinstance(request, Warmup):
            for model in request.models:
                with suppress(EmbToolError):  # told when they are asked for
                    vectors_of(model, request.texts, request.device, request.dtype)
        else:
            print(json.dumps(answer(request)))


if __name__ == "__main__":
    main()
