"""Writes a merged checkpoint file by file."""

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
    """Merge the models of a setup with a method and write the checkpoint.

    Args:
        setup: The inputs; `plan` has been called.
        method: The method, not necessarily that of the job.
        folder: Output folder.
        state: Folder of `shards.json`, the list of finished files.
        progress: Receives progress and warnings.
        report: Receives facts and measures.
        metadata: Metadata of the file headers.
        threads: Number of threads [every core].
        chunk: Elements that a thread processes at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slots, order = order_models(setup, method)
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
        share = stream.rounding_error.share
        if share is not None:
            report.measures.append(Measure("lost by rounding", share, of="the merge's change"))
            if share > 0.01:
                progress.warn(
                    f"rounding to 16 bits loses {share:.1%} of the change made by the merge;"
                    " --out-dtype fp32 avoids it"
                )


def order_models(setup: Setup, method: Merge) -> tuple[Sequence[OutputTensor], list[int]]:
    """The slots with the models in canonical order, unless the method depends on the order.

    Floating-point sums depend on their order; the canonical order makes them independent of the
    user's order.
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
        slots: The output tensors, in order.
        folder: Output folder; parts are its subfolders.
        stream: The thread pool.
        order: The user's index of each of the slots' models.
        max_shard: Maximum bytes per file.
        done: Part to the files that an earlier run has finished.
        on_shard: Called with the part and name of each finished file.
        metadata: Metadata of each file's header.
    """
    with stream.running():
        tensors = {
            (slot.part, slot.spec.name): _tensor(method, slot, stream, order) for slot in slots
        }
        merged_tensors = [t for t in tensors.values() if t.slot.only is None]
        rule_of = method.prepare(merged_tensors)

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
                        rule = rule_of(tensor)
                    else:
                        raise InvalidInput(
                            f"{tensor.name} is {tensor.slot.spec.dtype} and differs between models:"
                            " integers cannot be averaged",
                            "leave out the model that differs",
                        )
                    tensor.write(rule, writer)

                for shard, names in writer.shards.items():
                    if shard not in finished:
                        with _flushed(writer):
                            stream.for_each(work, [tensors[part, name] for name in names])
                        writer.finish(shard)
                        on_shard(part, shard)


@contextmanager
def _flushed(writer: ShardWriter) -> Iterator[None]:
    """Flush to disk in the background during the merge."""
    done = Event()

    def flush() -> None:
        while not done.wait(0.5):
            writer.flush()

    with ThreadPoolExecutor(1, thread_name_prefix="flush") as executor:
        try:  # a signal may arrive as the thread starts
            future = executor.submit(flush)
            yield
        finally:
            done.set()
        future.result()  # raises disk errors


def _tensor(
    method: Merge, slot: OutputTensor, stream: Stream, order: Sequence[int]
) -> StreamedTensor:
    weights = method.tensor_weights(slot.name, slot.layer, len(order))[list(order)]
    return StreamedTensor(slot, weights, stream, method.by_rows)
