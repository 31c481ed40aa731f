"""What a merged file says of where it came from: the inputs' digests, method and seed."""

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
    """Threads that take the inputs' sha256 while their pages are in memory.

    `checkpoint.files` keeps what they find; what they can't read is told when it is asked for.
    """
    left = deque(checkpoints)

    def work() -> None:
        with suppress(IndexError, EmbToolError, OSError):
            while True:
                left.popleft().hashes()

    beside = max(1, min(len(left), thread_count() - 1))  # the merge comes first
    threads = [Thread(target=work, name="digest", daemon=True) for _ in range(beside)]
    for thread in threads:
        thread.start()
    return threads


def describe(setup: Setup, method: Merge, *, known: bool) -> dict[str, str]:
    """What a file's header says of its making: no paths, and no order that makes no difference.

    Args:
        setup: The inputs.
        method: How they are merged.
        known: Whether the inputs' digests are; zeros of the same length stand for them else.
    """
    prints = [c.fingerprint() if known else "0" * 64 for c in setup.models]
    order = list(range(len(prints)))
    if method.symmetric:
        order.sort(key=lambda i: prints[i])
    settings = dump(method)
    for selector, numbers in (settings.get("weights") or {}).items():
        settings["weights"][selector] = [numbers[i] for i in order]
    said = {
        "tool": f"embtool {__version__}",
        "method": json.dumps(settings),
        "models": ",".join(prints[i] for i in order),
        "seed": str(setup.job.seed),
    }
    if setup.base is not None:
        said["base"] = setup.base.fingerprint() if known else "0" * 64
    return said
