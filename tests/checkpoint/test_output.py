"""The output folder: complete under its name, or a resumable partial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emb_tool.checkpoint.output import OutputFolder
from emb_tool.checkpoint.own_files import OWN_FOLDER, PROVENANCE
from emb_tool.errors import InvalidInput, RunFailed


def make(out: Path, digest: str = "job1", text: str = "weights", **flags: bool) -> OutputFolder:
    with OutputFolder(out, job_digest=digest, **flags) as folder:
        if not folder.finished:
            (folder.partial / "model").write_text(text)
            folder.seal()
    return folder


def fail(out: Path, error: BaseException, digest: str = "job1", **flags: bool) -> None:
    """Half a job, then an error."""
    with OutputFolder(out, job_digest=digest, **flags) as folder:
        (folder.partial / "half").write_text("half")
        (folder.state / "step").write_text("7")
        raise error


def interrupt(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(out, KeyboardInterrupt())


def names(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()}


def test_seal(tmp_path: Path) -> None:
    out = tmp_path / "deep/er/out"
    make(out)
    assert names(out) == {"model", OWN_FOLDER}
    assert json.loads((out / PROVENANCE).read_text())["digest"] == "job1"
    assert names(out.parent) == {"out"}


def test_a_check_refuses_what_the_work_would_and_changes_nothing(tmp_path: Path) -> None:
    def check(out: Path, digest: str = "job1", **flags: bool) -> None:
        OutputFolder(out, job_digest=digest, **flags).check()

    check(tmp_path / "new")
    make(tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").touch()
    interrupt(tmp_path / "half")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name, flags, said in (
        ("out", {}, "not empty"),
        ("foreign", {}, "not empty"),
        ("half", {}, "left by an interrupted job"),
        ("half", {"digest": "job2", "resume": True}, "belongs to another job"),
    ):
        with pytest.raises(InvalidInput, match=said):
            check(tmp_path / name, **flags)  # type: ignore[arg-type]
    check(tmp_path / "out", resume=True)
    check(tmp_path / "out", overwrite=True)
    check(tmp_path / "half", resume=True)
    check(tmp_path / "half", overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with (
        OutputFolder(tmp_path / "half", job_digest="job1", resume=True),
        pytest.raises(
            InvalidInput, match=rf"another process \(pid {os.getpid()} on .*\) is writing"
        ),
    ):
        check(tmp_path / "half", overwrite=True)


def test_finished_job_is_not_done_again(tmp_path: Path) -> None:
    make(tmp_path / "out")
    assert make(tmp_path / "out", resume=True).finished
    with pytest.raises(InvalidInput, match="result of another job"):
        make(tmp_path / "out", "job2", resume=True)
    with pytest.raises(InvalidInput, match="not empty") as refused:
        make(tmp_path / "out")
    assert "--overwrite" in str(refused.value.hint)
    make(tmp_path / "out", "job2", "new", overwrite=True)
    assert (tmp_path / "out/model").read_text() == "new"
    assert names(tmp_path) == {"out"}


def test_users_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out/sub").mkdir(parents=True)
    (tmp_path / "out/thesis.tex").write_text("x")
    with pytest.raises(InvalidInput, match="not empty"):
        make(tmp_path / "out", resume=True)
    monkeypatch.chdir(tmp_path / "out/sub")
    with pytest.raises(InvalidInput, match="working or home folder"):
        make(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == {"out"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="is a file"):
        make(tmp_path / "file", overwrite=True)


def test_partial(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(out)
    assert names(tmp_path) == {"out.partial"}
    with pytest.raises(InvalidInput, match="left by an interrupted job") as refused:
        make(out)
    assert "--resume" in str(refused.value.hint)
    assert "--overwrite" in str(refused.value.hint)
    with pytest.raises(InvalidInput, match="belongs to another job"):
        make(out, "job2", resume=True)
    with OutputFolder(out, job_digest="job1", resume=True) as folder:
        assert folder.resumed
        assert (folder.state / "step").read_text() == "7"
        folder.seal()
    assert names(out) == {"half", OWN_FOLDER}


def test_overwrite_makes_the_partial_anew(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    with OutputFolder(tmp_path / "out", job_digest="job2", overwrite=True, resume=True) as folder:
        assert not folder.resumed
        assert names(folder.partial) == {".state"}
        assert names(folder.state) == {"lock", "digest"}


@pytest.mark.parametrize("made_again", [False, True])
@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_killed_between_the_renames_of_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], made_again: bool
) -> None:
    out, rename = tmp_path / "out", Path.rename
    make(out, "job1", "old")

    def killed(path: Path, target: Path) -> Path:
        if path.name == "out.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        make(out, "job2", "new", overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == {"out.partial"}
    if made_again:
        make(out.with_name("other"), text="newer")
        out.with_name("other").rename(out)
    if flags.get("overwrite"):
        assert make(out, "job2", overwrite=True, resume=True).resumed
    else:
        with pytest.raises(InvalidInput, match="not empty"):
            make(out, "job2", **flags)
        assert (out / "model").read_text() == ("newer" if made_again else "old")
        make(out, "job3", "new", overwrite=True)
    assert names(tmp_path) == {"out"}
    assert names(out) == {"model", OWN_FOLDER}


def test_resume_with_nothing_to_resume(tmp_path: Path) -> None:
    assert not make(tmp_path / "out", resume=True).resumed
    assert (tmp_path / "out/model").exists()


def test_foreign_partial_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/mine").write_text("x")
    for flags in ({}, {"resume": True}):
        with pytest.raises(InvalidInput):
            make(tmp_path / "out", **flags)
    assert (tmp_path / "out.partial/mine").read_text() == "x"


def test_refused_input_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new/out"
    with pytest.raises(InvalidInput, match="line 7"):
        fail(out, InvalidInput("line 7 is not JSON"))
    assert names(tmp_path) == set()
    interrupt(out)
    with pytest.raises(InvalidInput, match="a file is missing"):
        fail(out, InvalidInput("a file is missing"), resume=True)
    assert (out.with_name("out.partial") / "half").exists()  # an earlier run's work is kept


def test_second_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from emb_tool.checkpoint.output import OutputFolder\n"
        "with OutputFolder(sys.argv[1], job_digest='j'):\n"
        "    print('locked', flush=True); sys.stdin.readline()\n"
    )
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InvalidInput, match=f"another process .pid {holder.pid} "):
            make(out, "j", **flags)
    holder.kill()
    holder.communicate()
    assert make(out, "j", resume=True).resumed  # a killed process holds nothing


def real_enospc() -> OSError:
    try:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
    except OSError as error:
        return error
    raise AssertionError("/dev/full took a byte")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match="no space left on the disk") as failed:
        fail(out, real_enospc())
    assert failed.value.exit_code == 1
    assert "--resume" in str(failed.value.hint)
    assert (tmp_path / "out.partial/half").exists()
    # some libraries keep the text alone
    with pytest.raises(RunFailed, match="no space left on the disk"):
        fail(out, RuntimeError(f"write failed: {real_enospc()}"), resume=True)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="cannot write there"):
        make(tmp_path / "file/out")
