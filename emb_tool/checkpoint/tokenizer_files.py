"""Reading and validation of tokenizer files.

A fast tokenizer is stored in `tokenizer.json`; there may also be the files that it was converted
from (`vocab.txt`, `vocab.json` and `merges.txt`, a sentencepiece model) and configs of
transformers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.files import MAX_INDEX, write_json
from emb_tool.checkpoint.reader import TOKENIZER_FILES
from emb_tool.errors import InvalidInput
from emb_tool.progress import quiet

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = (
    *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
"""The files that determine the tokenization."""

SENTENCEPIECE = (
    "it is a sentencepiece model: pip install sentencepiece protobuf, or save the model again with"
    " a tokenizer.json"
)

KINDS = ("WordPiece", "Unigram", "BPE", "WordLevel")


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a fast tokenizer.

    Args:
        data: Content of `tokenizer.json`.
        pieces: Ids of the tokens of the tokenizer's model.
        added: Ids of added tokens, which are matched before the model is applied.
    """

    data: dict[str, Any]
    pieces: dict[str, int]
    added: dict[str, int]

    @property
    def model(self) -> dict[str, Any]:
        """The `model` of `tokenizer.json`."""
        model: dict[str, Any] = self.data["model"]
        return model

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return str(self.model["type"])

    @property
    def ids(self) -> dict[str, int]:
        """Ids of all tokens."""
        return {**self.pieces, **self.added}

    @property
    def unknown(self) -> int | None:
        """Id of the unknown token; None if there is none."""
        if self.kind == "Unigram":
            unknown_id: int | None = self.model.get("unk_id")
            return unknown_id
        token = self.model.get("unk_token") or ""
        return self.added.get(token, self.pieces.get(token))  # `ids` would merge the dictionaries


def open_tokenizer(
    files: Mapping[str, bytes],
    config: Mapping[str, Any],
    name: str,
    *,
    tokenizer_json_only: bool = False,
) -> Tokenizer:
    """Load a fast tokenizer as transformers does, without truncation and padding.

    Args:
        files: Contents of its files by name.
        config: The model's `config.json`, which may name the class.
        name: Name of the checkpoint, for error messages.
        tokenizer_json_only: Use only `tokenizer.json`, as static embeddings do.

    Raises:
        InvalidInput: No fast tokenizer can be loaded from the files.
    """
    from tokenizers import Tokenizer

    try:
        if tokenizer_json_only:
            tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        else:
            tokenizer = _load_with_transformers(files, config)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is not an Exception
        first = str(error).strip().split("\n")[0] or repr(error)
        message = f"{name}: no fast tokenizer can be loaded from {', '.join(sorted(files))}"
        if lacks_sentencepiece(files):
            raise InvalidInput(message, SENTENCEPIECE) from None
        raise InvalidInput(
            f"{message}: {first}",
            "save the model again with its tokenizer.json (transformers: save_pretrained)",
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def lacks_sentencepiece(names: Iterable[str]) -> bool:
    """Whether a tokenizer is only a sentencepiece model and its packages are not installed."""
    files = {*names}
    only_sentencepiece = "tokenizer.json" not in files and any(
        name.endswith(".model") for name in files
    )
    return only_sentencepiece and not (find_spec("sentencepiece") and find_spec("google"))


def _load_with_transformers(files: Mapping[str, bytes], config: Mapping[str, Any]) -> Tokenizer:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory, quiet():
        folder = Path(directory)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        write_json(folder / "config.json", dict(config))
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        backend: Tokenizer = tokenizer.backend_tokenizer
        return backend


def read_vocabulary(tokenizer: Tokenizer, files: Mapping[str, bytes], name: str) -> Vocabulary:
    """Read the vocabulary of a tokenizer.

    Args:
        tokenizer: From `open_tokenizer`.
        files: Contents of its files by name.
        name: Name of the checkpoint, for error messages.

    Raises:
        InvalidInput: An invalid `tokenizer.json`.
    """
    all_ids = tokenizer.get_vocab(with_added_tokens=True)
    data = None
    if "tokenizer.json" in files:
        data = _parse(files["tokenizer.json"], f"{name}: tokenizer.json")
        pieces = _pieces(data["model"])
        if {
            **pieces,
            **{t["content"]: all_ids.get(t["content"]) for t in data["added_tokens"]},
        } != all_ids:
            data = None  # transformers changes it when loading: use the loaded tokenizer
    data = data or _parse(tokenizer.to_str().encode(), f"{name}: its tokenizer")
    contents = [token["content"] for token in data["added_tokens"]]
    return Vocabulary(data, _pieces(data["model"]), {text: all_ids[text] for text in contents})


def _pieces(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {piece: i for i, (piece, _) in enumerate(vocab)}
    return dict(vocab)


def _parse(content: bytes, where: str) -> dict[str, Any]:
    """Parse a `tokenizer.json` and validate the fields that are used."""
    if len(content) > MAX_INDEX:
        raise InvalidInput(f"{where} has {len(content):,} bytes", f"at most {MAX_INDEX:,} are read")
    try:
        data: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON ({error})", "restore the original file") from None
    fault = _fault(data)
    if fault:
        raise InvalidInput(f"{where}: {fault}", "restore the original file")
    model = data["model"]
    if "type" not in model:  # files of early versions
        kind = "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"
        kind = "BPE" if "merges" in model else kind
        model["type"] = "Unigram" if isinstance(model["vocab"], list) else kind
    if model["type"] not in KINDS:
        raise InvalidInput(
            f"{where}: a model of type {model['type']!r}", "known: " + ", ".join(KINDS)
        )
    if model["type"] == "BPE":
        model["merges"] = [
            tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair)
            for pair in model.get("merges") or []
        ]
    return data


def _fault(data: Any) -> str:
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        return "it is not an object with a model"
    vocab = data["model"].get("vocab")
    if isinstance(vocab, dict):
        ids = list(vocab.values())
        if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) != len(ids):
            return "the ids of model.vocab are not distinct integers"
    elif not isinstance(vocab, list) or not all(map(_is_scored, vocab)):
        return "model.vocab is neither a map of ids nor a list of pieces with their scores"
    merges = data["model"].get("merges") or []
    if not isinstance(merges, list) or not all(map(_is_merge, merges)):
        return "model.merges is not a list of pairs"
    added = data.setdefault("added_tokens", [])
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added
    ):
        return "added_tokens is not a list of tokens"
    return ""


def _is_scored(piece: Any) -> bool:
    return (
        isinstance(piece, list) and len(piece) == 2
        and isinstance(piece[0], str) and isinstance(piece[1], int | float)
    )  # fmt: skip


def _is_merge(pair: Any) -> bool:
    if isinstance(pair, str):
        return " " in pair
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
