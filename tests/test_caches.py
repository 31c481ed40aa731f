"""Tests write nothing into the user's cache folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emb_tool.training.store import VectorStore


def test_libraries_cache_inside_the_checkout(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants
    import matplotlib

    monkeypatch.delenv("EMBTOOL_STORE")
    folders = [
        VectorStore.default_root(),
        datasets.config.HF_DATASETS_CACHE,
        huggingface_hub.constants.HF_HOME,
        huggingface_hub.constants.HF_HUB_CACHE,
        matplotlib.get_cachedir(),
        matplotlib.get_configdir(),
        os.environ["TRITON_CACHE_DIR"],
        os.environ["TORCHINDUCTOR_CACHE_DIR"],
    ]
    inside = pytestconfig.rootpath / ".pytest_cache"
    assert [str(path) for path in folders if not Path(path).is_relative_to(inside)] == []
