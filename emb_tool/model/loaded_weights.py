"""Whether transformers used every tensor of a checkpoint and found every weight of its model.

It initializes missing weights at random, ignores unknown tensors, and only warns. Its own loading
report lists both exactly, renamings and conversions included, so nothing is guessed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from emb_tool.checkpoint.completeness import ADAPTER, DOWNLOAD_AGAIN, UNMERGED, summarize_names
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LM_HEAD = re.compile(r"^(lm_head|cls|lm_predictions|mask_predictions|embed_out)\.")
"""Heads of language models, in today's classes and in earlier ones (DeBERTa's, GPT-NeoX's)."""

_POOLER = re.compile(r"^(\w+\.)?pooler\.")
"""Reads token 0 of the last hidden state, which sentence-transformers pools itself."""

_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias)$")
"""Computed by the class, whatever a file holds. (`attn.bias`, GPT-2's mask, is not in this list: in
other models that is the bias of a linear layer, and GPT-2's class itself ignores it.)"""


class LoadingReport(NamedTuple):
    """A model that transformers has loaded.

    Args:
        model: The model.
        report: Its `output_loading_info`: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
    """

    model: PreTrainedModel
    report: Mapping[str, Any]


@contextmanager
def loading_reports() -> Iterator[list[LoadingReport]]:
    """Every model that transformers loads in this block, with its report.

    sentence-transformers calls `from_pretrained` inside and hands no report on, so the method is
    wrapped for the time of the block.
    """
    from transformers import PreTrainedModel

    loaded: list[LoadingReport] = []
    original = PreTrainedModel.__dict__["from_pretrained"]

    @wraps(original.__func__)
    def reporting(cls: Any, *args: Any, **kwargs: Any) -> Any:
        model, report = original.__func__(cls, *args, **kwargs | {"output_loading_info": True})
        loaded.append(LoadingReport(model, report))
        return model

    setattr(PreTrainedModel, "from_pretrained", classmethod(reporting))  # noqa: B010
    try:
        yield loaded
    finally:
        setattr(PreTrainedModel, "from_pretrained", original)  # noqa: B010


def refuse_unloaded(
    loaded: LoadingReport,
    name: str,
    *,
    pooler: bool = False,
    head: bool = False,
    substitute: float = math.nan,
) -> None:
    """Refuse a model with weights that are in no file, or files with tensors that it did not use.

    Harmless are: a pooler, unless its output is read; buffers that the class computes; heads of
    language models, and those that a class of transformers puts on this model, which are left out
    for embeddings. Tied copies, and what a class itself declares optional, are not in the report.
    Harmless weights that are missing are overwritten, so that no random number stays in the model:
    by NaN, vectors that depend on one after all are not finite, and fail instead of agreeing with
    those of another model that was initialized alike.

    Args:
        loaded: The model, and transformers' report of it.
        name: The checkpoint's.
        pooler: Whether the pooler's output is read.
        head: Whether the language model's head is read.
        substitute: What missing weights that are harmless are set to.

    Raises:
        InvalidInput: Names the first few tensors, and how many there are.
    """
    import torch

    harmless = [_BUFFERS, *(() if pooler else (_POOLER,)), *(() if head else (_LM_HEAD,))]

    def matters(key: str) -> bool:
        return not any(pattern.search(key) for pattern in harmless)

    report = loaded.report
    missing: set[str] = {key for key in report["missing_keys"] if matters(key)}
    missing |= {str(key[0]) for key in report["mismatched_keys"]}
    unused: set[str] = {key for key in report["unexpected_keys"] if matters(key)}
    if unused:
        for head_names in _heads(loaded.model):
            unused -= head_names
            if not unused:
                break
    if missing or unused:
        kind = type(loaded.model).__name__
        sentences = []
        if missing:
            sentences.append(
                f"weights of {kind} that are in no file, and would be random:"
                f" {summarize_names(missing)}"
            )
        if unused:
            sentences.append(
                f"tensors of the files that {kind} does not use: {summarize_names(unused)}"
            )
        adapted = any(map(ADAPTER.search, unused))
        raise InvalidInput(
            f"{name}: {'; '.join(sentences)}", UNMERGED if adapted else DOWNLOAD_AGAIN
        )
    parameters = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for key in parameters.keys() & set(report["missing_keys"]):
            if parameters[key].is_floating_point():
                parameters[key].fill_(substitute)


def _heads(model: PreTrainedModel) -> Iterator[set[str]]:
    """Names of the tensors that transformers' classes with a head put around a model."""
    import torch

    for cls in _classes(model.config):
        names: set[str] = set()
        # a config of one class may well be none for another
        with suppress(Exception), torch.device("meta"):
            names = {*cls(model.config).state_dict()}
        yield {name for name in names if not name.startswith(f"{cls.base_model_prefix}.")}


def _classes(config: Any) -> list[Any]:
    """Transformers' own classes with a head for a config; first those that it names itself."""
    import transformers
    from transformers.models.auto import modeling_auto

    stated = [getattr(transformers, str(name), None) for name in config.architectures or ()]
    models = [cls for cls in stated if _is_model(cls)]
    for name, mapping in sorted(vars(modeling_auto).items()):
        if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING") and type(config) in mapping:
            classes = mapping[type(config)]
            models += classes if isinstance(classes, tuple) else (classes,)
    return list(dict.fromkeys(models))


def _is_model(cls: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(cls, type) and issubclass(cls, PreTrainedModel)
