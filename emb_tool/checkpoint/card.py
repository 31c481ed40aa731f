"""The model card: README.md with the hub's front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import emb_tool
from emb_tool.checkpoint.layout import Layout
from emb_tool.checkpoint.provenance import plain
from emb_tool.report import Measure, Report


def write_model_card(
    folder: Path,
    *,
    title: str,
    base_models: list[str],
    report: Report,
    job: dict[str, Any],
    license: str | None = None,
    layout: Layout | None = None,
    front: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md.

    Only hub ids go into the front matter's `base_model`; of a local path the last part is named,
    so that a card says nothing about the author's machine.

    Args:
        folder: The output.
        title: Heading.
        base_models: What it was made from, hub ids or paths.
        report: Its measures become the table.
        job: The resolved job.
        license: SPDX name as the hub writes it, if the base model states one.
        layout: Of the output; its prompts decide the usage lines.
        front: Further entries of the front matter; `tags` are added.
    """
    import yaml

    more = dict(front or {})
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "embtool"],
    }
    hub = [name for name in base_models if _is_hub_id(name)]
    if hub:
        front["base_model"] = hub if len(hub) > 1 else hub[0]
    if license:
        front["license"] = license
    front["tags"] += [tag for tag in more.pop("tags", ()) if tag not in front["tags"]]
    front |= more
    names = ", ".join(f"`{_public_name(name)}`" for name in base_models)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {title}",
        "",
        f"Made by `embtool {report.verb}` {emb_tool.__version__}"
        + (f" from {names}." if names else "."),
        "",
        *_measures(report.measures),
        *_usage(layout),
        "## How it was made",
        "",
        "`embtool run recipe.yaml` makes it again; `provenance.json` holds versions and the",
        "digests of the inputs.",
        "",
        "```yaml",
        yaml.safe_dump(_public(plain(job)), sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def read_front(folder: Path) -> dict[str, Any]:
    """The front matter of a model's card; {} where there is none that can be read."""
    import yaml

    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size < 10**6 else ""
        found = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _public_name(name: str) -> str:
    return name if _is_hub_id(name) else Path(name).name


def _public(value: Any) -> Any:
    """The job with local paths shortened to their last part."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and not re.search(r"\s", value):
        head, colon, tail = value.rpartition(":")  # sts:/data/file.tsv
        if tail.startswith(("/", "~", "../", "./")) and not head.startswith("http"):
            return head + colon + Path(tail).name
    return value


def _measures(measures: list[Measure]) -> list[str]:
    if not measures:
        return []
    lines = ["## Measured", "", "| on | model | measure | value |", "| --- | --- | --- | ---: |"]
    for m in measures:
        value = "-" if m.value is None else f"{m.value:,.4g}" if not m.unit else f"{m.value:,.6g}"
        unit = f" {m.unit}" if m.unit else ""
        note = f" ({m.note})" if m.note else ""
        lines.append(
            f"| {_public_task(m.of)} | {_public_name(m.model) if m.model else ''} | {m.name} |"
            f" {value}{unit}{note} |"
        )
    return [*lines, ""]


def _public_task(of: str) -> str:
    return str(_public(of))


def _usage(layout: Layout | None) -> list[str]:
    prompts = layout.prompts if layout else {}
    call = 'model.encode(["first text", "second text"])'
    lines = [
        "## Usage",
        "",
        "```python",
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
