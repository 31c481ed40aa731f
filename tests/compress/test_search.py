"""`--target`: the size is used up, nothing better that fits is passed over, and loss is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.result_cache import ResultCache
from emb_tool.compress import chains
from emb_tool.compress.calibration import CalibrationContext
from emb_tool.compress.chains import Family
from emb_tool.compress.search import CLOSE_TO_TARGET, ChainSearch
from emb_tool.compress.step import CompressStep, run_steps
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.progress import Progress
from emb_tool.runtime.device import Runtime
from tests.conftest import CliResult
from tests.runs import check_here, write_texts


@pytest.fixture(scope="module")
def wide_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static table of 4,000 words and 32 dimensions: large enough for codebooks to pay off."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, **{f"w{i}": i + 1 for i in range(3999)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)
    modules = [StaticEmbedding(tokenizer, embedding_weights=table), Normalize()]
    folder = tmp_path_factory.mktemp("wide") / "wide"
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


def made_of_words(seed: int, count: int) -> list[str]:
    """Texts of the wide table's words, of which few are frequent."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.zipf(1.3, 8) % 3999) for _ in range(count)]


def calibration(scratch: Path) -> CalibrationContext:
    scratch.mkdir(exist_ok=True)
    cache = ResultCache(scratch / "kept")
    return CalibrationContext(
        made_of_words(1, 200), Runtime.start("cpu"), Progress(0), scratch, cache=cache
    )


def search(
    model: Path, scratch: Path, measure: Callable[[Path], float], vocabulary: bool = False
) -> ChainSearch:
    start = CheckpointEditor.of(Checkpoint.open(model))
    return ChainSearch(start, calibration(scratch), measure, scratch, vocabulary=vocabulary)


def write(model: Path, steps: Sequence[CompressStep], folder: Path) -> int:
    """Carry a chain out, without a search; bytes of the weight files."""
    start = CheckpointEditor.of(Checkpoint.open(model))
    run_steps(steps, start, calibration(folder.with_suffix(".state"))).write(folder)
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def packed(folder: Path) -> dict[str, Any]:
    """Module to its packing, as it was written."""
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    modules: dict[str, Any] = stated["modules"]
    return modules


@pytest.mark.parametrize("target", [40_000, 61_000, 80_000])
def test_a_budget_is_solved_until_the_target_is_used_up(
    wide_table: Path, tmp_path: Path, target: int
) -> None:
    """No fixed chain is within a half percent of these."""
    found = search(wide_table, tmp_path, lambda folder: 0.9)
    found.find_best(target)
    chain = next(c for c in found.measured() if "pq:budget" in c.spec)
    assert (1 - CLOSE_TO_TARGET) * target <= chain.bytes <= target
    assert chain.retention == 0.9


def test_a_share_is_solved_again_from_the_bytes_that_were_made(
    wide_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers that promise a tenth more than comes leave a gap, which is closed."""
    true = chains.estimate
    monkeypatch.setattr(chains, "estimate", lambda *given: int(true(*given) * 1.1))
    found = search(wide_table, tmp_path, lambda folder: 0.9)
    found.find_best(61_000)
    chain = next(c for c in found.measured() if "pq:budget" in c.spec)
    assert (1 - CLOSE_TO_TARGET) * 61_000 <= chain.bytes <= 61_000


def test_of_the_chains_that_fit_the_best_is_taken(wide_table: Path, tmp_path: Path) -> None:
    """`int` is worth more here; then `pq` is."""
    for best in ("int", "codebooks"):

        def measure(folder: Path, best: str = best) -> float:
            (spec,) = packed(folder).values()
            return 0.9 if (spec["kind"] == "int") == (best == "int") else 0.8

        scratch = tmp_path / best
        scratch.mkdir()
        chosen = search(wide_table, scratch, measure).find_best(61_000)
        assert chosen is not None
        assert chosen.retention == 0.9
        assert ("int:" in chosen.spec) == (best == "int")


# -- against a fixed grid, measured here ----------------------------------------------------------

GRID = (
    *("int:bits=8", "int:bits=5", "int:bits=4,group_size=16", "int:bits=4", "int:bits=3"),
    *("pq:budget=0.2", "pq:budget=0.15", "pq:budget=0.1", "pq:budget=0.08"),
)

SENTENCES = made_of_words(2, 300)
"""Others than those that are calibrated on."""


def neighbors(folder: Path) -> list[set[int]]:
    """The ten nearest other texts of each text, by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    import emb_tool.hub  # noqa: F401

    vectors = SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
    like = vectors @ vectors.T
    np.fill_diagonal(like, -np.inf)
    return [{*row[-10:]} for row in np.argsort(like, axis=1)]


@pytest.fixture(scope="module")
def kept_of(wide_table: Path) -> Callable[[Path], float]:
    """The share of the ten nearest neighbors that written files keep."""
    true = neighbors(wide_table)

    def kept(folder: Path) -> float:
        pairs = zip(true, neighbors(folder), strict=True)
        return float(np.mean([len(mine & theirs) / 10 for mine, theirs in pairs]))

    return kept


@pytest.fixture(scope="module")
def grid(
    wide_table: Path, kept_of: Callable[[Path], float], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, float]]:
    """Bytes of each chain of the grid, and what it keeps."""
    folder = tmp_path_factory.mktemp("grid")
    return {
        chain: (
            write(wide_table, chains.parse_chain([chain]), path := folder / str(n)),
            kept_of(path),
        )
        for n, chain in enumerate(GRID)
    }


@pytest.mark.parametrize("target", [45_000, 61_000, 120_000])
def test_no_chain_of_a_grid_is_better_by_more_than_a_point(
    wide_table: Path, grid: dict[str, tuple[int, float]], kept_of: Callable[[Path], float],
    tmp_path: Path, target: int,
) -> None:  # fmt: skip
    chosen = search(wide_table, tmp_path, kept_of).find_best(target)
    assert chosen is not None
    assert write(wide_table, chosen.steps, tmp_path / "out") == chosen.bytes <= target
    fitting = [kept for size, kept in grid.values() if size <= target]
    assert fitting
    assert kept_of(tmp_path / "out") >= max(fitting) - 0.01


def test_a_share_is_kept_by_the_smallest_chain_that_does(
    wide_table: Path, kept_of: Callable[[Path], float], tmp_path: Path
) -> None:
    """The ladder from above: bytes and shares of each step are measured apart from the search."""
    known = {}
    for number, steps in enumerate(
        chains.fixed_chains(CheckpointEditor.of(Checkpoint.open(wide_table)))
    ):
        size = write(wide_table, steps, path := tmp_path / str(number))
        known[chains.chain_spec(steps)] = (size, kept_of(path))
    for share in (0.95, 0.6):
        chosen = search(wide_table, tmp_path / f"{share:.0%}", kept_of).find_smallest(share)
        assert chosen is not None
        assert known[chosen.spec] == (chosen.bytes, chosen.retention)
        assert chosen.retention >= share
        assert chosen.bytes == min(size for size, kept in known.values() if kept >= share)


LINEAR = tuple(f"int:bits={bits},tables=0" for bits in (8, 7, 6, 5, 4, 3, 2))


@pytest.mark.parametrize("peak", [7, 4])
def test_bits_go_to_linear_layers_as_long_as_that_keeps_more(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: int
) -> None:
    """The best of all families is found from the even one, and not all of them are measured."""
    monkeypatch.setattr(chains, "LINEAR_SPECS", LINEAR)
    start = CheckpointEditor.of(Checkpoint.open(tiny_bert))
    size = chains.file_bytes(start.copy()) // 5

    def measure(folder: Path) -> float:
        bits = {s["bits"] for m, s in packed(folder).items() if "word_embeddings" not in m}
        return 1 - abs(max(bits) - peak) / 10

    found = search(tiny_bert, tmp_path, measure)
    chosen = found.find_best(size)
    assert chosen is not None
    assert chosen.bytes <= size
    every = search(tiny_bert, tmp_path, measure)
    for family in chains.families(start):
        every._solve_share((), family, size)
    best = max(c.score for c in every.measured() if c.bytes <= size)
    assert chosen.score == best
    assert len(found.measured()) <= len(every.measured())


def test_what_loses_nothing_is_taken_without_a_search(wide_table: Path, tmp_path: Path) -> None:
    found = search(wide_table, tmp_path, lambda folder: 0.99)
    chosen = found.find_best(300_000)
    assert chosen is not None
    assert chosen.spec == "-m cast"
    assert len(found.candidates) == 1


def test_a_chain_that_cannot_be_made_is_passed_over_and_told(
    wide_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emb_tool.compress.pq import Pq

    def refuse(*_: object) -> None:
        raise InvalidInput("no codebooks today", None)

    monkeypatch.setattr(Pq, "apply", refuse)
    found = search(wide_table, tmp_path, lambda folder: 0.9)
    chosen = found.find_best(61_000)
    assert chosen is not None
    assert "int:budget" in chosen.spec
    assert "no codebooks today" in {told["refused"] for told in found.to_dicts()}
    monkeypatch.setattr(chains, "families", lambda draft: [Family(None, "pq")])
    monkeypatch.setattr(chains, "fixed_chains", lambda draft, vocabulary=False: [])
    none = search(wide_table, tmp_path / "none", lambda folder: 0.9)
    assert none.find_best(61_000) is None
    with pytest.raises(InvalidInput, match="no chain fits this model: no codebooks today"):
        none.measured()


# -- as typed -------------------------------------------------------------------------------------


@pytest.fixture
def compress(
    run_cli: Callable[..., CliResult], tmp_path: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., CliResult]:  # fmt: skip
    check_here(monkeypatch)
    texts = write_texts(tmp_path / "texts.jsonl", sentences[:240])

    def run(model: Path, *argv: object) -> CliResult:
        given = ["--texts", texts, "-o", tmp_path / "out", "--holdout", 24, "--json"]
        return run_cli("compress", model, *given, *argv)

    return run


@pytest.mark.parametrize("typed", ["10", "10.0", "999", "10b"])
def test_a_size_without_its_unit_is_asked_about(
    compress: Callable[..., CliResult], tiny_bert: Path, typed: str
) -> None:
    for flag in ("--target", "--max-bytes"):
        done = compress(tiny_bert, flag, typed)
        assert done.code == 2
        number = typed.removesuffix("b").removesuffix(".0")
        assert f"did you mean {number}MB?" in done.out


def test_a_dry_run_lists_what_would_be_tried(
    compress: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path
) -> None:
    size = sum(path.stat().st_size for path in tiny_bert.rglob("*.safetensors"))
    for flag, least in ((["--target", size // 5], 3), (["--target-retention", 0.9], 8)):
        done = compress(tiny_bert, *flag, "--dry-run")
        assert done.code == 0, done.err + done.out
        trials = json.loads(done.out)["facts"]["plan"]["trials"]
        assert len(trials) >= least
        assert all(chain.startswith("-m ") and nbytes > 0 for chain, nbytes in trials)
        if "--target" in flag:
            assert all(nbytes <= size // 5 for _, nbytes in trials)
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").touch()
    done = compress(tiny_bert, "-m", "cast", "--dry-run")
    assert done.code == 2
    assert "is not empty" in done.out


def test_a_target_that_no_chain_comes_down_to_is_refused_before_work(
    compress: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path
) -> None:
    for more in ([], ["--dry-run"]):
        done = compress(tiny_bert, "--target", "2kB", *more)
        assert done.code == 2
        assert "--target 0.002 MB: the smallest chain has about" in done.out
    assert not (tmp_path / "out").exists()


def test_a_target_that_turns_out_too_small_writes_the_smallest_and_ends_with_3(
    compress: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Only the texts tell what `vocab` leaves: the plan could not know."""
    monkeypatch.setattr("emb_tool.compress.setup.preview_chains", lambda *given: [("-m vocab", 1)])
    done = compress(tiny_bert, "--target", "20kB")
    assert done.code == 3, done.err
    report = json.loads(done.out)
    assert "--target 0.02 MB cannot be met; the closest is" in report["gate"]
    tried = [c for c in report["facts"]["search"]["tried"] if c["retention"] is not None]
    assert report["facts"]["search"]["bytes"] == min(chain["bytes"] for chain in tried)


def test_much_loss_is_shouted_on_terminal_report_and_card(
    compress: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path
) -> None:
    done = compress(tiny_bert, "-m", "int:bits=2")
    assert done.code == 0
    assert "warning: LARGE LOSS:" in done.err
    report = json.loads(done.out)
    kept = next(m["value"] for m in report["measures"] if m["name"] == "neighbor overlap")
    assert kept < 0.9
    assert any(f"LARGE LOSS: {kept:.1%} of the ten" in told for told in report["warnings"])
    assert f"**LARGE LOSS: {kept:.1%}" in (tmp_path / "out" / "README.md").read_text()
    done = compress(tiny_bert, "-m", "cast", "--overwrite")
    assert "LARGE LOSS" not in done.err + (tmp_path / "out" / "README.md").read_text()


def test_reported_tasks_choose_no_chain_and_dev_does(
    compress: Callable[..., CliResult], tiny_bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    def pairs(name: str, first: int) -> str:
        rows = [f"{i % 6}\t{sentences[i]}\t{sentences[i + 1]}\n" for i in range(first, first + 30)]
        (tmp_path / name).write_text("score\tsentence1\tsentence2\n" + "".join(rows))
        return f"sts:{tmp_path / name}"

    test, dev = pairs("test.tsv", 100), pairs("dev.tsv", 200)
    for more, said in (([], "neighbor overlap on 24 held-out texts"), (["--dev", dev], "sts:dev")):
        done = compress(tiny_bert, "--target", "1GB", "--eval", test, *more, "--overwrite")
        assert done.code == 0, done.err + done.out
        report = json.loads(done.out)
        assert said in report["facts"]["search"]["by"]
        assert {m["of"] for m in report["measures"] if "retention" in m["name"]} == {"sts:test"}
        assert not report["job"]["dev"]
    refused = compress(tiny_bert, "--target", "1GB", "--eval", test, "--dev", test, "--overwrite")
    assert refused.code == 2
    assert "is under --dev and --eval" in refused.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target", "1MB", "--holdout", 0], "leaves --target nothing to select by"),
        (["-m", "cast", "--holdout", 0, "--min-retention", 0.9], "leaves --min-retention nothing"),
        (["-m", "cast", "--dev", "sts:x.tsv"], "give --target or --tune"),
        (["-m", "cast", "--holdout", 2], "at least 3, or 0 for none"),
    ],
)
def test_refused(
    compress: Callable[..., CliResult], tiny_bert: Path, flags: list[object], said: str
) -> None:
    done = compress(tiny_bert, *flags)
    assert done.code == 2
    assert said in " ".join(done.out.split())
