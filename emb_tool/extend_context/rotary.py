"""Rotary settings in a config: reads all spellings, writes both current ones.

transformers 5 uses `rope_parameters`, by layer type if layers differ; older versions read
`rope_theta` and `rope_scaling` and silently use defaults if these are missing. Both are written,
with the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from emb_tool.checkpoint.modules import hidden_size
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.extended_check import RotaryFrequencies
from emb_tool.extend_context.base import Extension, ExtensionContext
from emb_tool.extend_context.family import Kind
from emb_tool.extend_context.limits import sliding_window_size
from emb_tool.progress import quiet

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope

GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""Layers with full attention, and layers with a sliding window, which are never scaled."""

THETAS = {
    "nomic_bert": 1000.0, "jina_embeddings_v3": 20000.0, "gte": 160000.0, "modernbert": 160000.0,
    "gemma3_text": 1000000.0,
}  # fmt: skip
"""Default theta of transformers for configs without one; 10,000 for other types."""

_LAYERED = {
    "modernbert": {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"},
    "gemma3_text": {GLOBAL: "rope_theta", LOCAL: "rope_local_base_freq"},
}
"""Keys of theta by layer type in older versions."""


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of the layers with full attention, including `rope_theta`."""
    type_ = str(config.get("model_type"))
    parameters = config.get("rope_parameters") or {}
    if isinstance(parameters.get(GLOBAL), Mapping):
        parameters = parameters[GLOBAL]
    key = _LAYERED.get(type_, {}).get(GLOBAL, "rope_theta")
    settings = {**parameters, **(config.get("rope_scaling") or {})}
    settings.setdefault("rope_theta", config.get(key) or THETAS.get(type_, 10000.0))
    settings.setdefault("rope_type", settings.pop("type", "default"))
    return settings


def read_rope(config: Mapping[str, Any], context: ExtensionContext) -> Rope:
    """Rotary positions of a config.

    Raises:
        InvalidInput: They are already scaled.
    """
    from emb_tool.ops.rotary import Rope

    settings = read_settings(config)
    if settings["rope_type"] != "default":
        raise InvalidInput(
            f"its rotary positions are already scaled (rope_type {settings['rope_type']!r})",
            "use the model as it was trained",
        )
    return Rope(float(settings["rope_theta"]), head_dim(config, settings), *context.span)


def head_dim(config: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Number of dimensions of a head with rotary positions."""
    heads = config.get("num_attention_heads") or 1
    width = config.get("head_dim") or (hidden_size(config) or 0) // heads
    fraction = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(width * fraction)


class RotaryPositions(Extension):
    """Rotary positions with lower frequencies."""

    kinds: ClassVar[tuple[Kind, ...]] = ("rotary",)

    def frequencies(self, rope: Rope) -> Frequencies:
        """Radians per token of each pair, (d/2,) float64."""
        raise NotImplementedError

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """The settings with which transformers computes these frequencies."""
        raise NotImplementedError

    def factor(self, rope: Rope) -> float:
        """Factor of cosine and sine."""
        return 1.0

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Write the settings, and return the expected frequencies."""
        rope = read_rope(draft.config, context)
        write_settings(draft, context, self.parameters(rope))
        return expected(self.frequencies(rope), self.factor(rope))

    def extend_preserving_short(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Like `extend`, but inputs up to the original length stay bit-identical."""
        from emb_tool.ops.rotary import plain_frequencies

        rope = read_rope(draft.config, context)
        write_settings(draft, context, longrope_equivalent(rope, self.parameters(rope)))
        return expected(self.frequencies(rope), short=plain_frequencies(rope))


def longrope_equivalent(rope: Rope, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`longrope` settings with the frequencies of another scheme for long inputs only.

    f_j = θ^(-2j/d) / long_factor_j beyond the original length, θ^(-2j/d) up to it.

    Args:
        rope: The model's positions.
        settings: Settings of the scheme for long inputs.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from emb_tool.ops.rotary import long_factors

    with quiet():
        config = LlamaConfig(
            hidden_size=rope.dim, num_attention_heads=1, max_position_embeddings=rope.target,
            rope_parameters=dict(settings),
        )  # fmt: skip
        frequencies = LlamaRotaryEmbedding(config).inv_freq
    factors = long_factors(rope, frequencies)
    return {
        "rope_type": "longrope", "rope_theta": rope.theta, "factor": rope.scale,
        "original_max_position_embeddings": rope.original, "attention_factor": 1.0,
        "short_factor": [1.0] * len(factors), "long_factor": factors,
    }  # fmt: skip


def write_settings(
    draft: CheckpointEditor, context: ExtensionContext, settings: Mapping[str, Any]
) -> None:
    """Write both spellings of rotary settings, and the maximum length."""
    config, type_ = draft.config, str(draft.config.get("model_type"))
    theta = settings["rope_theta"]
    scaled = settings["rope_type"] != "default"
    fraction = read_settings(config).get("partial_rotary_factor")
    parameters = {**settings, **({"partial_rotary_factor": fraction} if fraction else {})}
    rope_scaling = {key: value for key, value in settings.items() if key != "rope_theta"}
    config["max_position_embeddings"] = context.target
    if scaled and "original_max_position_embeddings" in settings:
        # transformers 4 uses only this key to switch between short and long factors
        config["original_max_position_embeddings"] = context.original
    layered = _LAYERED.get(type_)
    if layered is None:
        config |= {"rope_theta": theta, "rope_parameters": parameters}
        config["rope_scaling"] = rope_scaling if scaled else None
    else:
        rope_parameters = config.get("rope_parameters") or {}
        local = rope_parameters.get(LOCAL) or {
            "rope_type": "default", "rope_theta": config.get(layered[LOCAL], 10000.0),
        }  # fmt: skip
        config["rope_parameters"] = {GLOBAL: parameters, LOCAL: local}
        config |= {layered[GLOBAL]: theta, layered[LOCAL]: local["rope_theta"]}
        # a flat rope_scaling would also apply to ModernBERT's local layers
        config["rope_scaling"] = rope_scaling if scaled and type_ == "gemma3_text" else None
        if scaled and type_ == "modernbert":
            draft.notes.append(
                "transformers before 5 does not support this for ModernBERT and would not scale; "
                "-m ntk is supported everywhere"
            )
    if scaled:
        draft.notes.append(
            f"rope_type {settings['rope_type']} is defined by transformers: other servers may "
            "interpret it differently; ntk is supported everywhere"
        )
    window = sliding_window_size(config)
    if window and window < context.target:
        config["sliding_window"] = context.target  # if omitted, the type's default would apply
        draft.notes.append(f"sliding_window {window:,} is raised to {context.target:,}")


def expected(
    frequencies: Frequencies, factor: float = 1.0, short: Frequencies | None = None
) -> RotaryFrequencies:
    """The frequencies that the check expects from the reloaded model.

    Args:
        frequencies: Frequencies for inputs beyond the original length.
        factor: Factor of cosine and sine.
        short: Frequencies for inputs up to it, if they differ.
    """
    return RotaryFrequencies(
        short=(frequencies if short is None else short).tolist(),
        long=frequencies.tolist(),
        attention_factor=factor,
    )
