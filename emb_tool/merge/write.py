"""The writing of a merge: file by file, each tensor by its rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from emb_tool.checkpoint.elements import FLOATS
from emb_tool.checkpoint.files import read_json, write_atomically
from emb_tool.checkpoint.writer import ShardWriter
from emb_tool.errors import InvalidInput
from emb_tool.merge.aux_files import write_aux_files
from emb_tool.merge.base import Merge, Rule
from emb_tool.merge.model_order import canonical_order
from emb_tool.merge.stream import CHUNK, OutputTensor, Stream, StreamedTensor, thread_count
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report

if TYPE_CHECKING:
    from emb_tool.merge.setup import Setup


def write_merge(
    setup: Setup,
    method: Merge,
    folder: Path,
    state: Path,
    progress: Progress,
    report: Report | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    chunk: int = CHUNK,
) -> None:
    """Merge the models of a setup with a method and write the checkpoint, as a search does, too.

    Args:
        setup: The inputs; `plan` has been called.
        method: How; not necessarily the job's.
        folder: Where to write.
        state: Holds `shards.json`, the files that are finished.
        progress: Where bars and warnings go.
        report: Takes up facts.
        metadata: Entries of the headers.
        threads: How many [every core].
        chunk: Elements that a thread takes at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slots, order = ordered(setup, method)
    total = sum(slot.spec.nbytes for slot in slots)
    done = read_json(state, "shards.json") or {}
    write_aux_files(setup, folder)

    def on_shard(part: str, shard: str) -> None:
        done.setdefault(part, []).append(shard)
        write_atomically(state / "shards.json", json.dumps(done))

    with progress.task("merging", total, "B") as advance:
        stream = Stream(
            setup.job.seed, threads or thread_count(), chunk, advance, report is not None
        )
        merge_tensors(
            method, slots, folder, stream, order=order,
            max_shard=setup.job.max_shard, done=done, on_shard=on_shard,
            metadata=metadata or {},
        )  # fmt: skip
    if report is not None:
        report.facts["tensors"] = len(slots)
        share = stream.loss.share
        if share is not None:
            report.measures.append(Measure("lost by rounding", share, of="the merge's change"))
            if share > 0.01:
                progress.warn(
                    f"rounding to 16 bits takes {share:.1%} of what the merge changed; --out-dtype"
                    " fp32 keeps it"
                )


def ordered(setup: Setup, method: Merge) -> tuple[Sequence[OutputTensor], list[int]]:
    """The slots with the models in an order that does not depend on the user's, if none is meant.

    Sums of floats depend on their order, so models come in that of their content.
    """
    if not method.symmetric:
        return setup.slots, list(range(len(setup.models)))
    order = canonical_order(setup.slots)
    return [
        slot
        if slot.only is not None
        else replace(slot, models=tuple(slot.models[i] for i in order))
        for slot in setup.slots
    ], order


def merge_tensors(
    method: Merge,
    slots: Sequence[OutputTensor],
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
                        raise InvalidInput(
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


def _tensor(
    method: Merge, slot: OutputTensor, stream: Stream, order: Sequence[int]
) -> StreamedTensor:
    weights = method.weights_of(slot.name, slot.layer, len(order))[list(order)]
    return StreamedTensor(slot, weights, stream, method.by_rows)
