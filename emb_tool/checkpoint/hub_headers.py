"""Models of the Hugging Face Hub without their weights: headers and small files only.

A weight file is represented by a sparse file in a temporary folder: the first bytes of the
original, which include the safetensors header, and a hole up to the original size. Names, shapes,
dtypes and sizes are those of the original; the data of the tensors are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from emb_tool.checkpoint.files import MAX_INDEX, resolve_inside
from emb_tool.checkpoint.source import AUX_PATTERNS, IGNORED, download_snapshot, resolve_source
from emb_tool.checkpoint.third_party_errors import format_error
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.hub_names import HubName, parse_hub_name

FIRST_BYTES = 100_000
"""Bytes of the first request for a weight file; most headers are shorter."""


@contextmanager
def resolve_headers(source: str) -> Iterator[Path]:
    """The local path of a source for reading headers; weights of the hub are not downloaded.

    Small files of a hub model are downloaded to the local cache. The path is the snapshot in the
    cache if that has the weight files too, else a temporary folder, which is removed at exit.
    Without a network, and for local paths, the path is that of `resolve_source`.

    Args:
        source: Folder, `.safetensors` file or hub id.

    Yields:
        The path; `.../snapshots/COMMIT` for a hub id.

    Raises:
        InvalidInput: There is no such source, or the hub does not send a header. Errors raised
            inside the context have the hub id in place of the path.
        RunFailed: The temporary folder cannot be written.
    """
    name = parse_hub_name(source)
    if name is None:
        yield resolve_source(source)
        return
    with TemporaryDirectory(prefix="embtool-", ignore_cleanup_errors=True) as temporary:
        path = _fetch_headers(name, Path(temporary).resolve()) or resolve_source(source)
        try:
            yield path
        except InvalidInput as error:
            hint = error.hint and error.hint.replace(str(path), source)
            raise InvalidInput(error.message.replace(str(path), source), hint) from error


def _fetch_headers(name: HubName, temporary: Path) -> Path | None:
    """The folder with headers, or the snapshot in the cache if that has all weight files.

    None if the hub is not to be asked, or cannot list the files of the model.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    if constants.HF_HUB_OFFLINE:
        return None
    snapshot = download_snapshot(name, AUX_PATTERNS)
    pinned = HubName(name.repo, snapshot.name)
    try:
        entries = list(HfApi().list_repo_tree(name.repo, revision=snapshot.name, recursive=True))
    except Exception:  # of httpx or httpx2, depending on the version of huggingface_hub
        return None
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    weights, aux, ignored = (
        {path for path in sizes if any(fnmatch(path, pattern) for pattern in patterns)}
        for patterns in (("*.safetensors",), AUX_PATTERNS, IGNORED)
    )
    weights, aux = weights - ignored, aux - ignored
    if weights and all((snapshot / path).is_file() for path in weights):
        return snapshot
    folder = temporary / "snapshots" / snapshot.name

    def write(path: str) -> None:
        target = resolve_inside(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path in aux:
            shutil.copyfile(snapshot / path, target)
            return
        with target.open("wb") as file:
            if path in weights and sizes[path]:
                file.write(_fetch_header(pinned, path, sizes[path]))
            file.truncate(sizes[path])

    # without safetensors, the names of all files tell what the model has instead
    try:
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(write, aux | weights if weights else sizes))
    except OSError as error:
        raise RunFailed(
            f"{name}: temporary files cannot be written to {temporary} ({error.strerror})",
            "set TMPDIR to a folder with more space",
        ) from None
    return folder


def _fetch_header(name: HubName, path: str, size: int) -> bytes:
    """The first bytes of a safetensors file of `size` bytes, including its header."""
    try:
        start = _fetch_start(name, path, min(size, FIRST_BYTES))
        length = 8 + int.from_bytes(start[:8], "little")
        if len(start) < length <= min(size, 8 + MAX_INDEX):
            start = _fetch_start(name, path, length)
    except Exception as error:  # of httpx or httpx2
        raise InvalidInput(
            f"{name.repo}: the hub does not send the header of {path} ({format_error(error)})",
            "try again later; a private model needs `hf auth login`",
        ) from None
    return start


def _fetch_start(name: HubName, path: str, count: int) -> bytes:
    """The first `count` bytes of a file on the hub, also if the server ignores byte ranges."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    headers = build_hf_headers()
    headers |= {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    url = hf_hub_url(name.repo, path, revision=name.revision)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    start = bytearray()
    with http_stream_backoff("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_raw():
            start += chunk
            if len(start) >= count:  # the rest of a whole file is not received
                break
    return bytes(start[:count])
