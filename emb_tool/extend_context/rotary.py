"""Rotary settings in a config: read from every spelling, written in both that libraries read.

transformers 5 keeps them in `rope_parameters`, by type of layer where layers differ; versions
before it read `rope_theta` and `rope_scaling` and take their defaults where these are missing, in
silence. Both are written, and they agree.
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
from emb_tool.extend_context.limits import window_of
from emb_tool.progress import quiet

if TYPE_CHECKING:
    from emb_tool.ops.rotary import Frequencies, Rope

GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""Layers that see the whole text, and layers that see a window: those are never scaled."""

THETAS = {
    "nomic_bert": 1000.0, "jina_embeddings_v3": 20000.0, "gte": 160000.0, "modernbert": 160000.0,
    "gemma3_text": 1000000.0,
}  # fmt: skip
"""What transformers takes where a config of that type names no theta; 10,000 for the others."""

_LAYERED = {
    "modernbert": {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"},
    "gemma3_text": {GLOBAL: "rope_theta", LOCAL: "rope_local_base_freq"},
}
"""How older versions spell the theta of each type of layer."""


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of the layers that see everything, `rope_theta` among them."""
    type_ = str(config.get("model_type"))
    held = config.get("rope_parameters") or {}
    if isinstance(held.get(GLOBAL), Mapping):
        held = held[GLOBAL]
    key = _LAYERED.get(type_, {}).get(GLOBAL, "rope_theta")
    settings = {**held, **(config.get("rope_scaling") or {})}
    settings.setdefault("rope_theta", config.get(key) or THETAS.get(type_, 10000.0))
    settings.setdefault("rope_type", settings.pop("type", "default"))
    return settings


def rope_of(config: Mapping[str, Any], context: ExtensionContext) -> Rope:
    """A config's rotary positions.

    Raises:
        InvalidInput: They are scaled already.
    """
    from emb_tool.ops.rotary import Rope

    settings = read_settings(config)
    if settings["rope_type"] != "default":
        raise InvalidInput(
            f"its rotary positions are scaled already (rope_type {settings['rope_type']!r})",
            "begin with the model as it was trained",
        )
    return Rope(float(settings["rope_theta"]), head_dim(config, settings), *context.span)


def head_dim(config: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Dimensions of a head that are turned."""
    heads = config.get("num_attention_heads") or 1
    width = config.get("head_dim") or (hidden_size(config) or 0) // heads
    part = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(width * part)


class RotaryPositions(Extension):
    """RotaryPositions positions that turn more slowly."""

    kinds: ClassVar[tuple[Kind, ...]] = ("rotary",)

    def frequencies(self, rope: Rope) -> Frequencies:
        """Radians per token of each pair, (d/2,) float64."""
        raise NotImplementedError

    def parameters(self, rope: Rope) -> dict[str, Any]:
        """The settings by which transformers computes them."""
        raise NotImplementedError

    def factor(self, rope: Rope) -> float:
        """By what cosine and sine are multiplied."""
        return 1.0

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Write the settings."""
        rope = rope_of(draft.config, context)
        write_settings(draft, context, self.parameters(rope))
        return expected(self.frequencies(rope), self.factor(rope))

    def carried(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """The same with inputs up to the original length left as they were, to the bit."""
        from emb_tool.ops.rotary import plain_frequencies

        rope = rope_of(draft.config, context)
        write_settings(draft, context, longrope_equivalent(rope, self.parameters(rope)))
        return expected(self.frequencies(rope), short=plain_frequencies(rope))


def longrope_equivalent(rope: Rope, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `longrope` by which long inputs turn as others say, and short ones as before.

    f_j = θ^(-2j/d) / long_factor_j beyond the original length, θ^(-2j/d) up to it.

    Args:
        rope: The model's positions.
        settings: Of the scheme for long inputs.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from emb_tool.ops.rotary import long_factors

    with quiet():
        config = LlamaConfig(
            hidden_size=rope.dim, num_attention_heads=1, max_position_embeddings=rope.target,
            rope_parameters=dict(settings),
        )  # fmt: skip
        wanted = LlamaRotaryEmbedding(config).inv_freq
    factors = long_factors(rope, wanted)
    return {
        "rope_type": "longrope", "rope_theta": rope.theta, "factor": rope.scale,
        "original_max_position_embeddings": rope.original, "attention_factor": 1.0,
        "short_factor": [1.0] * len(factors), "long_factor": factors,
    }  # fmt: skip


def write_settings(
    draft: CheckpointEditor, context: ExtensionContext, settings: Mapping[str, Any]
) -> None:
    """Both spellings of rotary settings, and the length that goes with them."""
    config, type_ = draft.config, str(draft.config.get("model_type"))
    theta = settings["rope_theta"]
    scaled = settings["rope_type"] != "default"
    part = read_settings(config).get("partial_rotary_factor")
    whole = {**settings, **({"partial_rotary_factor": part} if part else {})}
    old = {key: value for key, value in settings.items() if key != "rope_theta"}
    config["max_position_embeddings"] = context.target
    if scaled and "original_max_position_embeddings" in settings:
        # transformers 4 switches longrope by this one alone
        config["original_max_position_embeddings"] = context.original
    layered = _LAYERED.get(type_)
    if layered is None:
        config |= {"rope_theta": theta, "rope_parameters": whole}
        config["rope_scaling"] = old if scaled else None
    else:
        held = config.get("rope_parameters") or {}
        local = held.get(LOCAL) or {
            "rope_type": "default", "rope_theta": config.get(layered[LOCAL], 10000.0),
        }  # fmt: skip
        config["rope_parameters"] = {GLOBAL: whole, LOCAL: local}
        config |= {layered[GLOBAL]: theta, layered[LOCAL]: local["rope_theta"]}
        # a flat rope_scaling would reach ModernBERT's local layers, too
        config["rope_scaling"] = old if scaled and type_ == "gemma3_text" else None
        if scaled and type_ == "modernbert":
            draft.notes.append(
                "transformers before 5 cannot express this for ModernBERT and would not scale; "
                "-m ntk means the same everywhere"
            )
    if scaled:
        draft.notes.append(
            f"rope_type {settings['rope_type']} is for transformers: other servers read it "
            "otherwise; ntk means the same everywhere"
        )
    window = window_of(config)
    if window and window < context.target:
        config["sliding_window"] = context.target  # left out, it would be the type's default
        draft.notes.append(
            f"sliding_window {window:,} would have hidden what stands before it: "
            f"now {context.target:,}"
        )


def expected(
    frequencies: Frequencies, factor: float = 1.0, short: Frequencies | None = None
) -> RotaryFrequencies:
    """What the reloaded model is to compute.

    Args:
        frequencies: For inputs beyond the original length.
        factor: Of cosine and sine.
        short: For inputs up to it, where these are others.
    """
    return RotaryFrequencies(
        short=(frequencies if short is None else short).tolist(),
        long=frequencies.tolist(),
        attention_factor=factor,
    )
