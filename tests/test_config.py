"""From text to a job: what goes before what, and how faults are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from emb_tool.config import resolve
from emb_tool.errors import InvalidInput
from emb_tool.recipe import read_recipe

BASE: dict[str, Any] = {"teacher": "t", "student": "s", "texts": ["x"], "output": "o"}


def job(**settings: Any) -> Any:
    """A distillation from recipe, flags, method, sets."""
    recipe = {**BASE, **settings.pop("recipe", {})}
    return resolve("distill", recipe=recipe, recipe_name="r.yaml", **settings)


def refusal(**settings: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        job(**settings)
    return caught.value


def recipe_refusal(tmp_path: Path, text: str) -> InvalidInput:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_recipe(tmp_path / "r.yaml")
    return caught.value


# -- what goes before what ------------------------------------------------------------------------


def test_defaults_preset_recipe_flags_method_sets() -> None:
    layers: list[tuple[dict[str, Any], tuple[float, float, int]]] = [
        ({}, (5e-4, 1.0, 1)),
        ({"recipe": {"preset": "leaf"}}, (1e-4, 10.0, 3)),
        ({"recipe": {"preset": "leaf", "lr": 0.1}}, (0.1, 10.0, 3)),
        ({"flags": {"lr": "0.2"}}, (0.2, 10.0, 3)),
        ({"method": "leaf:lr=0.3"}, (0.3, 10.0, 3)),
        ({"sets": ["lr=0.4", "cycles=2"]}, (0.4, 10.0, 2)),
    ]
    given: dict[str, Any] = {}
    for settings, expected in layers:
        given |= settings
        method = job(**{**given, "recipe": dict(given.get("recipe", {}))}).method
        assert (method.lr, method.epochs, method.cycles) == expected


def test_a_preset_by_flag_stays_below_the_recipe() -> None:
    method = job(recipe={"lr": 0.1}, flags={"preset": "leaf"}).method
    assert (method.lr, method.cycles) == (0.1, 3)


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": {"name": "leaf", "lr": 0.1, "head": "mlp"}},
        {"method": "leaf:lr=0.1,head=mlp"},
        {"lr": 0.1, "head": "mlp"},
        {"method": {"lr": "1e-1"}, "head": "mlp"},
    ],
)
def test_settings_of_the_method_may_stand_in_or_beside_it(recipe: dict[str, Any]) -> None:
    method = job(recipe=recipe).method
    assert (method.name, method.lr, method.head) == ("leaf", 0.1, "mlp")


def test_values_as_typed_in_a_shell_and_as_written_in_yaml() -> None:
    typed = job(flags={"student_layers": "0,2,5", "dims": "16,8", "from_scratch": "true"})
    written = job(recipe={"student-layers": [0, 2, 5], "dims": [16, 8], "from-scratch": True})
    assert typed == written
    assert typed.student_layers == (0, 2, 5)
    assert job(flags={"student_layers": "3"}).student_layers == 3
    assert job(flags={"student_layers": "5,"}).student_layers == (5,)


def test_a_job_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        job().seed = 3


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"recipe": {"lr": "fast"}}, "(r.yaml)"),
        ({"flags": {"lr": "fast"}}, "(--lr)"),
        ({"method": "leaf:lr=fast"}, "(-m leaf:lr=fast)"),
        ({"sets": ["lr=fast"]}, "(--set lr=fast)"),
    ],
)
def test_a_wrong_value_is_told_with_its_origin(settings: dict[str, Any], where: str) -> None:
    error = refusal(**settings)
    assert "lr='fast'" in error.message
    assert where in error.message
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"recipe": {"batch_token": 3}}, "(r.yaml)"),
        ({"recipe": {"method": {"name": "leaf", "batch_token": 3}}}, "(r.yaml)"),
        ({"method": "leaf:batch-token=3"}, "(-m leaf:batch-token=3)"),
        ({"sets": ["batch_token=3"]}, "(--set batch_token=3)"),
    ],
)
def test_an_unknown_setting_is_told_with_the_nearest(settings: dict[str, Any], where: str) -> None:
    error = refusal(**settings)
    assert "unknown setting 'batch_token' of distill leaf" in error.message
    assert where in error.message
    assert error.hint == "did you mean batch_tokens?"


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"recipe": {"method": "leef"}}, "unknown distill method 'leef'", "did you mean leaf?"),
        ({"method": "leef:lr=1"}, "unknown distill method 'leef'", "did you mean leaf?"),
        ({"flags": {"preset": "quik"}}, "unknown leaf preset 'quik'", "did you mean quick?"),
        ({"sets": ["lr"]}, "--set lr: not key=value", "write --set seed=1"),
        ({"method": "leaf:lr"}, "'leaf:lr': 'lr' is not key=value", "-m name:key=value"),
        ({"flags": {"lr": "2"}}, "lr='2' (--lr): expected a number above 0 and at most 1", ""),
        ({"flags": {"seed": "-1"}}, "seed='-1' (--seed)", ""),
        ({"recipe": {"texts": []}}, "give --texts or --queries", ""),
        ({"recipe": {"student": None}}, "give --student, or --student-layers", ""),
        ({"flags": {"student_layers": "two"}}, "student_layers='two' (--student-layers)", ""),
        ({"flags": {"dims": "a"}}, "(--dims)", ""),
    ],
)
def test_other_faults(settings: dict[str, Any], message: str, hint: str) -> None:
    error = refusal(**settings)
    assert message in error.message
    assert hint in (error.hint or "")


def test_every_missing_setting_is_named_at_once() -> None:
    with pytest.raises(InvalidInput, match="--teacher is missing; -o/--output is missing"):
        resolve("distill", flags={"texts": ["x"]})
    with pytest.raises(InvalidInput, match="unknown command 'distil'"):
        resolve("distil")


# -- recipes --------------------------------------------------------------------------------------


def test_a_job_as_a_recipe_is_the_same_job_and_the_same_recipe(tmp_path: Path) -> None:
    first = job(
        flags={"student_layers": "0,2", "dims": "16,8", "query_share": "0.25", "seed": "7"},
        recipe={"preset": "leaf", "min_retention": 0.9},
    )
    text = yaml.safe_dump(first.recipe(), sort_keys=False)
    (tmp_path / "r.yaml").write_text(text)
    (values,) = read_recipe(tmp_path / "r.yaml")
    second = resolve("distill", recipe=values)
    assert second == first
    assert yaml.safe_dump(second.recipe(), sort_keys=False) == text
    assert second.digest() == first.digest()


def test_the_digest_names_what_decides_the_result() -> None:
    digest = job().digest()
    for key, value in (("output", "p"), ("store", "v"), ("device", "cpu")):
        assert job(recipe={key: value}).digest() == digest
    for key, value in (("seed", 1), ("lr", 0.1), ("teacher", "u"), ("dtype", "bf16")):
        assert job(recipe={key: value}).digest() != digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verb: distill\nlr: [1, 2\ntexts: x\n", "r.yaml:3: not YAML"),
        ("verb: distill\n\tlr: 1\n", "r.yaml:2: not YAML"),
        ("verb: distill\nlr: 1\nlr: 2\n", "r.yaml:3: 'lr' is given twice"),
        ("", "a recipe is a mapping"),
        ("- a\n", "a recipe is a mapping"),
        ("lr: 1\n", "job 1: verb is missing"),
        ("verb: distil\n", "unknown verb 'distil'"),
        ("jobs: {}\n", "jobs: must be a list"),
        ("jobs: []\n", "jobs: must be a list"),
        ("jobs: [{verb: eval}]\nlr: 1\n", "'lr' is not allowed next to jobs:"),
        ("jobs: [{verb: eval}, {lr: 1}]\n", "job 2: verb is missing"),
        ("x: !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("verb: distill\nmethod: {name: true, lr: 1}\n", "job 1: method: True is not a name"),
        ("verb: compress\nmethod: [pq, [x]]\n", "job 1: method: ['x'] is not a name"),
        ("verb: compress\nmethod: [{name: pq, 8: x}]\n", "job 1: the key 8 is not a string"),
        ("jobs: [{verb: eval, on: x}]\n", "job 1: the key True is not a string"),
    ],
)
def test_faults_of_a_recipe_are_told_with_their_place(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in recipe_refusal(tmp_path, text).message


def test_a_recipe_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary.yaml", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_recipe(path)


CHAIN = """
jobs:
  - {verb: distill, name: half, teacher: t, student_layers: 3, texts: [x], output: out/half}
  - {verb: distill, name: quarter, teacher: "${half}", student_layers: 1, texts: [x], output: out/q}
  - {verb: eval, models: ["${half}", "${quarter}", "${half}/router"], task: ["sts:f"]}
"""


def test_a_job_can_name_the_output_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(CHAIN)
    first, second, third = read_recipe(tmp_path / "r.yaml")
    assert second["teacher"] == "out/half"
    assert third["models"] == ["out/half", "out/q", "out/half/router"]
    assert "name" not in first
    assert resolve("eval", recipe=third).models == ("out/half", "out/q", "out/half/router")  # type: ignore[attr-defined]


@pytest.mark.parametrize("swap", [("${half}", "${hlaf}"), ("${half}", "${quarter}")])
def test_a_name_that_no_earlier_job_has_is_refused(tmp_path: Path, swap: tuple[str, str]) -> None:
    error = recipe_refusal(tmp_path, CHAIN.replace(*swap, 1))
    assert "job 2: " + swap[1] in error.message
    assert "half" in str(error.hint)


def test_settings_of_a_step_may_have_hyphens_as_flags_do() -> None:
    step = {"name": "pq", "frequent-bits": 4}
    for method in (step, [step]):
        recipe = {"model": "m", "output": "o", "texts": ["t"], "method": method}
        (made,) = resolve("compress", recipe=recipe).recipe()["method"]
        assert made["frequent_bits"] == 4
