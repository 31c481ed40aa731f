"""vocab: the trimmed model gives the original's vectors to the bit, and its files agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.calibration import CalibrationContext
from emb_tool.compress.step import run_steps
from emb_tool.compress.vocab import Vocab
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.registry import build
from emb_tool.runtime.device import Runtime
from tests.conftest import make_sentences, save_model

CORPUS = [*make_sentences(30, seed=5), "Ünknown ☃ [SEP] words", ""]


def planned(model: Path, **settings: object) -> tuple[Vocab, CheckpointEditor]:
    draft = CheckpointEditor.of(Checkpoint.open(model))
    step: Vocab = build(Vocab, settings)
    step.plan(draft)
    draft.history.append("vocab")
    return step, draft


def trim(
    model: Path,
    tmp_path: Path,
    texts: list[str] | None = None,
    unseen: list[str] | None = None,
    progress: Progress | None = None,
    **settings: object,
) -> CheckpointEditor:
    """Into `tmp_path / "out"`; what becomes of texts is told of the corpus unless others are."""
    corpus = CORPUS if texts is None else texts
    work = CalibrationContext(
        corpus, Runtime.start("cpu"), progress or Progress(0), tmp_path / "scratch",
        heldout=corpus if unseen is None else unseen,
    )  # fmt: skip
    draft = run_steps([build(Vocab, settings)], CheckpointEditor.of(Checkpoint.open(model)), work)
    draft.write(tmp_path / "out")
    return draft


def opened(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def train_bpe(specials: list[str], size: int = 340) -> tuple[dict[str, int], Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        make_sentences(100),
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=specials, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]


def small(tokenizer: Any, **more: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 60,
        "initializer_range": 0.2, "pad_token_id": tokenizer.pad_token_id, **more,
    }  # fmt: skip


def make(kind: str, folder: Path) -> Path:
    """Families with tokenizer classes of their own."""
    import transformers as t

    saved = {"pooling": "mean", "max_length": 40, "prompts": {"query": "query: "}}
    model: Any
    tokenizer: Any
    if kind == "roberta":
        vocab, merges = train_bpe(ROBERTA)
        tokenizer = t.RobertaTokenizer({**vocab, "<mask>": len(vocab)}, merges)
        model = t.RobertaModel(t.RobertaConfig(**small(tokenizer)))
    elif kind == "xlm-roberta":
        trained = Tokenizer(models.Unigram())
        trained.pre_tokenizer = pre_tokenizers.Metaspace()
        trained.train_from_iterator(
            make_sentences(100),
            trainers.UnigramTrainer(
                vocab_size=200, special_tokens=ROBERTA, unk_token="<unk>", show_progress=False
            ),
        )
        pieces = [tuple(p) for p in json.loads(trained.to_str())["model"]["vocab"]]
        tokenizer = t.XLMRobertaTokenizer([*pieces, ("<mask>", 0.0)])
        model = t.XLMRobertaModel(t.XLMRobertaConfig(**small(tokenizer)))
    elif kind == "mpnet":  # its padding id is written in its code
        words = {t: i for i, t in enumerate([*ROBERTA, "[UNK]"])}
        for piece in [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnoprstuvwy"),
                      "the", "dog", "##ing", "river", "unused"]:  # fmt: skip
            words[piece] = len(words)
        tokenizer = t.MPNetTokenizer({**words, "<mask>": len(words)})
        model = t.MPNetModel(t.MPNetConfig(**small(tokenizer)))
    else:  # special tokens after the vocabulary, which is where Qwen has them
        vocab, merges = train_bpe([])
        inner = Tokenizer(models.BPE(vocab, merges))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        marks = ["<|pad|>", "<|im_start|>", "<|eos|>"]
        inner.add_special_tokens([AddedToken(m, special=True) for m in marks])
        inner.add_tokens([AddedToken("<tool>", special=False), AddedToken("<other>")])
        tokenizer = t.PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|eos|>", padding_side="left"
        )
        inner = tokenizer.backend_tokenizer
        from tokenizers import processors

        inner.post_processor = processors.TemplateProcessing(
            single="$A <|eos|>", special_tokens=[("<|eos|>", len(vocab) + 2)]
        )
        config = small(
            tokenizer, eos_token_id=[len(vocab) + 2, len(vocab)], bos_token_id=None, head_dim=8,
            num_key_value_heads=1, tie_word_embeddings=True,
        )  # fmt: skip
        config["vocab_size"] += 11  # as many rows as suit a GPU
        model = t.Qwen3Model(t.Qwen3Config(**config))
        saved["pooling"] = "lasttoken"
    return save_model(folder / "model", model.eval(), tokenizer, **saved)


FAMILIES = ("tiny_bert", "tiny_decoder", "tiny_static", "roberta", "xlm-roberta", "mpnet", "qwen")


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_of_the_corpus_to_the_bit(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tiny = family.startswith("tiny")
    source = request.getfixturevalue(family) if tiny else make(family, tmp_path)
    draft = trim(source, tmp_path)
    old, new = opened(source), opened(tmp_path / "out")
    for prompt in (None, "query") if new.prompts.get("query") else (None,):
        texts = [text for text in CORPUS if text]
        assert np.array_equal(
            new.encode(texts, prompt_name=prompt), old.encode(texts, prompt_name=prompt)
        )
    facts = draft.facts["vocab"]
    assert facts["texts_differ"] == 0
    assert facts["ids"][1] < facts["ids"][0]
    assert facts["tokens"][0] == facts["tokens"][1]
    assert facts["unknown_share"][0] == facts["unknown_share"][1]
    assert "0 of" in draft.notes[-1]
    assert len(draft.notes) == 1
    specs = {spec.name: spec for spec in draft.specs()}
    rows = facts["ids"][1]
    assert specs[draft.table_name()].shape[0] == rows
    if family == "tiny_static":
        assert new.tokenizer.get_vocab_size() == rows
        return
    assert new[0].auto_model.config.vocab_size == len(new.tokenizer) == rows
    config, before = new[0].auto_model.config, old[0].auto_model.config
    for role in ("pad", "bos", "eos", "cls", "sep", "unk", "mask"):
        token = getattr(old.tokenizer, f"{role}_token")
        assert getattr(new.tokenizer, f"{role}_token") == token
        if token is not None:  # the same token under whatever id
            i = getattr(new.tokenizer, f"{role}_token_id")
            assert new.tokenizer.convert_ids_to_tokens(i) == token
            stated = getattr(before, f"{role}_token_id", None)
            if stated == getattr(old.tokenizer, f"{role}_token_id"):
                assert getattr(config, f"{role}_token_id") == i
    if family == "qwen":
        named = new.tokenizer.convert_ids_to_tokens(config.eos_token_id)
        assert named == ["<|eos|>", "<|pad|>"]
        assert new.tokenizer.padding_side == "left"
        assert "<tool>" not in new.tokenizer.get_vocab()
        assert new.tokenizer.convert_tokens_to_ids("<|im_start|>") == rows - 2
    else:
        assert new.tokenizer.pad_token_id == old.tokenizer.pad_token_id


def test_saved_again_by_the_library_it_stays_the_same(tmp_path: Path, tiny_bert: Path) -> None:
    trim(tiny_bert, tmp_path)
    model = opened(tmp_path / "out")
    model.save_pretrained(str(tmp_path / "again"))
    assert np.array_equal(opened(tmp_path / "again").encode(CORPUS), model.encode(CORPUS))


def test_two_runs_write_the_same_bytes(tmp_path: Path, tiny_bert: Path) -> None:
    for name in "ab":
        trim(tiny_bert, tmp_path / name)
    one, two = (sorted((tmp_path / n / "out").rglob("*")) for n in "ab")
    assert [p.read_bytes() for p in one if p.is_file()] == [
        p.read_bytes() for p in two if p.is_file()
    ]


def test_positions_counted_from_the_padding_id(tmp_path: Path) -> None:
    import transformers as t

    vocab, merges = train_bpe(["<s>", "</s>", "<unk>"])
    tokenizer = t.RobertaTokenizer({**vocab, "<mask>": len(vocab), "<pad>": len(vocab) + 1}, merges)
    config = small(tokenizer, max_position_embeddings=len(tokenizer) + 50)
    model = t.RobertaModel(t.RobertaConfig(**config)).eval()
    folder = save_model(
        tmp_path / "model", model, tokenizer, pooling="mean", max_length=40, prompts={}
    )
    with pytest.raises(InvalidInput, match=r"padding id \d+ would become \d+") as refused:
        trim(folder, tmp_path)
    assert "size above" in str(refused.value.hint)


def test_an_output_head_is_cut_too(tmp_path: Path) -> None:
    import transformers as t

    from tests.conftest import bert_tokenizer

    tokenizer = bert_tokenizer()
    rows = len(tokenizer)
    config = small(tokenizer, max_position_embeddings=rows, tie_word_embeddings=False)
    model = t.BertForMaskedLM(t.BertConfig(**config)).eval()
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    draft = trim(tmp_path / "model", tmp_path)
    (new, after), (old, before) = (
        (t.AutoModelForMaskedLM.from_pretrained(p).eval(), t.AutoTokenizer.from_pretrained(p))
        for p in (tmp_path / "out", tmp_path / "model")
    )
    assert new.config.vocab_size == draft.facts["vocab"]["ids"][1] < rows
    assert new.bert.embeddings.position_embeddings.weight.shape[0] == rows
    kept = before.convert_tokens_to_ids(after.convert_ids_to_tokens(range(len(after))))
    with torch.inference_mode():
        expected = old(**before(CORPUS[:4], return_tensors="pt", padding=True)).logits
        found = new(**after(CORPUS[:4], return_tensors="pt", padding=True)).logits
    torch.testing.assert_close(found, expected[..., kept], rtol=1e-5, atol=1e-5)


def tokens(folder: Path) -> dict[str, int]:
    found: dict[str, int] = opened(folder).tokenizer.get_vocab()
    return found


def test_list_keep_and_characters(tmp_path: Path, tiny_bert: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("dog\nriver\nnot-a-token\ndog\n", encoding="utf-8")
    draft = trim(tiny_bert, tmp_path, list=str(path), keep="wolf,##q", characters=False)
    assert set(tokens(tmp_path / "out")) == {
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "river", "wolf", "##q",
    }  # fmt: skip
    assert draft.facts["vocab"]["texts_differ"] > 0
    assert draft.facts["vocab"]["unknown_share"][1] > draft.facts["vocab"]["unknown_share"][0]
    _, whole = planned(tiny_bert, list=str(path))
    assert "at most" in whole.notes[0]
    for settings, says in (
        ({"keep": "dogg"}, "no token 'dogg'"),
        ({"list": str(tmp_path / "none")}, "list .*none"),
        ({"list": str(path), "min_count": 2}, "give only one of them"),
        ({"size": 20}, r"size=20: \d+ tokens are required"),
    ):
        with pytest.raises(InvalidInput, match=says):
            planned(tiny_bert, **settings)
    path.write_text("###\n")
    with pytest.raises(InvalidInput, match="none of its 1 lines"):
        planned(tiny_bert, list=str(path))


def test_size_and_min_count_keep_the_frequent(tmp_path: Path, tiny_bert: Path) -> None:
    texts = ["dog dog dog wolf", "dog wolf river"]
    bare = len(set(tokens(tiny_bert))) - len([w for w in tokens(tiny_bert) if w.isalpha()
                                              and len(w) > 1])  # fmt: skip
    for settings, kept in (({"size": bare + 2}, {"dog", "wolf"}), ({"min_count": 4}, {"dog"}),
                           ({"min_count": 2, "size": bare + 1}, {"dog"})):  # fmt: skip
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        draft = trim(tiny_bert, tmp_path, texts, **settings)
        found = tokens(tmp_path / "out")
        assert {w for w in found if w.isalpha() and len(w) > 1} == kept
        assert draft.facts["vocab"]["ids"][1] == len(found) == bare + len(kept)
        assert draft.facts["vocab"]["texts_differ"] == (1 if "wolf" in kept else 2)
        assert draft.facts["vocab"]["unknown_share"] == [0, 0]


def edited(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(source, folder))
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def test_rows_without_a_token_go(tmp_path: Path, tiny_bert: Path) -> None:
    name = "embeddings.word_embeddings.weight"

    def pad(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.cat([tensors[name], torch.full((7, 32), 9.0)])

    model = edited(tiny_bert, tmp_path / "model", pad)
    rows = Checkpoint.open(model).tensors[name].shape[0]
    config = json.loads((model / "config.json").read_text())
    with pytest.raises(InvalidInput, match=rf"vocab_size {rows - 7}, .* has {rows} rows"):
        planned(model)
    config |= {"vocab_size": rows, "forced_bos_token_id": rows - 1, "far_token_id": 99_999}
    (model / "config.json").write_text(json.dumps(config))
    draft = trim(model, tmp_path)
    kept = draft.facts["vocab"]["ids"][1]
    assert draft.config["forced_bos_token_id"] == kept - 1  # a row that the config names stays
    assert draft.config["far_token_id"] == 99_999
    table = Checkpoint.open(tmp_path / "out").tensor(name)
    assert (table == 9).all(1).tolist() == [False] * (kept - 1) + [True]
    texts = [text for text in CORPUS if text]
    assert np.array_equal(opened(tmp_path / "out").encode(texts), opened(tiny_bert).encode(texts))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    model = edited(tiny_bert, tmp_path / "model", lambda t: t.update({name: t[name][:99].clone()}))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 99}))
    with pytest.raises(InvalidInput, match=r"has the id \d+, .* has 99 rows"):
        planned(model)
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidInput, match="no fast tokenizer"):
        planned(model)


def test_a_sentencepiece_model_alone_says_what_reads_it(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emb_tool.checkpoint.tokenizer_files.find_spec", lambda name: None)
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    (model / "tokenizer.json").rename(model / "spiece.model")
    for attempt in (planned, lambda model: Encoder.open(model, Runtime.start("cpu"))):
        with pytest.raises(InvalidInput) as refused:
            attempt(model)
        assert "pip install sentencepiece" in str(refused.value.hint)


def test_a_vocab_txt_alone_is_converted(tmp_path: Path, tiny_bert: Path) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    vocab = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("".join(f"{t}\n" for t in sorted(vocab, key=vocab.get)))
    told = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    trim(model, tmp_path)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    lines = (tmp_path / "out" / "vocab.txt").read_text().splitlines()
    assert {token: i for i, token in enumerate(lines)} == tokens(tmp_path / "out")
    assert np.array_equal(opened(tmp_path / "out").encode(CORPUS), opened(model).encode(CORPUS))


def test_model2vec_rows_by_map_and_weights_by_token(tmp_path: Path, tiny_static: Path) -> None:
    def share(tensors: dict[str, torch.Tensor]) -> None:
        table = tensors.pop("embedding.weight")
        torch.manual_seed(1)
        tensors["embeddings"] = table[:50].clone()
        tensors["mapping"] = torch.randint(50, (len(table),))
        tensors["weights"] = torch.rand(len(table))

    model = edited(tiny_static, tmp_path / "model", share)
    draft = trim(model, tmp_path, CORPUS[:2])
    runtime = Runtime.start("cpu")  # sentence-transformers itself reads maps from 6.2 on
    found, wanted = (Encoder.open(x, runtime).encode(CORPUS[:2]) for x in (tmp_path / "out", model))
    assert np.array_equal(found, wanted)
    shapes = {spec.name: spec.shape for spec in draft.specs()}
    ids = draft.facts["vocab"]["ids"][1]
    assert shapes["mapping"] == shapes["weights"] == (ids,)
    assert shapes["embeddings"][0] < 50


def test_packed_tables_come_later(tiny_bert: Path) -> None:
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    draft.packed["embeddings.word_embeddings"] = {"kind": "int"}
    with pytest.raises(InvalidInput, match="word_embeddings is packed already") as refused:
        Vocab().plan(draft)
    assert "-m vocab first" in str(refused.value.hint)


def test_what_becomes_of_texts_is_told_of_those_that_were_not_counted(
    tiny_bert: Path, tmp_path: Path
) -> None:
    progress = Progress(0)
    draft = trim(tiny_bert, tmp_path, ["cat dog"], ["cat", "wolf", "dog", "fox cat"], progress)
    facts = draft.facts["vocab"]
    assert (facts["texts"], facts["texts_differ"]) == (4, 2)  # wolf and fox fall apart
    before, after = facts["tokens"]
    assert before == 4 * 2 + 5  # each between two special tokens
    assert after == before + len("wolf") - 1 + len("fox") - 1
    assert "2 of 4 held-out texts are tokenized differently" in " ".join(draft.notes)
    few, apart = progress.warnings
    assert "1 texts are few to count tokens in" in few
    assert "held-out texts have 38.5% more tokens" in apart


def test_without_held_out_texts_nothing_is_claimed(tiny_bert: Path, tmp_path: Path) -> None:
    draft = trim(tiny_bert, tmp_path, ["cat dog"], [])
    assert any("no held-out texts to measure" in note for note in draft.notes)
