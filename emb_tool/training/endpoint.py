"""A teacher behind an OpenAI-compatible `/v1/embeddings` endpoint.

`--teacher URL#MODEL`, for example `http://localhost:8000/v1#BAAI/bge-m3`: the part before `#` is
what OpenAI's clients call the base URL, `/embeddings` is added to it.
"""

from __future__ import annotations

import base64
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emb_tool.errors import InvalidInput
from emb_tool.training.embeddings_client import Client, Rejected
from emb_tool.training.endpoint_address import KEY_VARIABLE, find_key, parse_endpoint
from emb_tool.training.teacher import TextRefused, has_unit_norms, unit
from emb_tool.training.vector_space import EmbeddingCacheKey

_PROBES = ("the", "Where does the river rise?", "iron and steel", "A law passed in 1871.")
_ONE_MODEL = "is there one model behind that address?"
_AS_FLOATS = 'set the server to answer encoding_format "float" or "base64" as OpenAI does'
_PLAUSIBLE = (1e-3, 1e6)
"""Between these lies the largest number of an embedding: float16, float64 or bytes that are read
as float32 miss it."""


class EndpointTeacher:
    """Vectors from an endpoint.

    Attributes:
        dim: Width of its vectors, from a first request.
        normalises: Whether the vectors of that request have norm 1, within 0.01; each is then
            brought to norm 1 exactly.
        name: `URL#MODEL`.
        shard_texts: Texts of one shard: what a kill may lose, so fewer than for a local teacher.
        min_cosine: Agreement that vectors of one text must have; servers batch in low precision.
    """

    shard_texts = 1024
    min_cosine = 0.99

    def __init__(
        self,
        teacher: str,
        *,
        query_prompt: str = "",
        document_prompt: str = "",
        key_variable: str = KEY_VARIABLE,
        store_dtype: str = "float16",
        batch: int = 64,
        concurrency: int = 8,
        attempts: int = 8,
        timeout: float = 60.0,
        backoff: float = 0.5,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        """Ask the endpoint for a few vectors, to learn their width and norm.

        Args:
            teacher: `URL#MODEL`.
            query_prompt: Put before each query.
            document_prompt: Put before each document.
            key_variable: Environment variable that holds the key, see `find_key`.
            store_dtype: `float16` or `float32`.
            batch: Texts of one request.
            concurrency: Requests under way at a time.
            attempts: Times that one request is sent before the run gives up.
            timeout: Seconds without a byte from the server after which a request has failed.
            backoff: Seconds of the first wait; each further wait is twice as long.
            on_warning: Called with sentences for the user.

        Raises:
            InvalidInput: A bad address, a variable that is not set, an answer that is no embedding.
            RunFailed: An endpoint that cannot be reached.
        """
        address = parse_endpoint(teacher)
        self.name = str(address)
        self._prompts = {"query": query_prompt, "document": document_prompt}
        self._batch, self._concurrency = batch, concurrency
        self._store_dtype = store_dtype
        key = find_key(address, key_variable, on_warning or (lambda sentence: None))
        few = min(attempts, 3)  # a wrong address should be known soon
        self._client = Client(address, key, attempts=few, timeout=timeout, backoff=backoff)
        self.dim = 0
        sample = self._probe()
        self._client.attempts = attempts
        self.dim = sample.shape[1]
        self.normalises = has_unit_norms(np.linalg.norm(sample, axis=1))

    def _probe(self) -> np.ndarray:
        """The first vectors; as floats where the server has no base64, or another than OpenAI's."""
        try:
            return self._vectors(_PROBES)
        except TextRefused:
            self._client.encoding = "float"
            return self._vectors(_PROBES)

    def space(self, role: str) -> EmbeddingCacheKey:
        """The space of that role's vectors; what the server does to texts is not known."""
        return EmbeddingCacheKey(
            teacher=self.name,
            prompt=self._prompts[role],
            pooling="",
            max_length=None,
            dtype=self._store_dtype,
            dim=self.dim,
            normalised=self.normalises,
            compute="",
        )

    def vectors(
        self,
        texts: Sequence[str],
        role: str,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: see `Teacher.vectors`.

        Raises:
            InvalidInput: An answer of another count or width, with NaN, or 4xx.
            RunFailed: A request that failed `attempts` times.
        """
        prompt = self._prompts[role]
        vectors = self._vectors([prompt + text for text in texts], progress)
        return unit(vectors) if self.normalises else vectors

    def _vectors(
        self, inputs: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Send all inputs, some batches at a time."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, np.ndarray | BaseException]] = queue.SimpleQueue()
        starts = range(0, len(inputs), self._batch)
        for start in starts:
            todo.put(start)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    start = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((start, self._split(inputs[start : start + self._batch], start, stop)))
                except BaseException as error:  # raised again in the main thread
                    done.put((start, error))
                    return

        # daemons: Ctrl-C must not wait for answers that are under way
        for _ in range(min(self._concurrency, len(starts))):
            threading.Thread(target=work, daemon=True).start()
        out: np.ndarray | None = None
        try:
            for _ in starts:
                start, got = done.get()
                if isinstance(got, BaseException):
                    raise got
                if out is None:
                    out = np.empty((len(inputs), got.shape[1]), np.float32)
                if got.shape[1] != out.shape[1]:
                    raise InvalidInput(
                        f"{self.name}: vectors of {got.shape[1]} and of {out.shape[1]} numbers",
                        _ONE_MODEL,
                    )
                out[start : start + len(got)] = got
                if progress:
                    progress(len(got))
        finally:
            stop.set()
        return out if out is not None else np.zeros((0, self.dim), np.float32)

    def _split(self, inputs: Sequence[str], start: int, stop: threading.Event) -> np.ndarray:
        """One batch; what the server rejects is halved until the text at fault is found."""
        try:
            return self._check(self._client.embed(inputs, stop), inputs, start)
        except Rejected as rejected:
            if len(inputs) == 1:
                hint = "is the model's name right, and the text short enough for it?"
                raise TextRefused(self.name, start, inputs[0], str(rejected), hint) from None
        half = len(inputs) // 2
        return np.concatenate(
            [
                self._split(inputs[:half], start, stop),
                self._split(inputs[half:], start + half, stop),
            ]
        )

    def _check(self, answer: Any, inputs: Sequence[str], start: int) -> np.ndarray:
        """The vectors of an answer in the order of the inputs."""
        try:
            rows = answer["data"]
            lists = [_numbers(row["embedding"]) for row in rows]
            order = [row.get("index", i) for i, row in enumerate(rows)]
            whole = sorted(order) == list(range(len(inputs)))
            width = self.dim or (0 if lists[0] is None else len(lists[0]))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise InvalidInput(
                f"{self.name}: the answer holds no embeddings",
                "is it the address of an OpenAI-compatible /v1/embeddings endpoint?",
            ) from None
        if not whole:
            raise InvalidInput(
                f"{self.name}: {len(rows)} vectors, numbered {str(order)[:40]}, for"
                f" {len(inputs)} texts",
                "the endpoint is at fault",
            )
        out = np.empty((len(inputs), width), np.float32)
        for i, numbers in zip(order, lists, strict=True):
            if numbers is None:
                why = "its vector is a text that is not base64 of float32 numbers"
                raise TextRefused(self.name, start + i, inputs[i], why, _AS_FLOATS)
            try:
                vector: np.ndarray = np.asarray(numbers, np.float32)
            except (TypeError, ValueError):
                vector = np.full(width, np.nan)  # nested lists, words
            if vector.shape != (width,):
                why = f"its vector has {vector.size} numbers, others {width}"
                raise TextRefused(self.name, start + i, inputs[i], why, _ONE_MODEL)
            if not np.isfinite(vector).all():
                why = "its vector holds NaN, infinity or what is no number"
                raise TextRefused(self.name, start + i, inputs[i], why)
            out[i] = vector
        return out


def _numbers(stated: Any) -> Any:
    """The numbers of one embedding as an answer states it.

    Base64 is of little-endian float32, as OpenAI's. Some servers answer always in one of the two.

    Args:
        stated: A list of numbers, or base64.

    Returns:
        What was stated, or the (dim,) float32 array that base64 holds; None for any other text.
    """
    if not isinstance(stated, str):
        return stated
    try:
        vector = np.frombuffer(base64.b64decode(stated, validate=True), "<f4")
    except ValueError:  # no base64, or not of whole numbers
        return None
    largest = np.abs(vector).max(initial=0.0)
    zero = len(vector) > 0 and largest == 0  # some models' vector of an empty text
    return vector if zero or _PLAUSIBLE[0] < largest < _PLAUSIBLE[1] else None
