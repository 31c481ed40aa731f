"""Tiny real models on disk, made on the spot: deterministic, without network.

The model fixtures give the path of a folder that all tests of the session share: copy it
(`shutil.copytree`) before changing anything in it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Read when the libraries are first imported, so before any fixture runs. One thread: the models
# are too small for two to help.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = (
    "the a of to in on with from under over near after before and or but not is are was has can "
    "will may very quite often never always small large old new red green blue dark bright cold "
    "warm fast slow quiet loud heavy light deep high low early late cat dog horse bird fish cow "
    "sheep wolf bear fox mouse lion eagle snake frog bee river lake sea ocean island mountain "
    "valley forest field desert cave beach storm rain snow wind cloud sun moon star planet comet "
    "orbit rocket engine wheel brake bridge road train ship boat plane car bicycle station harbour "
    "city village house tower castle church school market garden kitchen window door roof wall "
    "bread milk cheese apple orange grape rice soup salt sugar coffee tea wine water fire stone "
    "iron gold silver copper glass paper wood cotton wool leather doctor nurse patient drug fever "
    "heart lung bone blood brain nerve muscle cell virus gene protein teacher student lesson book "
    "page word letter story poem song music piano violin drum dance painter colour picture film "
    "actor camera king queen soldier army war peace law court judge crime police prison vote party "
    "bank money price trade tax loan profit factory worker farmer crop seed plough harvest machine "
    "computer program data network signal radio screen battery wire current voltage pressure heat "
    "flow wing lift drag shock layer surface boundary theory method result test value number "
    "equation line curve circle angle runs sings falls grows burns flies sleeps breaks opens "
    "carries shows finds builds sells reads writes plays"
).split()


def make_sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences of 3 to 14 words of the vocabulary."""
    rng = random.Random(seed)
    seen: dict[str, None] = {}
    while len(seen) < count:
        seen[" ".join(rng.choices(WORDS, k=rng.randint(3, 14)))] = None
    return list(seen)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """400 distinct sentences."""
    return make_sentences(400)


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No vector store of the user's is touched, and the hub is not asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EMBTOOL_STORE", str(tmp_path_factory.mktemp("store")))


def _wordpiece(specials: list[str]):
    """A WordPiece tokenizer: the specials, single letters and digits, the words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,:;?!-'\"()")
    pieces = specials + letters + ["##" + x for x in letters] + [w for w in WORDS if len(w) > 1]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def bert_tokenizer():
    """[CLS] text [SEP], padded on the right."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def roberta_tokenizer():
    """<s> text </s>, padded on the right with id 1, after which positions are counted."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _wordpiece(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="[UNK]", cls_token="<s>",
        sep_token="</s>", bos_token="<s>", eos_token="</s>", mask_token="<mask>",
        model_max_length=64,
    )  # fmt: skip


def decoder_tokenizer(padding_side: str = "left"):
    """text <eos>, padded on the left."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _wordpiece(["<pad>", "[UNK]", "<eos>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="[UNK]", eos_token="<eos>",
        padding_side=padding_side, model_max_length=128,
    )  # fmt: skip


def save_model(
    folder: Path, model, tokenizer, *, pooling: str, max_length: int, prompts: dict[str, str]
):
    """Write a transformers model as a sentence-transformers folder: pooling, then Normalize."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    base = folder.with_name(folder.name + "-base")
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=max_length)
    width = model.config.hidden_size
    modules = [transformer, Pooling(width, pooling_mode=pooling), Normalize()]
    st = SentenceTransformer(
        modules=modules, prompts=prompts, similarity_fn_name="cosine", device="cpu"
    )
    st.save_pretrained(str(folder), create_model_card=False)
    return folder


def make_bert(folder: Path, *, hidden: int, layers: int, seed: int) -> Path:
    """A post-norm BERT with mean pooling."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=4, intermediate_size=2 * hidden, max_position_embeddings=64,
        initializer_range=0.15, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config).eval()
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.mul_(4)  # else all texts look alike
            # norms at 1 and 0 would hide a forgotten or swapped norm
            for name, p in model.named_parameters():
                if "LayerNorm" in name:
                    p.add_(0.2 * torch.randn_like(p))
    prompts = {"query": "query: ", "document": ""}
    return save_model(folder, model, tokenizer, pooling="mean", max_length=32, prompts=prompts)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT, 4 layers, hidden 32, mean pooling + Normalize, 32 tokens, a query prompt."""
    return make_bert(tmp_path_factory.mktemp("bert") / "tiny-bert", hidden=32, layers=4, seed=0)


@pytest.fixture(scope="session")
def tiny_bert_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_bert` with the same tokenizer, but hidden 48 and 2 layers."""
    folder = tmp_path_factory.mktemp("bert-wide") / "tiny-bert-wide"
    return make_bert(folder, hidden=48, layers=2, seed=1)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3 (pre-norm, rotary, base model without head), 3 layers, hidden 32, last token."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = decoder_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=64, max_position_embeddings=128,
        initializer_range=0.15, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2,
        bos_token_id=None, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Qwen3Model(config).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "norm" in name:
                    p.add_(0.2 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("decoder") / "tiny-decoder"
    prompts = {"query": "find : ", "document": ""}
    return save_model(folder, model, tokenizer, pooling="lasttoken", max_length=64, prompts=prompts)


@pytest.fixture(scope="session")
def tiny_static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """StaticEmbedding (a table, mean of its rows), 32 dimensions, + Normalize."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding

    tokenizer = _wordpiece(["[PAD]", "[UNK]"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        table = torch.randn(tokenizer.get_vocab_size(), 32)
    module = StaticEmbedding(tokenizer, embedding_weights=table.numpy())
    st = SentenceTransformer(
        modules=[module, Normalize()], similarity_fn_name="cosine", device="cpu"
    )
    folder = tmp_path_factory.mktemp("static") / "tiny-static"
    st.save_pretrained(str(folder), create_model_card=False)
    return folder


@dataclass(frozen=True)
class CliResult:
    """What a command gave: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., CliResult]:
    """`run_cli("inspect", folder)` or `run_cli(["inspect", folder])`, in this process."""

    def run(*argv: object) -> CliResult:
        from emb_tool.cli.app import main

        items = argv[0] if len(argv) == 1 and isinstance(argv[0], list | tuple) else argv
        capsys.readouterr()
        code = main([str(item) for item in items])
        said = capsys.readouterr()
        return CliResult(code, said.out, said.err)

    return run
