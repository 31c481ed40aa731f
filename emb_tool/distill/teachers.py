"""Opens the teacher: a checkpoint on the device, or an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emb_tool.distill.setup import Setup
from emb_tool.progress import Progress

if TYPE_CHECKING:
    from emb_tool.runtime.device import Runtime
    from emb_tool.training.teacher import Teacher


def open_teacher(setup: Setup, runtime: Runtime, progress: Progress) -> Teacher:
    """Open the teacher of a job.

    Args:
        setup: The inputs of the job; the teacher is not a file of vectors.
        runtime: Device and processes.
        progress: Receives warnings.
    """
    from emb_tool.model.encoder import Encoder
    from emb_tool.training.teacher import CheckpointTeacher

    job, prompts = setup.job, setup.prompts
    if setup.teacher is not None:
        encoder = Encoder.open(setup.teacher, runtime, max_length=job.teacher_max_length)
        if job.fsdp:
            encoder.shard()
        return CheckpointTeacher(
            encoder,
            query_prompt=prompts["query"],
            document_prompt=prompts["document"],
            store_dtype=job.store_dtype,
        )
    from emb_tool.training.endpoint import EndpointTeacher

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
    return endpoint
