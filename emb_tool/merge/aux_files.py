"""Files other than weights: config, tokenizer and modules, each from its selected model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.elements import FLOATS, promote_dtypes
from emb_tool.checkpoint.files import write_json
from emb_tool.checkpoint.layout import Layout, write_layout
from emb_tool.checkpoint.reader import copy_aux_files

if TYPE_CHECKING:
    from emb_tool.merge.setup import Setup

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_aux_files(setup: Setup, folder: Path) -> None:
    """Write all files except weights: tokenizer, config, modules."""
    if setup.is_bare:
        return
    copy_aux_files(setup.copy_source("tokenizer"), folder)
    config: Mapping[str, Any] = merged_config(setup)
    if config:
        write_json(folder / "config.json", config)
    else:
        (folder / "config.json").unlink(missing_ok=True)
    write_layout(folder, merged_layout(setup))


def merged_config(setup: Setup) -> dict[str, Any]:
    """`config.json` of the output, with the dtype of its weights."""
    config = dict(setup.copy_source("config").config)
    dtypes = {slot.spec.dtype for slot in setup.slots if not slot.part} & set(FLOATS)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if dtypes and key in config:
        config[key] = _DTYPES[promote_dtypes(dtypes)]
    return config


def merged_layout(setup: Setup) -> Layout:
    """The modules of the output."""
    modules = setup.copy_source("modules").layout
    pooling = setup.copy_source("pooling").layout
    chosen = tuple(
        (pooling.find("Pooling") or m) if m.kind == "Pooling" else m for m in modules.modules
    )
    prompts = setup.copy_source("prompts").layout
    return replace(
        modules,
        modules=chosen,
        prompts=prompts.prompts,
        default_prompt_name=prompts.default_prompt_name,
        pooling=pooling.pooling,
        include_prompt=pooling.include_prompt,
        max_length=setup.copy_source("max_length").layout.max_length,
        similarity=setup.copy_source("similarity").layout.similarity,
    )
