"""An embedding model ready to run: texts in, vectors out, in batches of equal cost.

The model itself is a `SentenceTransformer`, so every checkpoint that sentence-transformers opens is
run as it runs it. What is ours is the feeding: token ids are made once, batches are filled to a
budget of tokens with texts of like length, and memory that runs out halves the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from emb_tool.checkpoint.layout import Layout
from emb_tool.checkpoint.prompts import ROLES
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.third_party_errors import translate_errors
from emb_tool.data.batches import plan_batches
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.model.loading import embedding_dimension, load, save
from emb_tool.model.tokenization import Tokenization
from emb_tool.progress import quiet
from emb_tool.runtime.device import SMALL, Runtime


class Encoder(Tokenization):
    """A checkpoint on a device.

    Attributes:
        dim: Width of its vectors.
        normalizes: Whether its vectors have norm 1.
        sharded: Whether its weights are cut over the processes, which then compute together.
        truncated: Texts given to `encode` so far that were longer than is read.
    """

    sharded = False
    truncated = 0

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        runtime: Runtime,
        max_length: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(model, checkpoint, runtime, max_length, layout or checkpoint.layout)
        self.normalizes = self.layout.normalizes
        self._fits = math.inf  # padded tokens of a batch that are known to fit in memory
        dim = embedding_dimension(model) or self.layout.dim
        if dim is None:
            dim = int(self.encode(["width"]).shape[1])
        if not dim:
            raise InvalidInput(
                f"{checkpoint.name}: its vectors have no dimensions", "restore its files"
            )
        self.dim = dim

    @classmethod
    def open(
        cls,
        source: str | Path | Checkpoint,
        runtime: Runtime,
        *,
        max_length: int | None = None,
        training: bool = False,
    ) -> Self:
        """Load a checkpoint.

        Args:
            source: A folder, a hub id, or a checkpoint already opened.
            runtime: Device and dtype; weights are float32 where they are to be trained.
            max_length: Tokens read of a text, at most the model's own limit.
            training: Keep the weights in float32.

        Raises:
            InvalidInput: What `Checkpoint.open` and `load` refuse.
        """
        checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
        layout = checkpoint.layout
        dtype = torch.float32 if training else runtime.dtype
        substitute = 0.0 if training else math.nan
        model = load(checkpoint, runtime.device, dtype, substitute=substitute)
        if training and layout.truncate_dim:  # a student is trained in its whole width
            model.truncate_dim = None
            layout = replace(layout, truncate_dim=None)
        model.eval()
        return cls(model, checkpoint, runtime, max_length, layout)

    def shard(self) -> None:
        """Cut the weights over the processes, where there are several.

        From here on every process must call `encode` whenever one does, be it with no texts.

        Raises:
            InvalidInput: A Router, whose halves would be cut apart; fp16, whose scaled gradients
                torch does not look through where they are cut.
        """
        if self.runtime.world == 1:
            return
        if self.runtime.dtype == torch.float16:
            raise InvalidInput("--fsdp does not go with fp16", "use --dtype bf16 or fp32")
        if type(self.model[0]).__name__ == "Router":
            raise InvalidInput(
                f"{self.checkpoint.name}: --fsdp does not cut a Router", "leave --fsdp out"
            )
        self.runtime.shard(self.model)
        self.sharded = True

    def route(self, name: str | None) -> Encoder:
        """The encoder of such texts where the model is a Router, else this one.

        Args:
            name: Of a prompt; `query` and `document` are the tasks that sentence-transformers'
                `encode_query` and `encode_document` set, with any other it is `encode`, without a
                task.

        Raises:
            InvalidInput: The Router has no route for them.
        """
        router = self.model[0]
        if type(router).__name__ != "Router":
            return self
        with quiet():
            from sentence_transformers import SentenceTransformer

            route = self._route_of(router, name if name in ROLES else None)
            modules = [*router.sub_modules[route], *list(self.model)[1:]]
            model = SentenceTransformer(modules=modules, device=str(self.runtime.device))
        model.eval()
        return Encoder(model, self.checkpoint, self.runtime, self.max_length, self.layout)

    def _route_of(self, router: Any, task: str | None) -> str:
        """Where a Router sends texts, by the order in which it asks."""
        mappings, routes = router.route_mappings, router.sub_modules
        for key in ((task, "text"), (task, None), (None, "text"), (None, None)):
            if key in mappings:
                return str(mappings[key])
        default = None if task else router.default_route
        for route in (task, "text", default):
            if route in routes:
                return str(route)
        raise InvalidInput(
            f"{self.checkpoint.name}: its Router has no route for "
            f"{f'the task {task!r}' if task else 'texts without a task'}, but " + ", ".join(routes),
            "name the folder of one of its routes"
            if task
            else "name a task with --prompt-name query or document",
        )

    def forward(self, features: dict[str, Any]) -> Tensor:
        """Vectors of one batch, (batch, dim).

        Raises:
            InvalidInput: The checkpoint's modules fail, or give something else.
        """
        texts = len(features["offsets" if self.static else "input_ids"])
        with self.running(features):
            vectors: Tensor = self.model(features)["sentence_embedding"]
            vectors = vectors[:, : self.layout.truncate_dim]  # as sentence-transformers: at the end
        shape, width = (*vectors.shape,), getattr(self, "dim", None)  # not before it is run once
        if len(shape) != 2 or shape[0] != texts or width not in (None, shape[1]):
            raise InvalidInput(
                f"{self.checkpoint.name}: its modules give vectors of shape {shape}, its configs"
                f" say {(texts, width)}",
                "correct the widths in its modules' configs, or restore the original files",
            )
        return vectors

    def running(self, features: dict[str, Any]) -> AbstractContextManager[None]:
        """What the checkpoint's own modules raise on a batch is a refusal of the checkpoint.

        Not where they wait for other processes: what ends one of these ends all of them.
        """
        if self.sharded:
            return nullcontext()
        shape = (*features["input_ids"].shape,)
        return translate_errors(
            f"{self.checkpoint.name}: its forward pass fails on token ids of shape {shape}",
            "restore its original files; where it fails on long texts alone, lower --max-length",
        )

    def encode(
        self,
        texts: Sequence[str],
        prompt: str = "",
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order.

        Args:
            texts: The texts.
            prompt: Put before each; `prompt(name)` knows the model's own.
            batch_tokens: Padded tokens of a batch; None leaves them to the device.
            progress: Called with the number of texts done in each batch.

        Returns:
            (texts, dim) float32.

        Raises:
            RunFailed: Memory that runs out for a single text.
        """
        ids, cut = self.tokens(texts, prompt)
        self.truncated += int(cut.sum())
        return self.encode_ids(
            ids, self.prompt_length(prompt), batch_tokens=batch_tokens, progress=progress
        )

    def encode_ids(
        self,
        ids: Sequence[np.ndarray],
        prompt_length: int = 0,
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of tokenized texts, in their order: see `encode`."""
        # weights put together in inference mode could not be trained on afterwards
        mode = torch.no_grad() if self.sharded else torch.inference_mode()
        with mode, self.runtime.translate_peer_errors():
            # cut over processes, memory that runs out ends the job
            budget = batch_tokens or (SMALL if self.sharded else self.runtime.batch_tokens)
            return self._encode_ids(ids, prompt_length, budget, progress)

    def _encode_ids(
        self,
        ids: Sequence[np.ndarray],
        prompt_length: int,
        batch_tokens: int,
        progress: Callable[[int], None] | None,
    ) -> np.ndarray:
        lengths = np.array([len(row) for row in ids], np.int64)
        vectors: np.ndarray | None = None
        coming: list[tuple[np.ndarray, Callable[[], np.ndarray]]] = []

        def take(batch: np.ndarray, fetched: Callable[[], np.ndarray]) -> None:
            nonlocal vectors
            rows = fetched()
            if vectors is None:
                vectors = np.empty((len(ids), rows.shape[1]), np.float32)
            vectors[batch] = rows
            if progress:
                progress(len(batch))

        training = self.model.training
        self.model.eval()
        todo = list(reversed(plan_batches(lengths, batch_tokens, None)))
        more = int(self.runtime.all_reduce_max(len(todo))[0]) - len(todo) if self.sharded else 0
        try:
            while todo:
                batch, out = todo.pop(), None
                cost = len(batch) * int(lengths[batch[0]])  # the longest comes first
                if cost > self._fits and len(batch) > 1:
                    todo += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                    continue
                try:
                    out = self.forward(self.collate([ids[i] for i in batch], prompt_length))
                except Exception as error:
                    if not Runtime.is_out_of_memory(error):
                        raise
                    if len(batch) == 1 or self.sharded:
                        what = "one text" if len(batch) == 1 else f"{len(batch)} texts"
                        raise RunFailed(
                            f"memory ran out for {what} of {lengths[batch[0]]} tokens",
                            "lower --max-length",
                        ) from error
                if out is None:  # not before here does the error let go of what the pass had made
                    self._fits = cost // 2
                    todo.append(batch)
                    self.runtime.free_memory()
                    continue
                coming.append((batch, self.runtime.fetch(out.float())))
                if len(coming) > 1:  # the device is at work on this batch while the last is read
                    take(*coming.pop(0))
            for last in coming:
                take(*last)
            for _ in range(more):  # others go on, and need our part of the weights
                self.forward(self.collate([np.zeros(1, np.int32)]))
        finally:
            self.model.train(training)
        return vectors if vectors is not None else np.zeros((0, self.dim), np.float32)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write it as a checkpoint: see `emb_tool.model.loading.save`."""
        save(self.model, self.layout, self.checkpoint, folder, dtype)
