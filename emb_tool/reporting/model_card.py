"""The model card: README.md with the hub's front matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.layout import Layout
from emb_tool.checkpoint.own_files import PAGE, PROVENANCE, RECIPE, REPORT
from emb_tool.checkpoint.provenance import to_json_types
from emb_tool.formatting import format_value, public_name, redact
from emb_tool.hub_names import parse_hub_name
from emb_tool.install import HUB, INSTALL, NEEDS_HUB, WHERE, upload
from emb_tool.report import Measure, Report, Table
from emb_tool.reporting.summary import Summary, cost
from emb_tool.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def write_model_card(
    folder: Path,
    *,
    title: str,
    base_models: list[str],
    report: Report,
    job: dict[str, Any],
    relation: str = "finetune",
    layout: Layout | None = None,
    front: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md.

    Only hub ids are listed in `base_model` of the front matter; local paths are reduced to their
    last component, so that the card does not reveal the author's file system.

    Args:
        folder: The output folder.
        title: Heading.
        base_models: Hub ids or paths of the models that it was created from.
        report: The report, whose measures are listed.
        job: The resolved job.
        relation: The hub's `base_model_relation`.
        layout: Layout of the output; its prompts determine the usage example.
        front: Further entries of the front matter; `tags` are appended.
    """
    import yaml
    from huggingface_hub import ModelCardData

    extra = dict(front or {})
    ids = [parse_hub_name(name) for name in base_models]
    hub = list(dict.fromkeys(parsed.repo for parsed in ids if parsed and "/" in parsed.repo))
    results = eval_results(report)
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*_TAGS, *extra.pop("tags", ())],
        base_model=hub if len(hub) > 1 else next(iter(hub), None),
        base_model_relation=relation,
        model_name=title if results else None,
        eval_results=results or None,
        **extra,
    )
    names = ", ".join(f"`{public_name(name)}`" for name in base_models)
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {title}",
        "",
        f"Made by `embtool {report.verb}` {__version__}" + (f" from {names}." if names else "."),
        "",
        *_cost(report),
        *_measures(report.measures),
        *_usage(layout, bool(report.facts.get("needs_hub"))),
        "## Reproduction",
        "",
        f"`embtool run {RECIPE}` reproduces it. [report.json]({REPORT}) has every",
        f"figure, [report.html]({PAGE}) shows them, [provenance.json]({PROVENANCE})",
        "records versions and the digests of the inputs. To publish it on the Hugging Face Hub:",
        f"`{upload(title)}`.",
        "",
        "```yaml",
        yaml.safe_dump(redact(to_json_types(job)), sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def read_front(folder: Path) -> dict[str, Any]:
    """The front matter of a model card; {} if it is missing or unreadable."""
    import yaml
    from huggingface_hub import metadata_load

    path = folder / "README.md"
    try:
        return (metadata_load(path) or {}) if path.stat().st_size < 10**6 else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def eval_results(report: Report) -> list[EvalResult]:
    """The figures of the output for the hub's `model-index`, with sentence-transformers' names.

    Args:
        report: The report; measures of other models and counts are omitted.
    """
    from huggingface_hub import EvalResult

    results = []
    for m in report.measures:
        is_output = m.of and m.model == report.output and not m.against
        is_score = isinstance(m.value, float) and m.unit in ("", "%") and isfinite(m.value)
        if not (is_output and is_score) or m.name.endswith((" low", " high", " floor")):
            continue
        task, _, data = m.of.partition(":")
        kind, name = _TASKS.get(task, ("feature-extraction", "Embedding quality"))
        data = str(redact(data or m.of)).partition(",")[0]
        metric = _METRICS.get(m.name, m.name)
        results.append(
            EvalResult(
                task_type=kind,
                task_name=name,
                dataset_type=_slug(data),
                dataset_name=data,
                metric_type=_slug(metric),
                metric_name=_NAMES.get(m.name, metric.replace("_", " ")),
                metric_value=m.value,
            )
        )
    return results


_TAGS = ("sentence-transformers", "feature-extraction", "sentence-similarity", "embtool")
_TASKS = {
    "sts": ("semantic-similarity", "Semantic Similarity"),
    "retrieval": ("information-retrieval", "Information Retrieval"),
    "long-retrieval": ("information-retrieval", "Information Retrieval"),
    "passkey": ("information-retrieval", "Information Retrieval"),
    "needle": ("information-retrieval", "Information Retrieval"),
}
_METRICS = {
    "spearman": "spearman_cosine", "ndcg@10": "cosine_ndcg@10", "recall@100": "cosine_recall@100",
    "map@100": "cosine_map@100", "mrr@10": "cosine_mrr@10",
}  # fmt: skip
_NAMES = {"retention": "retention of the base model's figure, %"}


def _slug(text: str) -> str:
    return re.sub(r"[^\w@.-]+", "-", text).strip("-") or "data"


def _markdown(table: Table) -> list[str]:
    """A Markdown table, with escaped bars in cells."""

    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    separator = ["---", *("---:" for _ in table.columns[1:])]
    return [row(table.columns), row(separator), *map(row, table.rows), ""] if table.rows else []


def _cost(report: Report) -> list[str]:
    """The steps, and the size and quality of input and output."""
    summary = Summary.of(report)
    lines = ["## Size and quality", ""]
    steps = report.facts.get("steps") or []
    lines += [
        *(f"{number}. {redact(step)}" for number, step in enumerate(steps, 1)),
        *([""] * bool(steps)),
    ]
    if report.gate:
        lines += [f"Below the gate that was set: {redact(report.gate)}", ""]
    if loss := report.facts.get("loss"):
        lines += [f"**{loss}.**", ""]
    lines += _markdown(cost(report, summary))
    parts = report.facts.get("parts") or {}
    old, new = parts.get("before") or {}, parts.get("after") or {}
    rows = [
        [
            part,
            *(
                format_value(side[part]["bytes"], "B") if part in side else "-"
                for side in (old, new)
            ),
        ]
        for part in dict.fromkeys([*old, *new])
    ]
    return [*lines, *_markdown(Table("", ["part", "before", "after"], rows))]


def _measures(measures: list[Measure]) -> list[str]:
    rows = [
        [
            str(redact(m.of)),
            public_name(m.model) if m.model else "",
            m.name + (f" of {public_name(m.against)}" if m.against else ""),
            format_value(m.value, m.unit) + (f" ({m.note})" if m.note else ""),
        ]
        for m in measures
    ]
    table = _markdown(Table("", ["on", "model", "measure", "value"], rows))
    return ["## Measured", "", *table] if rows else []


def _usage(layout: Layout | None, hub: bool) -> list[str]:
    prompts = layout.prompts if layout else {}
    call = 'model.encode(["first text", "second text"])'
    lines = ["## Usage", ""]
    if hub:
        lines += [f"{NEEDS_HUB} {WHERE}.", "", "```bash", INSTALL, "```", ""]
    lines += [
        "```python",
        *[HUB] * hub,
        "from sentence_transformers import SentenceTransformer",
        "",
    ]
    lines += ['model = SentenceTransformer("path/or/hub-id")']
    if prompts.get("query") or prompts.get("document"):
        lines += [
            'queries = model.encode_query(["a question"])',
            'documents = model.encode_document(["first text", "second text"])',
            "scores = model.similarity(queries, documents)",
        ]
    else:
        lines += [f"vectors = {call}"]
    return [*lines, "```", ""]
