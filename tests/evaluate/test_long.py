"""Tasks on long inputs: what is hidden, and the baselines that stand beside."""

from __future__ import annotations

from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch

from emb_tool.data import passkey
from emb_tool.evaluate.length_baselines import WindowedEncoder, limit_length
from emb_tool.evaluate.model_pair import ModelPair
from emb_tool.evaluate.task import parse_task
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from emb_tool.windows import cut
from tests.conftest import make_sentences
from tests.runs import write_texts

RUNTIME = Runtime.start("cpu")


def test_documents_are_of_their_length_and_hold_their_needle_at_its_depth() -> None:
    needles = passkey.make_passkeys(50, 0)
    hidden = passkey.hide_needles(needles.sentences, passkey.FILLER, 512, 0)
    for needle, text, end in zip(needles.sentences, hidden.documents, hidden.ends, strict=True):
        assert text.count(needle) == 1
        assert text[:end].endswith(needle)
        assert 512 * 0.75 - 5 < len(text.split()) <= 512 * 0.75
    assert np.histogram(hidden.depths, 5, (0, 1))[0].tolist() == pytest.approx([10] * 5, abs=2)
    assert hidden == passkey.hide_needles(needles.sentences, passkey.FILLER, 512, 0)
    assert hidden != passkey.hide_needles(needles.sentences, passkey.FILLER, 512, 1)
    assert len({*passkey.make_facts(200, 0).queries}) == 200


def test_windows_hold_each_token_once_and_are_of_one_length() -> None:
    def windows(count: int) -> list[list[int]]:
        ids = np.array([-1, -2, *range(count), -3])
        return [piece.tolist() for piece in cut(ids, 2, 1, 7)]

    assert windows(0) == [[-1, -2, -3]]
    assert windows(3) == [[-1, -2, 0, 1, 2, -3]]
    assert windows(8) == [[-1, -2, *part, -3] for part in ([0, 1, 2, 3], [4, 5, 6, 7])]
    assert windows(9) == [[-1, -2, *part, -3] for part in ([0, 1, 2], [3, 4, 5], [6, 7, 8])]


def test_chunk_and_mean_is_the_mean_of_windows_without_their_norms(tiny_bert: Path) -> None:
    encoder = Encoder.open(tiny_bert, RUNTIME)
    text = " ".join(make_sentences(12))
    made = WindowedEncoder(encoder, 20).encode([text, "a cat"], "query: ")
    lead, trail = encoder.frame("query: ")
    ids = limit_length(encoder, 10**6).tokenize([text], "query: ")[0][len(lead) : -len(trail)]
    model = encoder.model
    total = torch.zeros(32, dtype=torch.float64)
    room = 20 - len(lead) - len(trail)
    pieces = np.array_split(ids, -(-len(ids) // room))
    assert len(pieces) > 3
    for piece in pieces:
        window = np.concatenate([lead, piece, trail])
        features = encoder.collate([window])
        with torch.inference_mode():
            total += model[1](model[0](features))["sentence_embedding"][0].double()
    assert np.allclose(made[0], total / total.norm(), atol=1e-6)
    assert np.allclose(made[1], encoder.encode(["a cat"], "query: ")[0], atol=1e-6)


def test_a_passkey_has_its_baselines_and_its_floor(tiny_bert: Path) -> None:
    task = parse_task("passkey:lengths=24,48,512,queries=8,window=16")
    assert task.check() == []
    pair = ModelPair.of(limit_length(Encoder.open(tiny_bert, RUNTIME), 48), "tiny")
    rows = {m.name: m for m in task.run(pair)}
    assert "accuracy@512" not in rows  # the model reads 48
    assert {"accuracy@48", "accuracy@48 truncation", "accuracy@48 chunk-and-mean"} <= rows.keys()
    assert "accuracy@512 untreated" not in rows
    assert rows["accuracy@24 floor"].value == pytest.approx(1 / 8)  # the key stands behind 16
    table = task.table({"tiny": rows})  # type: ignore[attr-defined]
    shown = [row[0] for row in table.rows]
    assert shown == ["tiny", "  truncation", "  chunk-and-mean", "  by chance, truncated"]
    longer = dict(rows)
    better = {**rows["accuracy@48 chunk-and-mean"].__dict__, "value": 2.0}
    rows["accuracy@48 chunk-and-mean"] = type(rows["accuracy@48"])(**better)
    said = task.verdicts({"long": longer, "tiny": rows}, "tiny")  # type: ignore[attr-defined]
    assert any("in accuracy@48, below chunk-and-mean" in sentence for sentence in said)


def test_a_reference_that_is_short_brings_its_baselines_alone(
    tiny_bert: Path, tmp_path: Path
) -> None:
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.evaluate.run import evaluate
    from tests.extend_context.models import make

    long = make("nomic_bert", tmp_path / "long", max_position_embeddings=512, hidden_size=32)
    (long / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    task = "passkey:lengths=96,queries=6,window=24"
    job = EvalJob(models=(str(long),), reference=str(tiny_bert), task=(task,))
    report = evaluate(job, RUNTIME)
    (table,) = [t for t in report.tables if "accuracy@1" in t.title]
    assert [row[0] for row in table.rows] == [
        "long", "tiny-bert (ref.)", "  truncation", "  chunk-and-mean", "  by chance, truncated",
    ]  # fmt: skip
    assert table.rows[1][1] == ""
    assert float(table.rows[2][1]) >= 0


def test_ties_are_shared(tiny_bert: Path) -> None:
    task = parse_task("passkey:lengths=512,queries=8,window=16")
    encoder = Encoder.open(tiny_bert, RUNTIME)
    pair = ModelPair.of(encoder, "tiny")
    same = np.tile(encoder.encode(["same"]), (8, 1))
    hidden = task._hidden(512)  # type: ignore[attr-defined]
    pair.document.remember(hidden.documents, "document", same)
    hits, ranks = task._find(pair, 512)  # type: ignore[attr-defined]
    assert hits.tolist() == [1 / 8] * 8
    assert ranks.tolist() == [4.5] * 8


def test_perplexity_is_that_of_transformers_loss(tmp_path: Path, sentences: list[str]) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from tests.conftest import decoder_tokenizer

    tokenizer = decoder_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64, initializer_range=0.5,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path / "model")
    texts = write_texts(tmp_path / "t.jsonl", sentences[:30])
    task = parse_task(f"perplexity:{texts},lengths=32,128,tokens=128,window=64")
    pair = ModelPair.of(Encoder.open(tmp_path / "model", RUNTIME), "tiny")
    rows = {m.name: m.value for m in task.run(pair)}
    ids = tokenizer("\n".join(sentences[:30]), return_tensors="pt")["input_ids"][:, :128]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        pieces = [float(model(p, labels=p).loss) for p in ids.split(32, dim=1)]
        whole = float(model(ids, labels=ids).loss)
    assert rows["perplexity@32"] == pytest.approx(exp(np.mean(pieces)), rel=1e-4)
    assert rows["perplexity@128 untreated"] == pytest.approx(exp(whole), rel=1e-4)
    assert "perplexity@128" not in rows


def test_long_retrieval_has_its_baselines(tmp_path: Path, tiny_bert: Path) -> None:
    import json

    sentences = make_sentences(60)
    rows = [{"_id": f"d{i}", "text": " ".join(sentences[6 * i : 6 * i + 6])} for i in range(10)]
    asked = [{"_id": f"q{i}", "text": sentences[6 * i + 5]} for i in range(10)]
    for name, lines in (("corpus", rows), ("queries", asked)):
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(10))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    task = parse_task(f"long-retrieval:{tmp_path},window=12")
    assert task.check() == []
    pair = ModelPair.of(Encoder.open(tiny_bert, RUNTIME), "tiny")
    found = {m.name: m.value for m in task.run(pair)}
    short = ModelPair.of(limit_length(pair.document.encoder, 12), "short")
    retrieval = parse_task(f"retrieval:{tmp_path}")
    assert found["ndcg@10 truncation"] == retrieval.score(short).figures["ndcg@10"]
    assert found["ndcg@10"] == retrieval.score(pair).figures["ndcg@10"]
    assert "ndcg@10 chunk-and-mean" in found
    assert "ndcg@10 untreated" not in found
