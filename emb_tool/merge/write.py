"""The writing of a merge: file by file, each tensor by its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from emb_tool.checkpoint.elements import FLOATS
from emb_tool.checkpoint.writer import ShardWriter
from emb_tool.errors import Refused
from emb_tool.merge.base import Merge, Rule
from emb_tool.merge.stream import Slot, Stream, StreamedTensor


def merge_tensors(
    method: Merge,
    slots: Sequence[Slot],
    folder: Path,
    stream: Stream,
    *,
    order: Sequence[int],
    max_shard: int,
    done: dict[str, list[str]],
    on_shard: Callable[[str, str], None],
    metadata: Mapping[str, str],
) -> None:
    """Merge and write every tensor.

    Args:
        method: The method.
        slots: What is written, in order.
        folder: Where; parts are folders in it.
        stream: The threads.
        order: The user's number of each of the slots' models.
        max_shard: Bytes of one file at most.
        done: Part to the files that an earlier run has finished.
        on_shard: Called with part and file of each file that is whole and on disk.
        metadata: Entries of each file's header.
    """
    with stream.running():
        tensors = {
            (slot.part, slot.spec.name): _tensor(method, slot, stream, order) for slot in slots
        }
        free = [t for t in tensors.values() if t.slot.only is None]
        find = method.begin(free)

        for part in dict.fromkeys(slot.part for slot in slots):
            specs = [slot.spec for slot in slots if slot.part == part]
            finished = done.get(part, [])
            with ShardWriter(
                folder / part, specs, max_shard=max_shard, done=finished, metadata=metadata
            ) as writer:

                def work(tensor: StreamedTensor, writer: ShardWriter = writer) -> None:
                    rule: Rule
                    if tensor.slot.only is not None:
                        rule = tensor.slot.only
                    elif tensor.are_equal():
                        rule = 0
                    elif tensor.slot.spec.dtype in FLOATS:
                        rule = find(tensor)
                    else:
                        raise Refused(
                            f"{tensor.name} is {tensor.slot.spec.dtype} and not the same in all"
                            " models: whole numbers have no average",
                            "leave out the model that has another one",
                        )
                    tensor.write(rule, writer)

                for shard, names in writer.shards.items():
                    if shard not in finished:
                        with _flushed(writer):
                            stream.each(work, [tensors[part, name] for name in names])
                        writer.finish(shard)
                        on_shard(part, shard)


@contextmanager
def _flushed(writer: ShardWriter) -> Iterator[None]:
    """Write back to disk while the merge goes on, not after it."""
    done = Event()

    def flush() -> None:
        while not done.wait(0.5):
            writer.flush()

    with ThreadPoolExecutor(1, thread_name_prefix="flush") as beside:
        try:  # a signal may come as the thread starts
            future = beside.submit(flush)
            yield
        finally:
            done.set()
        future.result()  # a disk that is full or broken is told once


def _tensor(method: Merge, slot: Slot, stream: Stream, order: Sequence[int]) -> StreamedTensor:
    weights = method.weights_of(slot.name, slot.layer, len(order))[list(order)]
    return StreamedTensor(slot, weights, stream, method.by_rows)
