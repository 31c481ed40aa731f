"""Checkpoints on disk: headers, lazy reading, validation, streaming writing, module layout."""

from emb_tool.checkpoint.header import Header, read_header
from emb_tool.checkpoint.layout import Layout, read_layout, write_layout
from emb_tool.checkpoint.modules import ModuleSpec
from emb_tool.checkpoint.output import OutputFolder
from emb_tool.checkpoint.reader import (
    Checkpoint,
    check_finite,
    copy_aux_files,
    copy_module_weights,
)
from emb_tool.checkpoint.writer import ShardWriter

__all__ = [
    "Checkpoint",
    "Header",
    "Layout",
    "ModuleSpec",
    "OutputFolder",
    "ShardWriter",
    "check_finite",
    "copy_aux_files",
    "copy_module_weights",
    "read_header",
    "read_layout",
    "write_layout",
]
