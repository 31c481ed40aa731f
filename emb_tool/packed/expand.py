"""A packed checkpoint as a plain one; what headers can refuse comes before torch is imported."""

from __future__ import annotations

import hashlib
from pathlib import Path

from emb_tool.checkpoint.output import OutputFolder, remove_folder
from emb_tool.checkpoint.quantization import packed_modules
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.progress import Progress
from emb_tool.registry import match_name

DTYPES = ("fp32", "fp16", "bf16")


def expand(
    source: str | Path,
    out: str | Path,
    dtype: str = "fp32",
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a packed checkpoint as a plain one, tensor by tensor.

    Args:
        source: A packed checkpoint.
        out: The folder to be.
        dtype: Of every float weight of the main part: `fp32`, `fp16` or `bf16`.
        overwrite: Replace what is there.
        resume: Begin anew where a run was interrupted; leave alone what one has finished.
        progress: Shows a bar.

    Returns:
        The folder.

    Raises:
        InvalidInput: Nothing is packed, a format that is not known, bytes that do not fit it, a
            folder that is not empty.
    """
    match_name(dtype, DTYPES, "dtype")
    checkpoint = Checkpoint.open(source, need_tokenizer=False)
    if not packed_modules(checkpoint.config):
        raise InvalidInput(f"{checkpoint.name} holds no packed weights", "it is plain already")
    digest = hashlib.sha256(f"expand {checkpoint.fingerprint()} {dtype}".encode()).hexdigest()
    with OutputFolder(out, job_digest=digest, overwrite=overwrite, resume=resume) as folder:
        if folder.finished:
            return folder.path
        remove_folder(folder.partial, folder.state)
        from emb_tool.packed.plain import write_plain
        from emb_tool.runtime.device import DTYPES as TORCH_DTYPES

        wanted = next(torch_dtype for name, torch_dtype in TORCH_DTYPES.items() if name == dtype)
        write_plain(checkpoint, folder.partial, wanted, progress or Progress(0))
        return folder.seal()
