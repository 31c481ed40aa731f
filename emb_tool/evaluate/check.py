"""The check of a run's own output: the files as written, opened by a process that knows no more.

Reads a request from standard input and answers on standard output, both JSON. Run by the engine,
which may start it before the files are there and tell it in a line of its own what to do ahead.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from emb_tool.errors import EmbToolError, InvalidInput, RunFailed
from emb_tool.evaluate.root_comparison import neighbor_overlap, resolve_root, warn_on_failure
from emb_tool.progress import Progress
from emb_tool.progress.relay import ProgressSender
from emb_tool.report import Measure, Report, Table


def check(request: dict[str, Any], progress: Progress) -> Report:
    """Open the written checkpoint and measure it.

    Args:
        request: `folder`; `name` for the report; `heldout`, a jsonl file of texts with their
            prompts and the file of the vectors that they should have; `against`, whose these
            are; `tasks` and `reference` as of `embtool eval`; `device`, `dtype`, `min_retention`,
            which gates the neighbours' overlap where there are no tasks; `turned`, whether the
            vectors are of another basis than those; `root`, `path` and `name` of what the input
            goes back to, which it is held against as well.
        progress: Shows how far it is.
    """
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.evaluate.agreement import similarity_metrics
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.evaluate.run import evaluate
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime

    if "tables" in request:
        return check_tables(request, progress)
    if "extended" in request:
        from emb_tool.evaluate.context_check import check_extended

        return check_extended(request, rename, progress)
    if "inputs" in request or "bare" in request:
        return check_merged(request, progress)
    runtime = Runtime.start(request["device"], request["dtype"])
    name, folder = request["name"], request["folder"]
    checkpoint = Checkpoint.open(folder)
    report, root = Report("check"), resolve_root(request)
    if request["tasks"]:
        job = EvalJob(
            models=(folder,),
            task=tuple(request["tasks"]),
            reference=request["reference"],
            min_retention=request["min_retention"],
            device=request["device"],
            dtype=request["dtype"],
        )
        report = evaluate(job, runtime, progress=progress, root=root)
        rename(report, folder, name)
    with progress.task("opening it"):
        encoder = Encoder.open(checkpoint, runtime)
    if not request["tasks"]:
        report.measures += [
            Measure("weights", checkpoint.weight_bytes(), "B", model=name),
            Measure("dimensions", encoder.dim, "dimensions", model=name),
        ]
    held = [*encoder.model.parameters(), *encoder.model.buffers()]
    resident = sum(tensor.numel() * tensor.element_size() for tensor in held)
    report.measures.append(Measure("resident", resident, "B", model=name))
    texts_file, vectors_file = request["heldout"]
    lines = [json.loads(x) for x in Path(texts_file).read_text(encoding="utf-8").splitlines()]
    goal = np.load(vectors_file)
    if len(lines) >= 3:
        vectors = np.empty((len(lines), encoder.dim), np.float32)
        with progress.task("held-out texts", len(lines), "texts") as advance:
            for prompt in {line["prompt"] for line in lines}:
                mine = [i for i, line in enumerate(lines) if line["prompt"] == prompt]
                texts = [lines[i]["text"] for i in mine]
                vectors[mine] = encoder.encode(texts, prompt, progress=advance)
        if not np.isfinite(vectors).all():
            raise RunFailed("its vectors are not finite", None)
        figures = similarity_metrics(vectors, goal)
        if request.get("turned"):  # cosines to vectors of another basis say nothing
            figures = {"neighbour overlap": figures["neighbour overlap"]}
        report.measures += [
            Measure(key, value, of="held-out texts", model=name) for key, value in figures.items()
        ]
        table = Table(f"held-out texts, against {request['against']}", ["", Path(name).name])
        table.rows = [[key, f"{value:.4f}"] for key, value in figures.items()]
        report.tables.append(table)
        if root is not None:
            with warn_on_failure(report, root):
                report.measures.append(
                    neighbor_overlap(lines, vectors, encoder, root, name, progress)
                )
        least, kept = request["min_retention"], figures["neighbour overlap"]
        if least is not None and not request["tasks"] and kept < least:
            report.gate = (
                f"{name} keeps {kept:.2%} of the ten nearest neighbours, less than "
                f"--min-retention {100 * least:g} %"
            )
    return report


def check_tables(request: dict[str, Any], progress: Progress) -> Report:
    """Read packed tables back and hold them against the file that they were in.

    Args:
        request: `folder`, `name`, and `tables`, the file.
        progress: Shows how far it is.
    """
    from emb_tool.checkpoint.quantization import packed_modules
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.ops.rows import fit_context, relative_error
    from emb_tool.packed.plain import read_module

    name = request["name"]
    written = Checkpoint.open(request["folder"], need_tokenizer=False)
    source = Checkpoint.open(request["tables"])
    report = Report("check", measures=[Measure("weights", written.weight_bytes(), "B", model=name)])
    table = Table("tables, as read back", ["", "rows", "columns", "MB", "relative error"])
    modules = packed_modules(written.config)
    made = {module: read_module(written, module, spec) for module, spec in modules.items()}
    for module, found in made.items():
        found.link(made)
        tensor = next(n for n in (module, f"{module}.weight") if n in source.tensors)
        rows, columns = source.tensors[tensor].shape
        original = source.tensor(tensor)
        shown = "-"
        if original.is_floating_point():
            with fit_context(None, progress):
                error, _ = relative_error(original, found.rows, None)
            shown = f"{error:.4f}"
            report.measures.append(Measure("relative error", error, of=tensor, model=name))
        size = f"{found.nbytes / 1e6:,.2f}"
        table.rows.append([tensor, f"{rows:,}", f"{columns:,}", size, shown])
    report.tables.append(table)
    return report


def check_merged(request: dict[str, Any], progress: Progress) -> Report:
    """Open a merged model as a user would and hold it against what it was made of.

    Args:
        request: `folder`, `name`, `device`, `dtype`; `inputs`, name to path of what the tasks
            are run on; `listed`, every input's name to its path, or None where it cannot be run by
            itself; `texts`, a few; `tasks`. Or `bare`: there are only tensors to be read back.
        progress: Shows how far it is.
    """
    from emb_tool.checkpoint.reader import Checkpoint, check_finite
    from emb_tool.evaluate.agreement import similarity_metrics
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.evaluate.run import evaluate
    from emb_tool.formatting import short_names
    from emb_tool.runtime.device import Runtime

    name, folder = request["name"], request["folder"]
    if "bare" in request:
        files = [Checkpoint.open(path) for path in sorted(Path(folder).glob("*.safetensors"))]
        for file in files:
            check_finite(file)
        size = sum(file.weight_bytes() for file in files)
        return Report("check", measures=[Measure("weights", size, "B")])
    runtime = Runtime.start(request["device"], request["dtype"])
    report = Report("check")
    inputs: dict[str, str] = request["inputs"]
    if request["tasks"]:
        job = EvalJob(
            models=(folder, *inputs.values()), task=tuple(request["tasks"]),
            device=request["device"], dtype=request["dtype"],
        )  # fmt: skip
        report = evaluate(job, runtime, progress=progress, root=resolve_root(request))
        rename(report, folder, name)
    written = Checkpoint.open(folder)
    if not request["tasks"]:
        report.measures.append(Measure("weights", written.weight_bytes(), "B", model=name))
    mine = vectors_of(folder, **_like(request))
    if not np.isfinite(mine).all():
        raise RunFailed("its vectors are not finite", None)
    listed: dict[str, str | None] = request["listed"]
    names = short_names(listed)
    table = Table(f"{len(mine)} sentences, against the inputs", ["", "cosine", "lowest"])
    for other, path in listed.items():
        if path is None:
            table.rows.append([f"{names[other]} (not run)", "-", "-"])
            continue
        with progress.task(f"comparing with {names[other]}"):
            figures = similarity_metrics(mine, vectors_of(path, **_like(request)))
        figures = {key: figures[key] for key in ("cosine mean", "cosine p1", "cosine floor")}
        report.measures += [Measure(k, v, of="sentences", model=other) for k, v in figures.items()]
        shown = [figures["cosine mean"], figures["cosine p1"]]
        table.rows.append([names[other], *(f"{value:.4f}" for value in shown)])
    report.tables.append(table)
    return report


@cache
def vectors_of(model: str, texts: tuple[str, ...], device: str, dtype: str) -> np.ndarray:
    """A model's vectors of some texts, (texts, dim) float32.

    Args:
        model: Its folder.
        texts: The texts.
        device: Where it runs.
        dtype: As of `Runtime.start`.
    """
    from emb_tool.model.encoder import Encoder
    from emb_tool.ops.products import use_onednn_linear
    from emb_tool.runtime.device import Runtime

    encoder = Encoder.open(model, Runtime.start(device, dtype))
    use_onednn_linear(encoder.model)
    return encoder.encode(list(texts))


def fault_of_inputs(request: dict[str, Any]) -> InvalidInput | None:
    """Why a model that the files were made of does not run either: it is at fault, not the files.

    Args:
        request: As of `check_merged` or `check_extended`; others run their input beforehand.
    """
    inputs = [*request.get("inputs", {}).values()]
    texts = request.get("texts") or []
    if "extended" in request:
        lines = Path(request["sample"]).read_text(encoding="utf-8").splitlines()
        inputs, texts = [request["extended"]], [json.loads(line)["text"] for line in lines]
    for path in inputs:
        try:
            vectors_of(path, **_like({**request, "texts": [*texts, " ".join(texts)]}))
        except InvalidInput as error:
            return error
    return None


def _like(request: dict[str, Any]) -> dict[str, Any]:
    return {"texts": tuple(request["texts"]), **{key: request[key] for key in ("device", "dtype")}}


def rename(report: Report, folder: str, name: str) -> None:
    """Let the report speak of the output by its final name."""

    def right(text: str) -> str:
        return text.replace(folder, name).replace(Path(folder).name, Path(name).name)

    def renamed(fact: Any) -> Any:
        if isinstance(fact, dict):
            return {right(key): renamed(value) for key, value in fact.items()}
        return right(fact) if isinstance(fact, str) else fact

    for measure in report.measures:
        measure.model = right(measure.model)
    for table in report.tables:
        table.rows = [[right(cell) for cell in row] for row in table.rows]
    report.facts = renamed(report.facts)
    report.gate = right(report.gate) if report.gate else None
    report.warnings = [right(sentence) for sentence in report.warnings]


def main() -> None:
    """Answer the last line; one before it names models whose vectors will be asked for."""
    gc.set_threshold(1 << 20)  # modules and vocabularies are many objects, and no garbage
    from emb_tool.model import encoder  # noqa: F401  (takes seconds, while files may still be written)

    request: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "ahead" in request:
            for path in request["ahead"]:
                with suppress(EmbToolError):  # told when they are asked for
                    vectors_of(path, **_like(request))
    if "folder" not in request:  # the work has ended without files
        return
    answer: dict[str, Any]
    try:
        report = check(request, ProgressSender(partial(print, flush=True)))
        answer = report.to_file()
    except Exception as error:
        if fault := fault_of_inputs(request):
            answer = {"refused": fault.message, "hint": fault.hint}
        elif isinstance(error, EmbToolError):
            answer = {"error": error.message}
        else:
            raise
    print(json.dumps({"answer": answer}))


if __name__ == "__main__":
    main()
