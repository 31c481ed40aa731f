"""Models from files and to files: what sentence-transformers loads, and what it will load again."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emb_tool.checkpoint.layout import Layout, needs_hub, static_table, write_layout
from emb_tool.checkpoint.meta_model import check_extent, meta_kwargs
from emb_tool.checkpoint.quantization import unpacked_specs
from emb_tool.checkpoint.reader import Checkpoint, copy_aux_files
from emb_tool.checkpoint.third_party_errors import format_error, is_library_error
from emb_tool.checkpoint.tokenizer_files import SENTENCEPIECE, lacks_sentencepiece
from emb_tool.checkpoint.unwrapped_copy import unwrapped_folder
from emb_tool.errors import EmbToolError, InvalidInput, RunFailed
from emb_tool.install import require_extra
from emb_tool.model.loaded_weights import loading_reports, refuse_unloaded
from emb_tool.progress import quiet
from emb_tool.runtime.device import Runtime


def load(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    substitute: float = math.nan,
) -> Any:
    """The `SentenceTransformer` of a checkpoint; code of the checkpoint's own is never run.

    Args:
        checkpoint: Opened.
        device: Where to.
        dtype: Of its weights; None leaves them as they are stored.
        substitute: What weights that no file has and no vector needs (a pooler's) are set to; NaN
            shows in vectors that need them after all, 0 can be trained beside and written.

    Raises:
        InvalidInput: A config that describes far more weights than there are, weights that would be
            random, tensors that no module uses, and whatever sentence-transformers cannot load.
        RunFailed: Memory that runs out; models that transformers gives no loading report of.
    """
    config, layout = checkpoint.config, checkpoint.layout
    if needs_hub(config, layout):
        import emb_tool.hub  # noqa: F401  (teaches the libraries the format)
    if config and layout.family != "static" and checkpoint.tensors:
        check_extent(config, unpacked_specs(config, checkpoint.tensors).values(), checkpoint.name)
    with quiet():
        from sentence_transformers import SentenceTransformer

        kwargs: dict[str, Any] = {"dtype": dtype} if dtype else {}
        quantized = config.get("quantization_config")
        if isinstance(quantized, dict) and quantized.get("quant_method") == "bitsandbytes":
            require_extra("bnb", checkpoint.name)
            kwargs["device_map"] = {"": str(device)}  # else they go to a GPU, whatever is asked for
        elif device.type == "meta":  # names and shapes alone
            kwargs |= meta_kwargs()
        model_folders = {m.path for m in layout.all_modules if m.kind == "Transformer"}
        try:
            modules = _static(checkpoint)
            with unwrapped_folder(checkpoint) as folder, loading_reports() as loaded:
                model = SentenceTransformer(
                    None if modules else str(folder),
                    modules=modules,
                    device=str(device),
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs=kwargs,
                )
            if len(loaded) < len(model_folders):
                raise RunFailed(
                    f"{checkpoint.name}: transformers gave no report of which weights it loaded",
                    "please report this, with the versions that `embtool doctor` prints",
                )
            for one in loaded:
                refuse_unloaded(
                    one, checkpoint.name, pooler=layout.reads_pooler, substitute=substitute
                )
            model.truncate_dim = layout.truncate_dim  # versions before 5.4 do not read it
            reader: Any = model[0]
            reader.tokenizer.encode("")  # its template's tokens are missed in use alone
        except EmbToolError:
            raise
        # of what a stranger's files can hold, the libraries mind little: any error may come
        except BaseException as error:
            if not is_library_error(error):
                raise
            if Runtime.is_out_of_memory(error):
                raise RunFailed(
                    f"{checkpoint.name}: memory ran out while loading it", "use a larger device"
                ) from error
            beside = (checkpoint.path / layout.main).glob("*")
            unread = lacks_sentencepiece(path.name for path in beside)
            raise InvalidInput(
                f"{checkpoint.name}: sentence-transformers cannot load it: {format_error(error)}",
                SENTENCEPIECE if unread else "check the folder with: embtool inspect",
            ) from error
    return model.to(dtype) if dtype else model


def _static(checkpoint: Checkpoint) -> list[torch.nn.Module] | None:
    """The modules of a static model of whose table sentence-transformers makes something else.

    Integers it refuses: their scale is not stored with them; to a model whose vectors are
    normalized it does not matter. Before 6.2 it passes over model2vec's rows by token (`mapping`)
    and weights of tokens.
    """
    layout, tensors = checkpoint.layout, checkpoint.tensors
    table, kinds = static_table(tensors), [module.kind for module in layout.modules]
    if table is None or kinds not in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
        return None
    folded = {"mapping", "weights"} & {*tensors} if table.name == "embeddings" else set()
    integer = table.dtype.startswith(("I", "U"))
    if (integer and not layout.normalizes) or not (integer or folded):
        return None
    from sentence_transformers.models import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    folder = checkpoint.path / layout.modules[0].path
    rows = checkpoint.tensor(table.name).float()
    if "mapping" in folded:
        rows = rows[checkpoint.tensor("mapping").long()]
    if "weights" in folded:
        rows = rows * checkpoint.tensor("weights").float()[:, None]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    static = StaticEmbedding(tokenizer, embedding_weights=rows)
    return [static, *(Normalize() for _ in layout.modules[1:])]


def embedding_dimension(model: Any) -> int | None:
    """Width of a `SentenceTransformer`'s vectors; version 5.4 renamed the method."""
    if hasattr(model, "get_embedding_dimension"):
        ask = model.get_embedding_dimension
    else:
        ask = model.get_sentence_embedding_dimension
    width: int | None = ask()
    return width


def save(
    model: Any, layout: Layout, source: Checkpoint, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint that sentence-transformers and transformers open.

    Args:
        model: A `SentenceTransformer`.
        layout: Of its modules.
        source: Where its config and its tokenizer are from.
        folder: An existing folder.
        dtype: Of the weights; None keeps each as it is in memory.
    """
    from safetensors.torch import save_file

    def cast(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value.detach()
            .to("cpu", dtype if dtype and value.is_floating_point() else value.dtype)
            .contiguous()
            for name, value in state.items()
        }

    copy_aux_files(source, folder)
    written = write_layout(folder, layout)
    for module, spec in zip(model, written.modules, strict=True):
        target = folder / spec.path
        if spec.kind == "Transformer":
            # transformers undoes what it renamed or fused at load; its config.json stays away,
            # since the original, edited, spells every setting for older versions too
            weights = folder / ".weights"
            body = module.auto_model
            with quiet():
                body.save_pretrained(weights, state_dict=cast(body.state_dict()))
            for path in sorted(weights.glob("*.safetensors*")):
                path.replace(target / path.name)
            shutil.rmtree(weights)
        elif state := cast(module.state_dict()):
            target.mkdir(parents=True, exist_ok=True)
            save_file(state, str(target / "model.safetensors"), metadata={"format": "pt"})
    readable(folder)


def readable(folder: Path) -> None:
    """Give weight files the mode that other files get: safetensors keeps them to the owner."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)
