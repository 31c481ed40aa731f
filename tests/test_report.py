"""`embtool report`, the page and the card: figures as they are, names from strangers escaped."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from emb_tool import config
from emb_tool.checkpoint.own_files import METRICS, PAGE, PROVENANCE, REPORT, own_file
from emb_tool.compress.run import CompressRunner
from emb_tool.formatting import redact
from emb_tool.report import Measure, Report, Table
from emb_tool.reporting import inline_svg, plots
from emb_tool.reporting.model_card import read_front, write_model_card
from emb_tool.reporting.page import page
from emb_tool.reporting.plots import Point
from emb_tool.reporting.style import DARK, LIGHT
from emb_tool.reporting.summary import Summary, command
from emb_tool.runner import Options
from tests.conftest import CliResult

Cli = Callable[..., CliResult]
NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>|'


def made(out: Path, size: int = 20_000_000, kept: float = 98.5, **facts: Any) -> Report:
    """A report as `compress` writes it, without a model."""
    name = str(out)
    of = "sts:dev"
    return Report(
        "compress",
        output=name,
        job={
            "verb": "compress", "model": "/home/someone/model", "output": name, "seed": 0,
            "method": [{"name": "int", "bits": 4}], "texts": ["/home/someone/texts.jsonl"],
        },
        facts={"steps": ["int: 4 bits"], **facts},
        measures=[
            Measure("weights before", 90_000_000, "B"),
            Measure("weights", size, "B", model=name),
            Measure("weights", 90_000_000, "B", model="/home/someone/model"),
            Measure("spearman", 0.85, of=of, model=name),
            Measure("pairs", 1500, "pairs", of=of, model=name),
            Measure("retention", kept, "%", of=of, model=name),
            Measure("retention low", kept - 1, "%", of=of, model=name),
            Measure("retention high", kept + 1, "%", of=of, model=name),
            Measure("spearman", 0.863, of=of, model="/home/someone/model"),
            Measure("resident", size, "B", model=name),
            Measure("neighbor overlap", 0.93, of="held-out texts", model=name),
        ],
        tables=[Table("compressed", ["", "after"], [["weights", "20 MB"]])],
        timings={"write_seconds": 2.5, "check_seconds": 4.0, "total_seconds": 200.0},
    )  # fmt: skip


def written(folder: Path, report: Report) -> Path:
    folder.mkdir(parents=True)
    own_file(folder, REPORT).write_text(json.dumps(report.to_file()))
    return folder


# -- the command ----------------------------------------------------------------------------------


def test_outputs_stand_side_by_side(run_cli: Cli, tmp_path: Path) -> None:
    small = written(tmp_path / "small", made(tmp_path / "small", 10_000_000, 97.0))
    large = written(tmp_path / "large", made(tmp_path / "large"))
    said = run_cli("report", small, large)
    assert said.code == 0
    assert "/home/someone" not in said.out
    row = next(line for line in said.out.splitlines() if line.startswith("small  compress"))
    assert " ".join(row.split()) == "small compress 10.00 11.1 % 10.00 97.0 % 93.0 % 3 min 20 s"
    assert "against model\n" in said.out  # its input, where nothing is known of a root
    assert max(len(line.rstrip()) for line in said.out.splitlines()) <= 80
    assert "small  int:bits=4\n" in said.out.replace(" \n", "\n")
    told = json.loads(run_cli("report", small, large, "--json").out)
    first, second = told["facts"]["outputs"]
    assert (first["name"], second["name"]) == ("small", "large")
    assert first["before"] == 90_000_000
    assert first["quality"][0] == {
        "of": "sts:dev", "figure": "spearman", "before": 0.863, "after": 0.85, "retention": 97.0,
        "low": 96.0, "high": 98.0, "against": "model",
    }  # fmt: skip
    assert second["retention"] == {"root": 0.985, "input": 0.985}
    assert (second["seconds"], second["check_seconds"]) == (200.0, 4.0)


def test_a_page_of_several_and_none_is_replaced_unasked(run_cli: Cli, tmp_path: Path) -> None:
    parts = {"parts": {"before": {}, "after": {"layers": {"parameters": 9, "bytes": 7_000_000}}}}
    folders = [
        written(tmp_path / name, made(tmp_path / name, size * 1_000_000, kept, **parts))
        for name, size, kept in (("a", 10, 97.0), ("b", 20, 98.0), ("c", 30, 96.0))
    ]
    target = tmp_path / "page.html"
    assert run_cli("report", *folders, "--page", target).code == 0
    found = target.read_text()
    assert found.count("<use") == 8  # three outputs and their input, in two scatters
    assert found.count("7.00 MB</span>") == 3
    again = run_cli("report", *folders, "--page", target)
    assert again.code == 2
    assert "already exists" in again.err
    assert run_cli("report", *folders, "--page", target, "--overwrite").code == 0
    assert target.read_text() == found
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"no {REPORT}"),
        ("{", "not JSON"),
        ("[]", "a JSON object is expected"),
        ('{"schema": 9}', "not a report of schema 1"),
        ('{"schema": 1, "verb": ["x"]}', "not a report: verb"),
        ('{"schema": 1, "verb": "eval"}', "which does not write a model"),
    ],
)
def test_what_is_no_report_is_refused(
    run_cli: Cli, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        own_file(tmp_path, REPORT).write_text(content)
    said = run_cli("report", tmp_path)
    assert said.code == 2
    assert message in said.err


# -- the page -------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_names_from_strangers_stay_text(tmp_path: Path) -> None:
    report = made(tmp_path / f"out{NASTY.replace('/', '')}")
    report.job["method"] = [{"name": NASTY, "bits": NASTY}]
    report.job["model"] = NASTY
    report.facts = {
        "steps": [NASTY],
        "parts": {"before": {NASTY: {"bytes": 5}}, "after": {NASTY: {"bytes": 3}}},
        "search": {
            "aim": NASTY, "chosen": NASTY, "by": NASTY,
            "tried": [{"chain": NASTY, "bytes": n, "retention": n / 9} for n in (4, 2)],
        },
        "training": {"best_at": 5, "history": [{"texts": 0, NASTY: 1.0}, {"texts": 5, NASTY: 2.0}]},
    }  # fmt: skip
    report.warn(NASTY)
    report.gate = NASTY
    report.tables = [Table(NASTY, [NASTY, NASTY], [[NASTY, NASTY]])]
    report.measures.append(Measure(NASTY, 1.0, NASTY, of=NASTY, model=str(report.output)))
    folder = written(tmp_path / "out", report)
    provenance = {
        "versions": {NASTY: NASTY}, "runtime": {NASTY: NASTY}, "papers": [NASTY, f"doi:{NASTY}"],
        "inputs": {NASTY: {NASTY: NASTY}}, "created": NASTY,
    }  # fmt: skip
    own_file(folder, PROVENANCE).write_text(json.dumps(provenance))
    found = page(folder)
    assert "<script" not in found
    assert "<img" not in found
    tags = Tags(found)
    assert not {"script", "img", "iframe", "object", "link"} & tags.names
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert tags.open == []
    assert "default-src &#x27;none&#x27;" in found


def test_a_page_of_another_version_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    report = made(tmp_path / "out", steps="no list", parts=[1], search={"tried": 5}, training=7)
    report.job = {"verb": "shrink", "method": "x"}
    folder = written(tmp_path / "out", report)
    own_file(folder, METRICS).write_text('{"texts": 1, "loss": 2}\n{"texts": "x"}\n{"text')
    own_file(folder, PROVENANCE).write_text('{"versions": 3, "inputs": [], "papers": {}}')
    found = page(folder)
    assert "embtool shrink" in found
    assert "Curves" not in found


def test_a_page_shows_loss_frontier_and_figures(tmp_path: Path) -> None:
    tried = [
        {"chain": "-m a", "bytes": 10_000_000, "retention": 0.97},
        {"chain": "-m b", "bytes": 20_000_000, "retention": 0.95},
        {"chain": "-m c", "bytes": 30_000_000, "retention": None},
    ]
    report = made(
        tmp_path / "out", search={"aim": "--target 12 MB", "chosen": "-m a", "tried": tried}
    )
    folder = written(tmp_path / "out", report)
    lines = [json.dumps({"texts": 10 * i, "loss": 1 / i, "lr": 0.1}) for i in range(1, 6)]
    own_file(folder, METRICS).write_text("\n".join(lines))
    found = page(folder)
    assert "98.5&nbsp;% (97.5 to 99.5)" in found
    assert "22.2&nbsp;% of before" in found
    tiles = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', found)
    assert tiles[0] == (
        "98.5&nbsp;%",
        "retention of spearman relative to model, sts:dev",
    )  # a task leads
    assert ("3 min 20 s", "wall time, 4.0 s of it checking") in tiles
    assert found.count("<use") == 5 + 5 + 3  # loss, rate; two chains and what they started from
    assert "<title>-m a: 10.00 MB, retention 97.00%</title>" in found
    assert found == page(folder)
    assert "/home/someone" not in found


def test_the_frontier_is_what_nothing_beats() -> None:
    points = [Point("", x, y) for x, y in ((3, 5), (1, 1), (2, 4), (2, 3), (4, 5))]
    assert [(p.size, p.value) for p in plots.frontier(points)] == [(1, 1), (2, 4), (3, 5)]


def test_a_chart_follows_the_page_and_no_matplotlibrc() -> None:
    import matplotlib

    points = [Point("a", 1e6, 0.8, tip="one"), Point("b", 9e6, 0.9, reference=True)]
    svg = inline_svg.scatter(points, "spearman")
    with matplotlib.rc_context({"axes.facecolor": "pink", "font.size": 30, "text.usetex": True}):
        assert inline_svg.scatter(points, "spearman") == svg
        assert matplotlib.rcParams["font.size"] == 30
    assert not re.search("#[0-9a-f]{6}", svg)  # every color is a variable of both styles
    assert set(re.findall(r"var\(--(.*?)\)", svg)) <= LIGHT.keys() == DARK.keys()
    assert re.match(
        '<svg viewBox="[0-9. ]+" role="img" aria-label="spearman against weights">', svg
    )
    assert "<title>one</title>" in svg
    assert ">spearman</text>" in svg
    assert "<style" not in svg


def test_ids_of_one_chart_are_not_those_of_another() -> None:
    line = [(float(i), 1 / (i + 1)) for i in range(9)]
    charts = [inline_svg.curve(name, line, "texts", 3) for name in ("loss", "learning rate")]
    ids = [set(re.findall(r' id="(.*?)"', svg)) for svg in charts]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip(charts, ids, strict=True):
        assert set(re.findall(r"#(\w+)", svg)) == own  # all that is named is there


@pytest.mark.parametrize(
    "name", ["$x", r"$\x$", "_a", "\x00\x1b[0m", "\udcff", "\u6a21\u578b", "<b>&"]
)
@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    points = [Point(name, 1e6, 0.8, tip=name), Point("b", 9e6, 0.9)]
    Tags(inline_svg.scatter(points, name))
    assert inline_svg.curve(name, [(0, 1.0), (1, 2.0)], name)
    if name.isascii():  # of others matplotlib warns that its font lacks them
        curves = {name: {name: [(512, 1.0), (1024, 0.5)]}}
        plots.draw({(name, name): points}, str(tmp_path / "p.png"), curves)


def test_only_finite_points_are_drawn() -> None:
    nan = float("nan")
    assert inline_svg.curve("x", [(0, nan), (1, 2.0)], "texts") == ""
    assert inline_svg.scatter([Point("a", 1e6, nan), Point("b", 1e6, 1.0)], "x") == ""
    assert inline_svg.curve("x", [(0, nan), (1, 2.0), (2, 2.0)], "texts").count("<use") == 2


def test_a_long_line_is_thinned_to_its_end() -> None:
    line = [(float(i), float(i % 7)) for i in range(100_000)]
    assert len(inline_svg.curve("x", line, "texts")) < 20_000


def test_without_matplotlib_the_page_says_how_to_get_charts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    history = [{"texts": 10.0 * i, "loss": 1 / i, "spearman": 0.1 * i} for i in range(1, 4)]
    folder = written(tmp_path / "out", made(tmp_path / "out", training={"history": history}))
    assert page(folder).count("<svg") == 2
    for module in ("matplotlib", "matplotlib.style", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    found = page(folder)
    assert "<svg" not in found
    assert found.count("Charts need matplotlib") == 1
    assert "pip install &#x27;./embtool[plot]&#x27;" in found
    assert "98.5&nbsp;%" in found


def test_a_page_without_charts_does_not_import_matplotlib(tmp_path: Path) -> None:
    parts = {"parts": {"before": {}, "after": {"layers": {"parameters": 9, "bytes": 7_000_000}}}}
    folder = written(tmp_path / "out", made(tmp_path / "out", **parts))
    script = (
        "import sys; from pathlib import Path; from emb_tool.reporting.page import write_page;"
        f"write_page(Path({str(folder)!r})); print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert "7.00 MB" in (folder / PAGE).read_text()


# -- what may be published ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("private", "shown"),
    [
        ("/home/me/texts.jsonl", "texts.jsonl"),
        ("sts:/home/me/dev.tsv", "sts:dev.tsv"),
        ("m keeps 3 % of /home/me/m, less than", "m keeps 3 % of m, less than"),
        ("s3://key:secret@bucket/a.parquet?token=x", "s3://bucket/a.parquet"),
        ("https://host/v1#org/model", "https://host/v1#org/model"),
        ("org/model", "org/model"),
        ("1/2 of it, and/or more", "1/2 of it, and/or more"),
        ("../up/x", "x"),
    ],
)
def test_paths_and_secrets_are_left_out(private: str, shown: str) -> None:
    assert redact(private) == shown
    assert redact({"a": [private]}) == {"a": [shown]}


def test_the_command_line_is_the_one_that_gives_the_job() -> None:
    flags = {"model": "m", "texts": ("a.txt", "b.txt"), "output": "out", "limit": "5"}
    methods = ["layers:keep=0,2", "int:bits=8"]
    job = config.resolve("compress", flags=flags, method=methods)
    words = shlex.split(command(job.recipe()))
    assert words == ["embtool", "compress", "m", "--texts", "a.txt", "b.txt", "--limit", "5",
                     "--output", "out", "-m", "layers:keep=0,2", "-m", "int:bits=8"]  # fmt: skip
    again = config.resolve("compress", flags=flags, method=words[-3::2])
    assert again.digest() == job.digest()


# -- the card -------------------------------------------------------------------------------------


def test_the_card_has_before_and_after_and_a_valid_model_index(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    report = made(tmp_path / "out")
    report.job["model"] = "/home/someone/m"
    report.measures.append(Measure("ndcg@10", 0.41, of="retrieval:a|b", model=str(report.output)))
    report.facts["parts"] = {
        "before": {"layers": {"bytes": 4_000_000}},
        "after": {"x": {"bytes": 10}},
    }
    write_model_card(tmp_path, title="out", base_models=["org/m"], report=report, job=report.job)
    text = (tmp_path / "README.md").read_text()
    assert "| sts:dev, spearman | 0.8630 | 0.8500 | 98.5 % (97.5 to 99.5) of m |" in text
    assert "| layers | 4.00 MB | - |" in text
    assert "retrieval:a\\|b" in text
    card = ModelCard(text)
    found = {
        (r.task_type, r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results
    }
    assert found["semantic-similarity", "dev", "spearman_cosine"] == 0.85
    assert found["information-retrieval", "a|b", "cosine_ndcg@10"] == 0.41
    assert found["feature-extraction", "held-out texts", "neighbor-overlap"] == 0.93
    assert len(found) == 4  # with the share kept; no bounds, no counts, nothing of other models
    front = yaml.safe_load(re.split(r"^---$", text, flags=re.MULTILINE)[1])
    assert front["model-index"] == yaml.safe_load(card.data.to_yaml())["model-index"]


CARDS = {
    "---\nlicense: mit\ntags: [a]\n---\n# M\n": {"license": "mit", "tags": ["a"]},
    "\ufeff---\r\nlicense: mit\r\n---\r\n# M\r\n": {"license": "mit"},
    "---\nmodel-index: 3\n---\n": {"model-index": 3},
    "---\n---\n": {},
    "# M\n\n---\nlicense: mit\n---\n": {},
    "---\nlicense: mit\n": {},
    "---\n[1, 2]\n---\n": {},
    "---\n: [\n---\n": {},
    "---\n" + "[" * 5000 + "\n---\n": {},
    "---\nlicense: mit\n---\n" + " " * 10**6: {},
}


@pytest.mark.parametrize("text", CARDS, ids=lambda text: repr(text[:30]))
def test_the_front_of_any_card_is_read_or_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8", newline="")
    assert read_front(tmp_path) == CARDS[text]


def test_a_folder_without_a_card_that_is_text(tmp_path: Path) -> None:
    assert read_front(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_front(tmp_path) == {}


@pytest.mark.parametrize(
    ("methods", "relation"),
    [
        (["int:bits=8"], "quantized"),
        (["truncate:dim=8", "pq:budget=0.1"], "quantized"),
        (["bnb-nf4"], "quantized"),
        (["truncate:dim=8", "cast:dtype=fp16"], "finetune"),
    ],
)
def test_packed_weights_are_quantized_to_the_hub(methods: list[str], relation: str) -> None:
    job = config.resolve("compress", flags={"model": "m", "output": "out"}, method=methods)
    assert CompressRunner(job, Options(), Report("compress")).relation == relation


def test_a_summary_of_what_has_no_figures() -> None:
    told = Summary.of(Report("merge", output="/x/out", job={"verb": "merge"}))
    assert (told.after, told.seconds, told.quality, told.methods) == (None, None, (), ())
