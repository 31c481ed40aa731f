"""The step on real (tiny) models: what is written, and that it beats rounding to nearest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import emb_tool.hub  # noqa: F401
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.calibration import CalibrationContext
from emb_tool.compress.gptq import Gptq
from emb_tool.compress.int import Int as RoundToNearest
from emb_tool.compress.step import run_steps
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.model.encoder import Encoder
from emb_tool.ops import layer_inputs
from emb_tool.packed.int import Int
from emb_tool.progress import Progress
from emb_tool.runtime.device import Runtime
from tests.compress.quantized import make_work


def written(
    model: Path, folder: Path, texts: list[str], *steps: Gptq | RoundToNearest
) -> CheckpointEditor:
    folder.mkdir()
    draft = run_steps(steps, CheckpointEditor.of(Checkpoint.open(model)), make_work(folder, texts))
    draft.write(folder / "out")
    return draft


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    return Encoder.open(str(folder), Runtime.start("cpu")).encode(texts)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_decoder"])
def test_vectors_are_nearer_than_by_rounding_to_nearest(
    bits: int, model: str, tmp_path: Path, request: pytest.FixtureRequest, sentences: list[str]
) -> None:
    source = request.getfixturevalue(model)
    held = sentences[300:]
    reference = vectors(source, held)
    cosines = []
    for name, step in (
        ("gptq", Gptq(bits=bits, group_size=16)),
        ("int", RoundToNearest(bits=bits, group_size=16, tables=0)),
    ):
        draft = written(source, tmp_path / name, sentences[:300], step)
        cosines.append(float((vectors(tmp_path / name / "out", held) * reference).sum(1).mean()))
    assert 1 - cosines[0] < 0.75 * (1 - cosines[1])
    linear = sum(name.endswith("proj") for name in draft.packed) or 4 * 6 + 1
    assert len(draft.packed) == linear


def test_what_is_written_is_what_calibration_saw(
    tiny_bert: Path, tmp_path: Path, sentences
) -> None:
    """Each layer's codes come from the inputs of the model as written, up to that layer."""
    draft = written(
        tiny_bert, tmp_path / "a", sentences[:200], Gptq(bits=3, group_size=8, tokens=500)
    )
    encoder = Encoder.open(str(tmp_path / "a" / "out"), Runtime.start("cpu"), training=True)
    model = encoder.model[0].auto_model
    name = "encoder.layer.3.intermediate.dense"
    step = Gptq(bits=3, group_size=8, tokens=500)
    work = CalibrationContext(sentences[:200], Runtime.start("cpu"), Progress(0), tmp_path)
    batches = list(step._batches(encoder, work))
    layer = model.get_submodule(name)
    (seen,) = layer_inputs.second_moments(model, {name: layer}, batches, Runtime.start("cpu"))
    from emb_tool.compress.gptq_rounding import gptq

    weight = load_file(tiny_bert / "model.safetensors")[f"{name}.weight"]
    again = Int(draft.packed[name])
    again.store(gptq(weight, seen.moments, 3, 8))
    assert (again.expand() - layer.expand()).abs().mean() < 1e-3 * weight.abs().mean()


def test_twice_the_same_bytes_and_prefixed_names(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    held = {f"bert.{n}": t for n, t in load_file(source / "model.safetensors").items()}
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    files = []
    for name, model in (("a", tiny_bert), ("b", tiny_bert), ("c", source)):
        written(model, tmp_path / name, sentences[:100], Gptq(tokens=600))
        files.append(load_file(tmp_path / name / "out" / "model.safetensors"))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    assert all(torch.equal(tensor, files[2][f"bert.{name}"]) for name, tensor in files[0].items())


def test_after_packed_tables_it_calibrates_on_what_they_give(
    tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    steps = (
        RoundToNearest(bits=2, group_size=8, only=("embeddings.*",)),
        Gptq(bits=4, group_size=16),
    )
    draft = written(tiny_bert, tmp_path / "out", sentences[:200], *steps)
    alone = written(tiny_bert, tmp_path / "alone", sentences[:200], steps[1])
    roles = {spec["role"] for spec in draft.packed.values()}
    assert roles == {"table", "linear"}
    name = "encoder.layer.0.attention.self.query.weight"
    files = [load_file(tmp_path / x / "out" / "model.safetensors") for x in ("out", "alone")]
    assert not torch.equal(files[0][name], files[1][name])
    assert alone.nbytes > draft.nbytes
    spec = json.loads((tmp_path / "out" / "out" / "config.json").read_text())
    assert spec["quantization_config"]["modules"]["pooler.dense"]["bits"] == 4


def test_layers_that_no_text_reaches_are_rounded_to_nearest(
    tiny_bert: Path, tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = layer_inputs.second_moments

    def few(model, layers, *rest):
        return every(model, {n: x for n, x in layers.items() if ".0." in n}, *rest)

    monkeypatch.setattr(layer_inputs, "second_moments", few)
    written(tiny_bert, tmp_path / "gptq", sentences[:100], Gptq(bits=4, group_size=16))
    step = RoundToNearest(bits=4, group_size=16, tables=0)
    written(tiny_bert, tmp_path / "int", sentences[:100], step)
    files = [load_file(tmp_path / x / "out" / "model.safetensors") for x in ("gptq", "int")]
    for layer, same in ((0, False), (1, True)):
        name = f"encoder.layer.{layer}.output.dense.weight"
        assert torch.equal(files[0][name], files[1][name]) is same


def test_inputs_without_a_factor_are_refused(
    tiny_decoder: Path, tmp_path: Path, sentences: list[str]
) -> None:
    few = Gptq(tokens=1, damping=1e-15)
    with pytest.raises(InvalidInput, match=r"q_proj: damping=1e-15 is too small") as told:
        written(tiny_decoder, tmp_path / "few", sentences[:1], few)
    assert told.value.hint == "use more damping: -m gptq:damping=0.01"
    model = Path(shutil.copytree(tiny_decoder, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.0}))  # of padding
    with pytest.raises(InvalidInput, match=rf"{model}: layers\.0\..*: its inputs .* not finite"):
        written(model, tmp_path / "nan", sentences[:20], Gptq(group_size=8))


def test_what_does_not_fit_is_refused(tiny_static: Path, tiny_bert: Path) -> None:
    with pytest.raises(InvalidInput, match="static embedding: it has no linear layers"):
        Gptq().plan(CheckpointEditor.of(Checkpoint.open(tiny_static)))
    draft = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    Gptq().plan(draft)
    with pytest.raises(InvalidInput, match="gptq has nothing"):
        Gptq().plan(draft)
