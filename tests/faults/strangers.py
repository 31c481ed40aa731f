"""Checkpoints and recipes as a stranger might have made them: strategies that spoil good files."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP = 100_000
"""Brackets of a JSON bomb; Python's own reader gives up at about a thousand."""

ODD = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\0", "../../x", "/etc/passwd", "C:\\x", "~", "none", "é" * 300,
    "a" * 100_000, [], {}, [None], [[]], {"": None}, [0] * 5000, {"x": {"y": 1}}, [-1, 2**40],
    "sentence_transformers.models.Transformer", "os.system", "torch.nn.Tanh",
)  # fmt: skip
"""What takes a value's place."""


class Raw(str):
    """Text that is written as it is, in place of a JSON value."""


BOMBS = (
    Raw("[" * DEEP), Raw('{"a":' * DEEP), Raw("9" * 10_000), Raw("1e999999999"),
    Raw('{"a":1,"a":2}'), Raw("NaN"), Raw('"\\ud800"'),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has values: paths of keys and indices, the first of long lists alone."""
    found = [path]
    items: Any = ()
    if isinstance(value, dict):
        items = list(value.items())[:60]
    elif isinstance(value, list):
        items = list(enumerate(value))[:6]
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@st.composite
def spoilt(draw: st.DrawFn, good: Any) -> str:
    """The text of a JSON file, one to three of whose values are odd, gone or elsewhere."""
    value = copy.deepcopy(good)
    if draw(st.integers(0, 9)) == 0:
        return damaged(draw, json.dumps(value))
    raws: dict[str, Raw] = {}
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        drawn = draw(st.one_of(st.sampled_from(ODD), st.sampled_from(BOMBS), st.integers()))
        new: Any = copy.deepcopy(drawn)  # or a later change would reach into the list of them
        if isinstance(new, Raw):
            mark = f"<raw {len(raws)}>"
            raws[json.dumps(mark)] = new
            new = mark
        if not path:
            value = new
            continue
        owner = value
        for key in path[:-1]:
            owner = owner[key]
        what = draw(st.integers(0, 5))
        if what == 0:
            del owner[path[-1]]
        elif what == 1:
            other = draw(st.sampled_from(places(value)))
            found = value
            for key in other:
                found = found[key]
            owner[path[-1]] = copy.deepcopy(found)
        elif what == 2 and isinstance(owner, dict):
            owner[draw(st.sampled_from(("", "x", "../x", "a" * 1000, "\0")))] = new
        else:
            owner[path[-1]] = new
    text = json.dumps(value)
    for mark, raw in raws.items():
        text = text.replace(mark, raw)
    return text


def damaged(draw: st.DrawFn, text: str) -> str:
    """A text cut off, or with some characters in place of others."""
    letters = list(text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text)
    for _ in range(draw(st.integers(0, 4))):
        if letters:
            letters[draw(st.integers(0, len(letters) - 1))] = draw(
                st.sampled_from('{}[]",:\\0-e\n')
            )
    return "".join(letters)


@st.composite
def spoilt_weights(draw: st.DrawFn, good: bytes) -> bytes:
    """A safetensors file with a spoilt header, length or end."""
    length = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    what = draw(st.integers(0, 5))
    if what == 0:
        return good[: draw(st.integers(0, len(good)))]
    text = draw(spoilt(header)).encode() if what < 5 else good[8 : 8 + length]
    odd = (0, 1, max(0, len(text) - 1), len(good), 2**62)
    stated = len(text) if what < 4 else draw(st.sampled_from(odd))
    return stated.to_bytes(8, "little") + text + data


NAMES = (
    "gelu", "prelu", "silu", "softmax", "linear_attention", "sliding_attention", "full_attention",
    "eager", "sdpa", "flex_attention", "default", "linear", "dynamic", "yarn", "longrope",
    "llama3", "cls", "max", "lasttoken", "weightedmean", "right", "left", "float16", "bfloat16",
    "float64", "torch.nn.GLU", "torch.nn.Softmax2d", "torch.nn.Identity", "relative_key",
)  # fmt: skip
"""What configs call things by."""


@st.composite
def near(draw: st.DrawFn, good: Any) -> str:
    """The text of a JSON file, one to three of whose values are others such as configs have."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(value) if path] or [()]))
        if not path:
            break
        owner = value
        for key in path[:-1]:
            owner = owner[key]
        held = owner[path[-1]]
        owner[path[-1]] = draw(_beside(held))
    return json.dumps(value)


def _beside(held: Any) -> st.SearchStrategy[Any]:
    """Values of a value's own type, and none."""
    if isinstance(held, bool):
        return st.just(not held)
    if isinstance(held, int):
        small, times = st.integers(0, 9), st.sampled_from((held // 2, 2 * held, held - 1, held + 1))
        return small | times | st.none()
    if isinstance(held, float):
        return st.sampled_from((0.0, -held, 2 * held, 0.3, 1e-30, 1e30))
    if isinstance(held, str):
        return st.sampled_from(NAMES)
    if isinstance(held, list):
        return st.sampled_from((held[1:], [*held, *held], held[::-1], []))
    return st.none() | st.sampled_from(({}, 1, "eager", [0.5] * 4, {"rope_type": "longrope"}))


PREFIXES = (
    "_orig_mod.", "module.", "0.auto_model.", "model.", "base_model.model.", "0.", "bert.",
    "encoder.", "x.",
)  # fmt: skip
"""Of wrappers, of classes with a head, of nobody."""


@st.composite
def renamed(draw: st.DrawFn, names: list[str]) -> dict[str, str]:
    """Tensors as another program might have saved them: new name to the old one.

    Prefixes around all names or some, names gone, added, or split as peft splits a layer's; a name
    that was added stands for a copy of another tensor.
    """
    found = {name: name for name in names}
    for _ in range(draw(st.integers(1, 2))):
        what, some = draw(st.integers(0, 5)), draw(st.sampled_from(sorted(found)))
        prefix = draw(st.sampled_from(PREFIXES))
        if what <= 1:  # as most often: around all
            found = {prefix + name: old for name, old in found.items()}
        elif what == 2:
            found = {prefix * name.startswith(some[:18]) + name: old for name, old in found.items()}
        elif what == 3:  # all names with the same end, or number
            part = draw(st.sampled_from(some.split(".")))
            rest = {name: old for name, old in found.items() if part not in name.split(".")}
            found = rest or found
        elif what == 4:
            found[draw(st.sampled_from((prefix + some, some + ".x", "x", "pooler.x")))] = found[
                some
            ]
        else:
            module, _, kind = some.rpartition(".")
            if draw(st.booleans()):
                found[f"{module}.base_layer.{kind}"] = found.pop(some)
            found[f"{module}.lora_A.default.{kind}"] = names[0]
    return found


USES: dict[str, dict[str, tuple[Any, ...]]] = {
    "bert": {"type_vocab_size": (1, 2, 5)},
    "albert": {"embedding_size": (8, 32), "num_hidden_groups": (1, 2)},
    "electra": {"embedding_size": (8, 32), "type_vocab_size": (1, 2)},
    "distilbert": {"sinusoidal_pos_embds": (False, True)},
    "mpnet": {"relative_attention_num_buckets": (2, 32)},
    "deberta-v2": {
        "relative_attention": (False, True), "share_att_key": (False, True),
        "pos_att_type": ([], ["c2p"], ["p2c"], ["c2p", "p2c"]), "position_buckets": (-1, 8),
        "norm_rel_ebd": ("none", "layer_norm"), "position_biased_input": (False, True),
        "type_vocab_size": (0, 2), "conv_kernel_size": (0, 3),
    },
    "t5": {"feed_forward_proj": ("relu", "gated-gelu"), "relative_attention_num_buckets": (4, 32)},
    "gemma3": {"tie_word_embeddings": (False, True)},
}  # fmt: skip
"""Settings that decide which tables a class of `tests.classes` has, and how it uses them."""


@st.composite
def uses(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A class, and its settings."""
    name = draw(st.sampled_from(sorted(USES)))
    return name, {key: draw(st.sampled_from(values)) for key, values in USES[name].items()}
