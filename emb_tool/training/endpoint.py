"""A teacher that is an OpenAI-compatible `/v1/embeddings` endpoint.

`--teacher URL#MODEL`, for example `http://localhost:8000/v1#BAAI/bge-m3`: the part before `#` is
the base URL of OpenAI's clients, to which `/embeddings` is appended.
"""

from __future__ import annotations

import base64
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emb_tool.errors import InvalidInput
from emb_tool.training.embedding_cache import EmbeddingCacheKey
from emb_tool.training.embeddings_client import Client, Rejected
from emb_tool.training.endpoint_address import KEY_VARIABLE, find_key, parse_endpoint
from emb_tool.training.teacher import TextRefused, has_unit_norms, unit

_PROBES = ("the", "Where does the river rise?", "iron and steel", "A law passed in 1871.")
_ONE_MODEL = "check that the address serves a single model"
_AS_FLOATS = 'configure the server to support encoding_format "float" or "base64", as OpenAI does'
_PLAUSIBLE_MAX = (1e-3, 1e6)
"""Range of the largest absolute value of an embedding: float16, float64 or int8 data decoded as
float32 are outside it."""


class EndpointTeacher:
    """Vectors from an endpoint.

    Attributes:
        dim: Dimensions of its vectors, from a first request.
        normalizes: Whether the vectors of that request have norm 1, within 0.01; if so, all
            vectors are normalized.
        name: `URL#MODEL`.
        shard_texts: Texts per shard; a kill can lose one shard, so fewer than for a local teacher.
        min_cosine: Minimum cosine of two vectors of one text; servers use low precision.
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
        """Request a few vectors to determine their dimension and norm.

        Args:
            teacher: `URL#MODEL`.
            query_prompt: Prefix of each query.
            document_prompt: Prefix of each document.
            key_variable: Environment variable with the API key, see `find_key`.
            store_dtype: `float16` or `float32`.
            batch: Texts per request.
            concurrency: Maximum number of concurrent requests.
            attempts: Maximum number of attempts per request.
            timeout: Seconds without data from the server after which a request fails.
            backoff: Seconds before the first retry, doubled for each further retry.
            on_warning: Called with warnings.

        Raises:
            InvalidInput: An invalid address, an unset variable, an invalid response.
            RunFailed: The endpoint cannot be reached.
        """
        address = parse_endpoint(teacher)
        self.name = str(address)
        self._prompts = {"query": query_prompt, "document": document_prompt}
        self._batch, self._concurrency = batch, concurrency
        self._store_dtype = store_dtype
        key = find_key(address, key_variable, on_warning or (lambda sentence: None))
        first_attempts = min(attempts, 3)  # fail early on a wrong address
        self._client = Client(
            address, key, attempts=first_attempts, timeout=timeout, backoff=backoff
        )
        self.dim = 0
        sample = self._probe()
        self._client.attempts = attempts
        self.dim = sample.shape[1]
        self.normalizes = has_unit_norms(np.linalg.norm(sample, axis=1))

    def _probe(self) -> np.ndarray:
        """The first vectors; as floats where the server has no base64, or another than OpenAI's."""
        try:
            return self._vectors(_PROBES)
        except TextRefused:
            self._client.encoding = "float"
            return self._vectors(_PROBES)

    def space(self, role: str) -> EmbeddingCacheKey:
        """Cache key of the role's vectors; the server's pooling and precision are unknown."""
        return EmbeddingCacheKey(
            teacher=self.name,
            prompt=self._prompts[role],
            pooling="",
            max_length=None,
            dtype=self._store_dtype,
            dim=self.dim,
            normalized=self.normalizes,
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
            InvalidInput: A response with a wrong count or dimension, with NaN, or a status 4xx.
            RunFailed: A request failed `attempts` times.
        """
        prompt = self._prompts[role]
        vectors = self._vectors([prompt + text for text in texts], progress)
        return unit(vectors) if self.normalizes else vectors

    def _vectors(
        self, inputs: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Send all inputs in concurrent batches."""
        pending: queue.SimpleQueue[int] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[int, np.ndarray | BaseException]] = queue.SimpleQueue()
        starts = range(0, len(inputs), self._batch)
        for start in starts:
            pending.put(start)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    start = pending.get_nowait()
                except queue.Empty:
                    return
                try:
                    results.put(
                        (start, self._split(inputs[start : start + self._batch], start, stop))
                    )
                except BaseException as error:  # raised again in the main thread
                    results.put((start, error))
                    return

        # daemon threads: Ctrl-C must not wait for pending responses
        for _ in range(min(self._concurrency, len(starts))):
            threading.Thread(target=work, daemon=True).start()
        out: np.ndarray | None = None
        try:
            for _ in starts:
                start, result = results.get()
                if isinstance(result, BaseException):
                    raise result
                if out is None:
                    out = np.empty((len(inputs), result.shape[1]), np.float32)
                if result.shape[1] != out.shape[1]:
                    raise InvalidInput(
                        f"{self.name}: vectors of {result.shape[1]} and {out.shape[1]} dimensions",
                        _ONE_MODEL,
                    )
                out[start : start + len(result)] = result
                if progress:
                    progress(len(result))
        finally:
            stop.set()
        return out if out is not None else np.zeros((0, self.dim), np.float32)

    def _split(self, inputs: Sequence[str], start: int, stop: threading.Event) -> np.ndarray:
        """Vectors of one batch; a rejected batch is bisected until the invalid text is found."""
        try:
            return self._check(self._client.embed(inputs, stop), inputs, start)
        except Rejected as rejected:
            if len(inputs) == 1:
                hint = "check the model's name, and that the text is short enough for it"
                raise TextRefused(self.name, start, inputs[0], str(rejected), hint) from None
        half = len(inputs) // 2
        return np.concatenate(
            [
                self._split(inputs[:half], start, stop),
                self._split(inputs[half:], start + half, stop),
            ]
        )

    def _check(self, response: Any, inputs: Sequence[str], start: int) -> np.ndarray:
        """The vectors of a response in the order of the inputs."""
        try:
            rows = response["data"]
            lists = [_decode_embedding(row["embedding"]) for row in rows]
            order = [row.get("index", i) for i, row in enumerate(rows)]
            is_complete = sorted(order) == list(range(len(inputs)))
            width = self.dim or (0 if lists[0] is None else len(lists[0]))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise InvalidInput(
                f"{self.name}: the response has no embeddings",
                "check that it is the address of an OpenAI-compatible /v1/embeddings endpoint",
            ) from None
        if not is_complete:
            raise InvalidInput(
                f"{self.name}: {len(rows)} vectors with indices {str(order)[:40]} for"
                f" {len(inputs)} texts",
                "the endpoint does not follow the protocol",
            )
        out = np.empty((len(inputs), width), np.float32)
        for i, numbers in zip(order, lists, strict=True):
            if numbers is None:
                why = "its vector is a string that is not base64 of float32 numbers"
                raise TextRefused(self.name, start + i, inputs[i], why, _AS_FLOATS)
            try:
                vector: np.ndarray = np.asarray(numbers, np.float32)
            except (TypeError, ValueError):
                vector = np.full(width, np.nan)  # nested lists, strings
            if vector.shape != (width,):
                why = f"its vector has {vector.size} dimensions, others {width}"
                raise TextRefused(self.name, start + i, inputs[i], why, _ONE_MODEL)
            if not np.isfinite(vector).all():
                why = "its vector has NaN, infinity or values that are not numbers"
                raise TextRefused(self.name, start + i, inputs[i], why)
            out[i] = vector
        return out


def _decode_embedding(embedding: Any) -> Any:
    """Decode one embedding of a response.

    Base64 is of little-endian float32, as OpenAI's. Some servers support only one of the two.

    Args:
        embedding: A list of numbers, or base64.

    Returns:
        The list unchanged, or the (dim,) float32 array of base64; None for any other string.
    """
    if not isinstance(embedding, str):
        return embedding
    try:
        vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    except ValueError:  # not base64, or not a multiple of 4 bytes
        return None
    largest = np.abs(vector).max(initial=0.0)
    zero = len(vector) > 0 and largest == 0  # the vector of an empty text in some models
    return vector if zero or _PLAUSIBLE_MAX[0] < largest < _PLAUSIBLE_MAX[1] else None
