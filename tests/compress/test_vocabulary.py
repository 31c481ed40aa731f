"""Trimmed vocabularies: the tokenizers library itself says whether they tokenize alike."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from emb_tool.checkpoint import tokenizer_files as ops
from emb_tool.compress import vocabulary as vo
from emb_tool.compress.token_ids import config_ids, renumber_config, rewrite_tokenizer
from emb_tool.errors import InvalidInput
from tests.conftest import make_sentences

TEXTS = [*make_sentences(150), "Über naïve cafés", "a1 b22 c333", "x-ray, e.g. (this)"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

Pair = tuple[Tokenizer, ops.Vocabulary, dict[str, bytes]]


def train(kind: str) -> Tokenizer:
    """Small tokenizers of every kind, trained on the spot."""
    if kind in ("unigram", "unigram-bytes"):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=260, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=SPECIAL, show_progress=False
        )
    elif kind == "wordlevel":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    else:
        marks: dict[str, Any] = {"suffix": {"end_of_word_suffix": "</w>"},
                 "prefix": {"continuing_subword_prefix": "##"}}.get(kind, {})  # fmt: skip
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, **marks))
        more: dict[str, Any] = {}
        if kind == "bytes":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            more = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        elif kind == "sentencepiece":  # as Llama 2: no words, merges cross nothing but bytes
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=SPECIAL, show_progress=False, **more, **marks
        )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if kind in ("unigram-bytes", "sentencepiece"):
        data = json.loads(tokenizer.to_str())
        model, pieces = data["model"], [f"<0x{i:02X}>" for i in range(256)]
        model["byte_fallback"] = True
        if kind == "sentencepiece":
            model["vocab"] |= {p: len(model["vocab"]) + i for i, p in enumerate(pieces)}
        else:
            model["vocab"] += [[p, 0.0] for p in pieces]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_tokens([AddedToken("CAPTION", special=False)])
    return tokenizer


KINDS = ("wordpiece", "unigram", "unigram-bytes", "wordlevel", "suffix", "prefix", "bytes",
         "sentencepiece")  # fmt: skip


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    made = {}
    for kind in KINDS:
        files = {"tokenizer.json": train(kind).to_str().encode()}
        tokenizer = ops.open_tokenizer(files, {}, kind, tokenizer_json_only=True)
        made[kind] = (tokenizer, ops.read_vocabulary(tokenizer, files, kind), files)
    return made


def trim(
    pair: Pair, texts: list[str], characters: bool = True, **given: Any
) -> tuple[Tokenizer, dict[int, int]]:
    tokenizer, vocabulary, files = pair
    counts, hidden = vo.count_ids(tokenizer, vocabulary, texts, True, lambda _: None)
    wanted = [*map(int, counts.nonzero()[0]), *hidden]
    wanted.sort(key=lambda i: -int(counts[i]))
    must = vo.required_ids(vocabulary, characters=characters)
    kept = vo.choose_ids(vocabulary, must, wanted, **given)
    ids = vo.renumber_ids(vocabulary, kept)
    made = rewrite_tokenizer(vocabulary, ids, files)["tokenizer.json"]
    assert made is not None
    return Tokenizer.from_str(made.decode()), ids


words = st.sampled_from(" ".join(TEXTS).split()) | st.text(
    alphabet="abcdefgüïé漢☃(.,1 ", max_size=6
)
texts = st.lists(st.lists(words, max_size=8).map(" ".join), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(corpus=texts, others=texts, characters=st.booleans())
def test_a_corpus_is_tokenized_as_before(
    pairs: dict[str, Pair], kind: str, corpus: list[str], others: list[str], characters: bool
) -> None:
    old, vocabulary, _ = pairs[kind]
    new, ids = trim(pairs[kind], corpus, characters)
    assert new.get_vocab_size() == len(ids) == len(new.get_vocab())
    back = {i: token for token, i in vocabulary.ids.items()}
    assert {back[o]: n for o, n in ids.items()} == new.get_vocab()
    for text in corpus:
        assert [ids[i] for i in old.encode(text).ids] == new.encode(text).ids
    if characters and kind != "wordlevel":  # known words stay known, in whatever pieces
        for text in others:
            unknown = vocabulary.unknown
            if unknown is None or unknown not in old.encode(text).ids:
                found = new.encode(text)
                assert unknown is None or ids[unknown] not in found.ids
                assert new.decode(found.ids) or not old.decode(old.encode(text).ids)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_dense_special_ones_in_place_and_added_ones_last(
    pairs: dict[str, Pair], kind: str
) -> None:
    _, vocabulary, _ = pairs[kind]
    new, ids = trim(pairs[kind], ["CAPTION the cat"])
    assert sorted(ids.values()) == list(range(len(ids)))
    assert [new.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert new.token_to_id("CAPTION") == len(ids) - 1
    assert len(ids) < len(vocabulary.ids)
    without, _ = trim(pairs[kind], ["the cat"])
    assert without.token_to_id("CAPTION") is None


def test_wordpiece_keeps_what_it_gives_words_up_with() -> None:
    """`ab©` is unknown, since `ab` is taken first; without `ab`, it would be `a ##b©`."""
    vocab = {t: i for i, t in enumerate(["[UNK]", "a", "##b", "ab", "##b©", "zz", "z", "##z"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    vocabulary = ops.read_vocabulary(tokenizer, files, "x")
    must = {0, 1, 2, 4, 6, 7}  # that `##b©` is among them is what makes the trap snap
    for hidden_kept in (False, True):
        _, hidden = vo.count_ids(tokenizer, vocabulary, ["ab© z"], False, lambda _: None)
        assert hidden == {3}
        kept = vo.choose_ids(vocabulary, must, hidden if hidden_kept else ())
        ids = vo.renumber_ids(vocabulary, kept)
        made = rewrite_tokenizer(vocabulary, ids, files)["tokenizer.json"]
        assert made is not None
        after = Tokenizer.from_str(made.decode())
        trial = vo.compare_tokenizations(
            tokenizer, after, ids, 0, ["ab© z", "zz"], False, lambda _: None
        )
        assert trial.differ == (1 if hidden_kept else 2)  # zz was not in the corpus
        assert trial.first == ("zz" if hidden_kept else "ab© z")
        assert trial.tokens == (3, 4 if hidden_kept else 5)
        assert trial.unknown == (1 / 3, 0.25 if hidden_kept else 0)


def test_unigram_keeps_the_lowest_score() -> None:
    """What is unknown scores by it: x, y, z☃ is -45 and xyz, ☃ -55; without `rare`, -30."""
    vocab = [("<unk>", 0.0), ("x", -15.0), ("y", -15.0), ("z☃", -15.0), ("xyz", -5.0)]
    tokenizer = Tokenizer(models.Unigram([*vocab, ("rare", -40.0)], 0, False))
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    pair = (tokenizer, ops.read_vocabulary(tokenizer, files, "x"), files)
    assert vo.required_ids(pair[1], characters=True) == {0, 1, 2, 5}
    assert tokenizer.encode("xyz☃").ids == [1, 2, 3]
    assert Tokenizer(models.Unigram(vocab, 0, False)).encode("xyz☃").ids == [4, 0]
    new, ids = trim(pair, ["xyz☃", "xyz"])
    assert [ids[i] for i in tokenizer.encode("xyz☃").ids] == new.encode("xyz☃").ids
    assert len(ids) == 6


def test_size_keeps_the_most_frequent_with_what_they_are_made_of(pairs: dict[str, Pair]) -> None:
    for kind in ("wordpiece", "unigram", "bytes"):
        tokenizer, vocabulary, _ = pairs[kind]
        least = len(vo.required_ids(vocabulary, characters=True))
        with pytest.raises(InvalidInput, match=f"{least:,} tokens are required"):
            trim(pairs[kind], TEXTS, size=least - 1)
        counts, _ = vo.count_ids(tokenizer, vocabulary, TEXTS, True, lambda _: None)
        seen = 0
        for size in range(least, least + 25, 6):
            new, ids = trim(pairs[kind], TEXTS, size=size)
            assert len(ids) <= size
            covered = int(counts[list(ids)].sum())
            assert covered >= seen
            seen = covered
            for left, right in json.loads(new.to_str())["model"].get("merges", []):
                assert {left, right, left + right} <= new.get_vocab().keys()
            # every token can be reached: it is what its own text becomes
            if kind == "bytes":
                for token in new.get_vocab().keys() - {*SPECIAL, "CAPTION"}:
                    assert new.model.tokenize(token)[0].value == token


def test_files_beside_tokenizer_json_agree(pairs: dict[str, Pair]) -> None:
    config = {
        "added_tokens_decoder": {"3": {"content": "<unk>"}, "900": {"content": "CAPTION"}},
        "pad_token_id": 1, "eos_token_ids": [2, 3], "model_max_length": 3,
    }  # fmt: skip
    for kind, names in (("bytes", ("vocab.json", "merges.txt")), ("wordpiece", ("vocab.txt",))):
        _, vocabulary, files = pairs[kind]
        held = dict.fromkeys((*names, "sentencepiece.bpe.model"), b"old")
        held |= {"tokenizer_config.json": json.dumps(config).encode(), "added_tokens.json": b"{}"}
        caption = vocabulary.added["CAPTION"]
        kept = vo.choose_ids(
            vocabulary, vo.required_ids(vocabulary, characters=True), [caption, 280]
        )
        ids = vo.renumber_ids(vocabulary, kept)
        made = rewrite_tokenizer(vocabulary, ids, files | held)
        assert made.keys() == {*names, *files, *held}
        assert made["sentencepiece.bpe.model"] is None
        read = {name: content.decode() for name, content in made.items() if content}
        new = Tokenizer.from_str(read["tokenizer.json"])
        assert json.loads(read["added_tokens.json"]) == {"CAPTION": new.token_to_id("CAPTION")}
        told = json.loads(read["tokenizer_config.json"])
        assert told["added_tokens_decoder"] == {
            "3": {"content": "<unk>"}, str(new.token_to_id("CAPTION")): {"content": "CAPTION"},
        }  # fmt: skip
        assert (told["pad_token_id"], told["eos_token_ids"]) == (1, [2, 3])
        if kind == "bytes":
            merges = [tuple(line.split(" ")) for line in read["merges.txt"].splitlines()[1:]]
            slow = Tokenizer(models.BPE(json.loads(read["vocab.json"]), merges))
            slow.pre_tokenizer = new.pre_tokenizer
        else:
            lines = read["vocab.txt"].splitlines()
            vocab = {token: i for i, token in enumerate(lines)}
            slow = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
            slow.normalizer, slow.pre_tokenizer = new.normalizer, new.pre_tokenizer
        for text in TEXTS[:20]:
            assert slow.encode(text).ids == new.encode(text, add_special_tokens=False).ids


def test_every_post_processor_and_the_padding_get_the_new_ids() -> None:
    vocab = {t: i for i, t in enumerate([*"abcdefgh", "[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    for post in (
        processors.BertProcessing(("[SEP]", 11), ("[CLS]", 10)),
        processors.RobertaProcessing(("[SEP]", 11), ("[CLS]", 10)),
        processors.Sequence([processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 10), ("[SEP]", 11)])]),
    ):  # fmt: skip
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        tokenizer.post_processor = post
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.enable_padding(pad_id=8, pad_token="[PAD]", length=6)
        files = {"tokenizer.json": tokenizer.to_str().encode()}
        opened = ops.open_tokenizer(files, {}, "x", tokenizer_json_only=True)
        pair = (opened, ops.read_vocabulary(opened, files, "x"), files)
        new, ids = trim(pair, ["c e", "h"])
        assert ids == {2: 0, 4: 1, 7: 2, 8: 3, 9: 4, 10: 5, 11: 6}
        assert [ids[i] for i in tokenizer.encode("e c").ids] == new.encode("e c").ids
        assert new.encode("e c").ids == [5, 1, 0, 6, 3, 3]


def test_config_ids() -> None:
    config = {
        "pad_token_id": 7, "eos_token_id": [3, 9], "bos_token_id": None, "vocab_size": 20,
        "text_config": {"vocab_size": 20, "image_token_index": 11}, "id2label": {0: "a"},
        "pad_vocab_size_multiple": 8, "type_vocab_size": 20, "is_token_id": "no",
    }  # fmt: skip
    assert config_ids(config) == {7, 3, 9, 11}
    assert renumber_config(config, {7: 0, 3: 1, 9: 2, 11: 3}, (20, 4)) == {
        "pad_token_id": 0, "eos_token_id": [1, 2], "bos_token_id": None, "vocab_size": 4,
        "text_config": {"vocab_size": 4, "image_token_index": 3}, "id2label": {0: "a"},
        "pad_vocab_size_multiple": 1, "type_vocab_size": 20, "is_token_id": "no",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "not JSON"), (b"[" * 100_000, "not JSON"), (b"[]", "an object with a model"),
     (b'{"model": {"vocab": {"a": -1}}}', "the ids of model.vocab"),
     (b'{"model": {"vocab": {"a": 1, "b": 1}}}', "the ids of model.vocab"),
     (b'{"model": {"vocab": [["a"]]}}', "neither a map of ids"),
     (b'{"model": {"vocab": {}, "merges": ["ab"]}}', "model.merges"),
     (b'{"model": {"vocab": {}}, "added_tokens": [1]}', "added_tokens"),
     (b'{"model": {"vocab": {}, "type": "Magic"}}', "a model of type 'Magic'"),
     (b"\xff\xfe", "not JSON")],
)  # fmt: skip
def test_strange_files_are_refused(content: bytes, says: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(InvalidInput, match=says):
        ops.read_vocabulary(tokenizer, {"tokenizer.json": content}, "x")
    with pytest.raises(InvalidInput, match="x: no fast tokenizer can be loaded from") as refused:
        ops.open_tokenizer({"tokenizer.json": content}, {}, "x", tokenizer_json_only=True)
    assert refused.value.hint


def test_what_transformers_adds_counts_too() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    tokenizer.add_special_tokens(["[NEW]"])
    found = ops.read_vocabulary(tokenizer, files, "x")
    assert found.ids == {"a": 0, "b": 1, "[NEW]": 2}
    assert vo.special_ids(found) == {0, 2}
    assert np.array_equal(next(vo.encode_ids(tokenizer, ["[NEW] b"], False)), [2, 0])
