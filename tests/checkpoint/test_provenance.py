"""Provenance, recipe and card of an output."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from emb_tool.checkpoint.layout import Layout
from emb_tool.checkpoint.own_files import PROVENANCE, RECIPE
from emb_tool.checkpoint.provenance import write_provenance
from emb_tool.report import Measure, Report
from emb_tool.reporting.model_card import write_model_card

JOB = {
    "verb": "distill",
    "teacher": "org/teacher",
    "texts": ("/home/someone/texts.jsonl",),
    "eval": ["sts:/home/someone/sts.tsv"],
    "output": Path("/home/someone/out"),
    "lr": 5e-4,
}


def test_provenance_and_recipe(tmp_path: Path) -> None:
    write_provenance(
        tmp_path,
        job=JOB,
        inputs={"org/teacher": {"model.safetensors": "53aa"}},
        runtime={"device": "cpu", "dtype": "float32", "reason": "no accelerator", "seed": 0},
        papers=["arXiv:2509.12539"],
        extra={"resumed_at": 12},
    )
    document = json.loads((tmp_path / PROVENANCE).read_text())
    assert {"emb_tool", "python", "torch", "transformers"} <= set(document["versions"])
    assert document["inputs"]["org/teacher"]["model.safetensors"] == "53aa"
    assert document["runtime"]["reason"] == "no accelerator"
    assert document["resumed_at"] == 12
    recipe = yaml.safe_load((tmp_path / RECIPE).read_text())
    assert recipe == document["job"]
    assert recipe["lr"] == 5e-4
    assert recipe["texts"] == ["/home/someone/texts.jsonl"]


def test_card_says_nothing_about_the_machine(tmp_path: Path) -> None:
    report = Report("distill")
    report.measures = [
        Measure("ndcg@10", 0.41234, of="retrieval:/home/someone/beir", note="0.40 to 0.42"),
        Measure("weights", 69_000_000, "B", model="/home/someone/out"),
        Measure("recall@100", None, of="retrieval:beir"),
    ]
    write_model_card(
        tmp_path,
        title="out",
        base_models=["org/teacher", "/home/someone/student"],
        report=report,
        job=JOB,
        front={"license": "apache-2.0"},
        layout=Layout(prompts={"query": "query: "}),
    )
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/teacher"
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "sentence-transformers"
    assert "/home" not in text
    assert "retrieval:beir | " in text
    assert "0.4123 (0.40 to 0.42)" in text
    assert "encode_query" in text
