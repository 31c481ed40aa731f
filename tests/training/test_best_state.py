"""Which state of a run is written: by a hold-out, never by what is reported, and it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emb_tool.data.corpus import check_parts
from emb_tool.distill.measure import record_choice, score_student
from emb_tool.errors import Interrupted, InvalidInput
from emb_tool.evaluate.task import Score as TaskScore
from emb_tool.evaluate.task import Task
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.report import Report
from emb_tool.training.outcome import Outcome, Score
from tests.conftest import CliResult
from tests.runs import make_trainer, write_texts

GOAL = np.eye(4, dtype=np.float32)


class Stub:
    """A student of four texts whose vectors are given."""

    dim, truncated = 4, 0

    def __init__(self, vectors: np.ndarray) -> None:
        self.given = vectors

    def encode(self, texts: list[str], prompt: str = "", **_: Any) -> np.ndarray:
        return self.given[[int(text) for text in texts]]


class Figure(Task):
    """A task whose figure is known."""

    main = "figure"
    path: str = ""
    worth: float = 0.0

    def score(self, pair: Any, reference: Any = None) -> TaskScore:
        return TaskScore({"figure": self.worth})


Figure.name = "fixed"


def scored(
    vectors: np.ndarray, *, dev: float | None = None, held: int = 4, unit: bool = True
) -> Score:
    corpus: Any = SimpleNamespace(
        heldout=np.arange(held), roles=np.zeros(4, int), texts=lambda which: [str(i) for i in which]
    )
    targets: Any = SimpleNamespace(read=lambda which: GOAL[which], normalizes=unit)
    tasks: Any = SimpleNamespace(
        dev=[] if dev is None else [Figure(path="dev", worth=dev)],
        reported=[Figure(path="test", worth=0.77)],
    )
    prompts = {"document": "", "query": ""}
    return score_student(Stub(vectors), corpus, targets, prompts, tasks)  # type: ignore[arg-type]


def test_held_out_texts_choose_and_what_is_reported_does_not() -> None:
    turned = GOAL.copy()
    turned[0] = [0.6, 0.8, 0, 0]
    score = scored(turned)
    assert score.key == pytest.approx((0.6 + 3) / 4)  # the mean cosine
    assert score.criterion == "cosine to the teacher on 4 held-out texts"
    assert score.figures["fixed:test figure"] == 0.77
    assert score.figures["heldout_loss"] == pytest.approx((0.4**2 + 0.8**2) / 4)


def test_where_length_counts_distance_chooses() -> None:
    """Twice a vector has cosine 1 and is not it."""
    score = scored(2 * GOAL, unit=False)
    assert (score.key, score.lower_is_better) == (-1.0, True)
    assert score.criterion == "squared distance to the teacher on 4 held-out texts"


def test_dev_chooses_before_held_out_texts() -> None:
    score = scored(GOAL, dev=0.25)
    assert score.key == 0.25
    assert score.criterion == "fixed:dev figure (--dev)"
    assert score.figures["heldout_cosine"] == pytest.approx(1)


def test_nothing_held_out_chooses_nothing() -> None:
    score = scored(GOAL, held=0)
    assert (score.key, score.criterion) == (None, "")
    assert score.figures == {"fixed:test figure": 0.77}


def after(*keys: float | None, by: str = "cosine", lower: bool = False) -> Outcome:
    outcome = Outcome()
    for number, key in enumerate(keys):
        outcome.texts = 100 * number
        outcome.add_score(Score(key, {"x": number}, by if key is not None else "", lower))
    return outcome


def test_the_rule_the_chosen_state_and_the_last_are_told() -> None:
    outcome = after(0.1, 0.8, 0.5)
    assert outcome.choice() == {
        "by": "cosine", "chosen": {"texts": 100, "x": 1}, "last": {"texts": 200, "x": 2},
    }  # fmt: skip
    assert outcome.summary(200) == (
        "the state after 100 of 200 texts, by cosine: 0.8000; the last state: 0.5000"
    )
    assert after(0.1, 0.8).summary(100) == "the last state, after 100 texts, by cosine: 0.8000"
    assert after(-0.4, -0.2, -0.3, lower=True).summary(200) == (
        "the state after 100 of 200 texts, by cosine: 0.2000; the last state: 0.3000"
    )
    assert after(-0.4, -0.2).summary(100).endswith("by cosine: -0.2000")  # a correlation
    nothing = after(None, None)
    assert nothing.best == 100
    assert nothing.choice()["by"] is None
    assert nothing.summary(100) == ("the last state, after 100 texts: nothing was held out")


def test_a_score_that_is_no_number_is_not_the_best() -> None:
    outcome = after(0.1, float("nan"), 0.05)
    assert (outcome.best, outcome.best_key) == (0, 0.1)


@pytest.mark.parametrize(
    ("keys", "warned"),
    [((0.1, 0.9), ""), ((0.1, 0.9, 0.5), "the state after 100"), ((0.9, 0.1), "TRAINING DID HARM"),
     ((None, None), "")],
)  # fmt: skip
def test_a_state_before_the_last_is_warned_of(keys: tuple[Any, ...], warned: str) -> None:
    report, progress = Report("distill"), Progress(0)
    record_choice(report, progress, after(*keys), 200)
    assert report.tables[-1].title == "which state was written"
    assert [warned in sentence for sentence in progress.warnings] == [True] * bool(warned)


def test_a_saved_state_carries_the_choice(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    """The best was measured before the interruption; the run that goes on does not forget why."""
    keys = iter([0.1, 0.9, 0.2])

    def score(encoder: Encoder) -> Score:
        return Score(next(keys), {"x": 1.0}, "cosine to something")

    trainer = make_trainer(tiny_bert, sentences[:60], tmp_path, score=score)
    measure = trainer._evaluate

    def interrupted() -> None:
        measure()
        trainer.signals.number = 15 if trainer.outcome.best else 0

    trainer._evaluate = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.run()
    state = tmp_path / "state"
    facts = json.loads((state / (state / "latest").read_text() / "facts.json").read_text())
    assert facts["outcome"]["criterion"] == "cosine to something"
    again = make_trainer(tiny_bert, sentences[:60], tmp_path, score=score)
    outcome = again.run()
    assert (outcome.best_key, outcome.last_key, outcome.criterion) == (
        0.9,
        0.2,
        "cosine to something",
    )
    assert 0 < outcome.best < outcome.texts == 60


@pytest.mark.parametrize(
    ("parts", "said"),
    [((2, 0, 500), "only 0 of 2 distinct texts can be held out (at most one in 10)"),
     ((27, 2, 500), "only 2 of 29 distinct texts can be held out"),
     ((0, 0, 0), "no text is left to fit to")],
)  # fmt: skip
def test_too_few_texts_to_hold_any_out_are_refused(parts: tuple[int, ...], said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_parts("--texts", *parts)
    assert said in refused.value.message


def test_few_texts_are_warned_of_and_a_declined_hold_out_is_not_refused() -> None:
    assert "--tune: 299 distinct texts are few" in (check_parts("--tune", 299, 3, 500) or "")
    assert check_parts("--tune", 300, 3, 500) is None
    assert check_parts("--tune", 300, 0, 0) is None


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["distill", "--teacher", "MODEL", "--student-layers", 1, "--texts", "FEW"], "--texts"),
        (["compress", "MODEL", "-m", "int:bits=8", "--texts", "FEW"], "--texts"),
        (["compress", "MODEL", "-m", "int:bits=8", "--tune", "FEW"], "--tune"),
        (["extend-context", "MODEL", "--to", 128, "--tune", "FEW"], "--tune"),
    ],
)
def test_two_texts_do_not_train(
    run_cli: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path, argv: list[object],
    flag: str,
) -> None:  # fmt: skip
    few = write_texts(tmp_path / "few.jsonl", ["one text", "another one"])
    named = {"FEW": few, "MODEL": tiny_bert}
    done = run_cli(*(named.get(str(word), word) for word in argv), "-o", tmp_path / "out")
    assert done.code == 2, done.err
    assert f"{flag}: only 0 of 2 distinct texts can be held out" in " ".join(done.err.split())
    assert "--holdout 0" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["few.jsonl"]
