"""From texts to what a model takes: prompts, token ids, padded batches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from emb_tool.checkpoint.layout import Layout
from emb_tool.checkpoint.length_checks import check_max_length
from emb_tool.checkpoint.prompts import prompt_text
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.batches import Tokens, pad
from emb_tool.errors import InvalidInput
from emb_tool.progress import quiet
from emb_tool.runtime.device import Runtime
from emb_tool.windows import SETTING, frame


class Tokenization:
    """What a model reads, and how much of it.

    Attributes:
        model: The `SentenceTransformer` (untyped: its modules are of many classes).
        checkpoint: Where it came from.
        layout: What its modules are; the checkpoint's own unless it was built upon.
        max_length: Tokens read of a text; None if there is no limit.
        static: Whether it is a table of tokens and no more.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        runtime: Runtime,
        max_length: int | None,
        layout: Layout,
    ) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.runtime = runtime
        self.layout = layout
        check_max_length(max_length, layout, checkpoint.name)
        self.max_length = max_length or layout.max_length
        self.static = type(model[0]).__name__ == "StaticEmbedding"
        self._tokenizer = self.model[0].tokenizer
        self._prompt_lengths: dict[str, int] = {}

    def prompt(self, name: str | None) -> str:
        """The text put before an input: see `emb_tool.checkpoint.prompts.prompt_text`."""
        return prompt_text(self.layout, name, self.checkpoint.name)

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[np.ndarray]:
        """Token ids of each text, special tokens included, cut at `max_length`: see `tokens`."""
        return self.tokens(texts, prompt).ids

    def tokens(self, texts: Sequence[str], prompt: str = "") -> Tokens:
        """Token ids of each text, special tokens included, and which of them were cut.

        Args:
            texts: The texts.
            prompt: Put before each; its tokens count.
        """
        inputs = [prompt + text for text in texts]
        if not inputs:
            return Tokens([], np.zeros(0, bool))
        most = self.max_length or sys.maxsize
        if self.static:
            encodings = self._tokenizer.encode_batch(inputs, add_special_tokens=False)
            rows = [encoding.ids for encoding in encodings]
            cut = [len(ids) > most for ids in rows]
            return Tokens([np.array(ids[:most], np.int32) for ids in rows], np.array(cut))
        limit = {"truncation": True, "max_length": most} if self.max_length else {}
        with quiet():
            batch = self._tokenizer(
                inputs, return_attention_mask=False, return_token_type_ids=False, **limit
            )
            rows = batch["input_ids"]
            cut = [len(ids) >= most for ids in rows]
            for i in np.flatnonzero(cut):  # or just as long as the limit
                if batch.encodings:
                    cut[i] = bool(batch.encodings[i].overflowing)
                else:
                    cut[i] = len(self._tokenizer(inputs[i])["input_ids"]) > most
        return Tokens([np.array(ids, np.int32) for ids in rows], np.array(cut))

    def text(self, ids: np.ndarray) -> str:
        """About what a text was before it became token ids, for a message."""
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes, less a closing special token; 0 where nobody asks.

        Pooling asks where it leaves the prompt out, windows where they repeat it.
        """
        if not prompt or (self.layout.include_prompt and not hasattr(self.model[0], SETTING)):
            return 0
        if prompt not in self._prompt_lengths:
            ids = self.tokenize([prompt])[0]
            closed = len(ids) > 0 and int(ids[-1]) in set(self._tokenizer.all_special_ids)
            self._prompt_lengths[prompt] = len(ids) - closed
        return self._prompt_lengths[prompt]

    def explain_not_finite(self, text: str, prompt: str = "") -> tuple[str, str]:
        """Why the vector of a text holds NaN or infinity, and what to do.

        The largest over no tokens is minus infinity, whatever the weights are: a text has none
        where the tokenizer makes none, or those of the prompt alone, which are not pooled.

        Args:
            text: The text.
            prompt: Put before it.

        Returns:
            The end of a sentence, "" where nothing is known, and a hint.
        """
        if "max" in self.layout.pooling:
            pooled = len(self.tokenize([text], prompt)[0]) - self.prompt_length(prompt)
            if pooled <= 0:
                return (
                    ": it has no tokens, and max pooling makes no vector of none",
                    "leave such texts out, empty ones first of all",
                )
        return "", "try --dtype fp32; if that does not help, the model's weights are broken"

    def frame(self, prompt: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Token ids that stand before and behind every text: special ones, and the prompt's."""
        return frame(lambda texts: self.tokenize(texts, prompt))

    def collate(
        self, ids: Sequence[np.ndarray], prompt_length: int = 0, length: int = 0
    ) -> dict[str, Any]:
        """The model's input for one batch.

        Args:
            ids: Token ids of each text.
            prompt_length: Tokens that pooling leaves out.
            length: Tokens to pad to at least.

        Returns:
            `input_ids` and `attention_mask` (batch, longest) int64, padded on the tokenizer's
            side; for static models flat `input_ids` and `offsets`.
        """
        if self.static:
            flat = np.concatenate(ids) if len(ids) else np.zeros(0, np.int32)
            arrays = {"input_ids": flat, "offsets": np.cumsum([0, *map(len, ids[:-1])])}
        else:
            left = self._tokenizer.padding_side == "left"
            padded, mask = pad(ids, self._tokenizer.pad_token_id or 0, left, length)
            arrays = {"input_ids": padded, "attention_mask": mask}
        self._check_ids(arrays["input_ids"])
        features: dict[str, Any] = {
            key: self.runtime.move(torch.from_numpy(value.astype(np.int64, copy=False)))
            for key, value in arrays.items()
        }
        return {**features, "prompt_length": prompt_length} if prompt_length else features

    def _check_ids(self, ids: np.ndarray) -> None:
        """Refuse a tokenizer whose ids go beyond the table: on a GPU that kills the process."""
        rows = getattr(self._lookup(), "num_embeddings", None)
        if rows is not None and ids.size and int(ids.max()) >= rows:
            raise InvalidInput(
                f"{self.checkpoint.name}: its tokenizer gives id {int(ids.max())}, its table has"
                f" {rows} rows",
                "the tokenizer is another model's: copy it from where the model came from",
            )

    def token_table(self) -> torch.nn.Embedding | torch.nn.EmbeddingBag | None:
        """The module that looks tokens up; None where a model has none of the usual kind."""
        table = self._lookup()
        return table if isinstance(table, torch.nn.Embedding | torch.nn.EmbeddingBag) else None

    def _lookup(self) -> Any:
        first = self.model[0]
        return first.embedding if self.static else first.auto_model.get_input_embeddings()
