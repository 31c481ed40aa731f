"""Metadata in the headers of merged files: the inputs' digests, method and seed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from threading import Thread

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.config import dump
from emb_tool.errors import EmbToolError
from emb_tool.merge.base import Merge
from emb_tool.merge.setup import Setup
from emb_tool.merge.stream import thread_count
from emb_tool.version import __version__


def hash_in_background(checkpoints: Iterable[Checkpoint]) -> list[Thread]:
    """Start threads that compute the inputs' SHA-256 while the files are in the page cache.

    `checkpoint.files` caches the digests; read errors are raised when a digest is requested.
    """
    queue = deque(checkpoints)

    def hash_next() -> None:
        with suppress(IndexError, EmbToolError, OSError):
            while True:
                queue.popleft().hashes()

    count = max(1, min(len(queue), thread_count() - 1))  # the merge comes first
    threads = [Thread(target=hash_next, name="digest", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def describe(setup: Setup, method: Merge, *, known: bool) -> dict[str, str]:
    """Metadata of a merge: no paths, and digests in sorted order if the method is symmetric.

    Args:
        setup: The inputs.
        method: The merge method.
        known: Whether the inputs' digests are known; otherwise zeros of the same length.
    """
    digests = [c.fingerprint() if known else "0" * 64 for c in setup.models]
    order = list(range(len(digests)))
    if method.symmetric:
        order.sort(key=lambda i: digests[i])
    settings = dump(method)
    for selector, numbers in (settings.get("weights") or {}).items():
        settings["weights"][selector] = [numbers[i] for i in order]
    metadata = {
        "tool": f"embtool {__version__}",
        "method": json.dumps(settings),
        "models": ",".join(digests[i] for i in order),
        "seed": str(setup.job.seed),
    }
    if setup.base is not None:
        metadata["base"] = setup.base.fingerprint() if known else "0" * 64
    return metadata
