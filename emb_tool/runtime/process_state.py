"""Restores the process state that a job changes, for callers from Python."""

from __future__ import annotations

import logging
import os
import random
import resource
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

PARALLEL = "TOKENIZERS_PARALLELISM"
"""The variable of the tokenizers library that jobs set."""


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore random generators, environment, log levels and the limit of open files at the end.

    The generators of torch are restored if torch has been imported before the block.
    """
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(_set_variable, PARALLEL, os.environ.get(PARALLEL))
        logger = logging.getLogger("bitsandbytes.autograd")
        stack.callback(logger.setLevel, logger.level)
        files = resource.RLIMIT_NOFILE
        stack.callback(resource.setrlimit, files, resource.getrlimit(files))
        datasets = sys.modules.get("datasets")
        if datasets is None or not datasets.are_progress_bars_disabled():
            stack.callback(_show_bars_of_datasets)
        if "torch" in sys.modules:
            _restore_torch(stack)
        yield


def _set_variable(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def _show_bars_of_datasets() -> None:
    if datasets := sys.modules.get("datasets"):
        datasets.enable_progress_bars()


def _restore_torch(stack: ExitStack) -> None:
    """The generators of the CPU and of the devices that are in use."""
    import torch

    stack.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    else:  # when initialized, CUDA uses torch's seed
        stack.callback(torch.cuda.manual_seed_all, torch.initial_seed())
    if torch.backends.mps.is_available():
        stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
