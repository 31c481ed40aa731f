"""Whoever answers as the teacher: a checkpoint on the device, or an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emb_tool.distill.setup import Setup
from emb_tool.progress import Progress
from emb_tool.training.endpoint import EndpointTeacher

if TYPE_CHECKING:
    from emb_tool.runtime import Runtime
    from emb_tool.training.teacher import Teacher


def open_teacher(
    setup: Setup, runtime: Runtime, progress: Progress
) -> tuple[Teacher, dict[str, str]]:
    """The teacher of a job, and the prompt of each role.

    Args:
        setup: What the job names; not a file of vectors.
        runtime: Where it runs.
        progress: Where warnings go.
    """
    from emb_tool.encoder import Encoder
    from emb_tool.training.teacher import CheckpointTeacher

    job = setup.job
    prompts = {"query": job.query_prompt or "", "document": job.document_prompt or ""}
    if setup.teacher is not None:
        encoder = Encoder.open(setup.teacher, runtime, max_length=job.teacher_max_length)
        own_query, own_document = encoder.prompt("query"), encoder.prompt(job.prompt_name)
        if job.fsdp:
            encoder.shard()
        if job.query_prompt is None:
            prompts["query"] = own_query
        if job.document_prompt is None:
            prompts["document"] = own_document
        return (
            CheckpointTeacher(
                encoder,
                query_prompt=prompts["query"],
                document_prompt=prompts["document"],
                store_dtype=job.store_dtype,
            ),
            prompts,
        )
    endpoint = EndpointTeacher(
        job.teacher,
        query_prompt=prompts["query"],
        document_prompt=prompts["document"],
        key_variable=job.api_key_env,
        store_dtype=job.store_dtype,
        concurrency=job.concurrency,
        on_warning=progress.warn,
    )
    setup.check_head(job.teacher_dim or endpoint.dim)
    return endpoint, prompts
