"""The only code that touches weight files: headers, lazy reading, streaming writing, layout."""

from emb_tool.checkpoint.header import Header, read_header
from emb_tool.checkpoint.layout import Layout, read_layout, write_layout
from emb_tool.checkpoint.modules import ModuleSpec
from emb_tool.checkpoint.output import OutputFolder
from emb_tool.checkpoint.reader import (
    Checkpoint,
    check_finite,
    copy_module_weights,
    copy_side_files,
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
    "copy_module_weights",
    "copy_side_files",
    "read_header",
    "read_layout",
    "write_layout",
]
