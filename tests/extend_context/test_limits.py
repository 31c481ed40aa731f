"""An input whose own limit is below its table of positions: which vectors change, and which not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emb_tool.checkpoint.own_files import REPORT
from tests.conftest import CliResult, make_sentences
from tests.extend_context.models import LENGTH, make
from tests.runs import check_here, write_texts

LIMIT = 12
"""Tokens that the model reads, of the `LENGTH` rows of its table."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make("bert", tmp_path_factory.mktemp("limits") / "model")
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_seq_length": LIMIT}))
    return folder


@pytest.fixture(scope="module")
def lengths() -> dict[str, int]:
    """Texts and their tokens, with [CLS] and [SEP]; words are tokens."""
    words = " ".join(make_sentences(60)).split()
    counts = [*range(3, LIMIT + 1)] * 3 + [LIMIT + 1, LIMIT + 2, LENGTH - 1, LENGTH, LENGTH + 1, 60]
    return {" ".join(words[i : i + n - 2]): n for i, n in enumerate(counts)}


Extend = Callable[..., tuple[CliResult, dict[str, Any]]]


@pytest.fixture
def extend(
    run_cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Extend:
    check_here(monkeypatch)

    def run(model: Path, *argv: object) -> tuple[CliResult, dict[str, Any]]:
        told = run_cli("extend-context", model, "--to", 64, "-o", tmp_path / "out", *argv)
        report = tmp_path / "out" / REPORT
        return told, json.loads(report.read_text()) if told.code == 0 else {}

    return run


def value(report: dict[str, Any], name: str, of: str) -> Any:
    (measure,) = (m for m in report["measures"] if (m["name"], m.get("of")) == (name, of))
    return measure["value"]


def rows(report: dict[str, Any], title: str) -> dict[str, list[str]]:
    (table,) = (table for table in report["tables"] if table["title"] == title)
    return {first: rest for first, *rest in table["rows"]}


def test_vectors_are_kept_up_to_the_models_own_limit_and_the_rest_is_counted(
    extend: Extend, model: Path, lengths: dict[str, int], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    texts = write_texts(tmp_path / "texts.jsonl", list(lengths))
    told, report = extend(model, "--texts", texts)
    assert told.code == 0, told.err
    old, new = SentenceTransformer(str(model)), SentenceTransformer(str(tmp_path / "out"))
    same = {
        text for text in lengths if np.array_equal(old.encode([text]), new.encode([text]))
    }  # fmt: skip
    assert same == {text for text, tokens in lengths.items() if tokens <= LIMIT}
    longer = len(lengths) - len(same)
    assert longer == 6
    assert value(report, "texts to re-encode", "texts") == longer
    assert value(report, "bitwise equal", "short inputs") == 1
    assert value(report, "least cosine", "longer inputs") < 0.99
    extended, written = rows(report, "extended"), rows(report, "as written")
    assert extended["tokens read"] == [str(LIMIT), "64"]
    assert written[f"inputs up to {LIMIT} tokens, against the input"] == ["bit-identical"]
    assert written[f"texts of texts.jsonl of more than {LIMIT} tokens: re-encode them"] == [
        f"6 of {len(lengths)} ({100 * 6 / len(lengths):.1f} %)"
    ]
    between = [tokens for tokens in lengths.values() if LIMIT < tokens <= LENGTH]
    assert len(between) == 4
    what = f"texts of {LIMIT + 1} to {LENGTH} tokens"
    assert value(report, what, "texts") == 4
    assert written[f"of these, {what}: truncated before"] == [
        f"4 of {len(lengths)} ({100 * 4 / len(lengths):.1f} %)"
    ]
    (warning,) = (text for text in report["warnings"] if "re-encode" in text)
    assert warning.startswith(
        f"inputs of {LIMIT + 1} to {LENGTH} tokens were truncated to {LIMIT}, the input's own "
        "limit, and no longer are (cosine "
    )
    assert warning.endswith(f"): re-encode every text of more than {LIMIT} tokens")


def test_where_short_inputs_change_all_texts_are_to_be_encoded_again(
    extend: Extend, model: Path, lengths: dict[str, int], tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", list(lengths))
    told, report = extend(model, "-m", "gp", "--texts", texts, "--limit", 10)
    assert told.code == 0, told.err
    assert value(report, "bitwise equal", "short inputs") == 0
    assert value(report, "texts", "texts") == 10
    assert value(report, "texts to re-encode", "texts") == 10
    assert any("different vectors than before" in text for text in report["warnings"])


def test_a_table_that_is_read_whole_is_not_warned_of(extend: Extend, tmp_path: Path) -> None:
    told, report = extend(make("bert", tmp_path / "model"))
    assert told.code == 0, told.err
    assert rows(report, "extended")["tokens read"] == [str(LENGTH), "64"]
    assert report["warnings"] == []


def test_a_target_within_the_table_is_refused_with_both_lengths(
    extend: Extend, model: Path
) -> None:
    told, _ = extend(model, "--to", LENGTH)
    assert told.code == 2
    assert f"model was trained at {LENGTH} tokens, and reads {LIMIT}" in told.err
    assert "set max_seq_length in sentence_bert_config.json" in told.err
    told, _ = extend(model, "--texts", "-")
    assert told.code == 2
    assert "--texts -: " in told.err
