"""The order of imports, read from the source: a module imports only what stands above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import emb_tool

PACKAGE = Path(emb_tool.__file__).parent

ORDER = (
    ("version", "errors", "hub_names"),
    ("formatting",),
    ("install",),
    ("report", "plan"),
    ("fields", "spellings"),
    ("method",),
    ("registry",),
    ("config", "recipe"),
    ("progress",),
    ("runtime",),
    ("checkpoint",),
    ("data",),
    ("ops",),
    ("packed", "windows"),
    ("hub",),
    ("model",),
    ("editing", "runner"),
    ("reporting",),
    ("engine",),
    ("api",),
    ("evaluate",),
    ("training",),
    ("distill", "compress", "merge", "extend_context", "encode", "tools"),
    ("cli",),
    ("__init__", "__main__"),
)
"""From the bottom of the house to the top; what shares a floor does not import one another."""

FLOOR = {name: floor for floor, names in enumerate(ORDER) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """`emb_tool.data.texts` is part of `data`."""
    return [*module.split("."), "__init__"][1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import of a file, those inside functions and for the type checker too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            module = str(node.module)
            if module == "emb_tool":
                yield from ((node.lineno, f"emb_tool.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def faults(source: str, module: str) -> list[str]:
    """What the file imports that does not stand above it."""
    own = part(module)
    found = []
    for line, target in imports(ast.parse(source)):
        theirs = part(target)
        if target.split(".")[0] == "click":
            found.append(f"{module}:{line} imports click, which typer does not depend on")
        if target.split(".")[0] != "emb_tool" or theirs == own:
            continue
        if FLOOR[theirs] >= FLOOR[own]:
            found.append(f"{module}:{line} imports {target}, which stands beside or below it")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    assert part(name_of(path)) in FLOOR, f"add {part(name_of(path))} to ORDER"
    assert faults(path.read_text(encoding="utf-8"), name_of(path)) == []


def test_an_import_of_what_stands_below_is_found() -> None:
    hidden = "def f():\n    from emb_tool.engine import run\n"
    assert faults(hidden, "emb_tool.data.texts")
    assert faults("import emb_tool.encode.run", "emb_tool.distill.run")
    assert faults("from emb_tool import cli", "emb_tool.engine")
    assert not faults("from emb_tool.data import texts", "emb_tool.distill.run")


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import one another in a circle, those in between too; [] if there are none.

    Args:
        sources: Module name to source.
    """
    graph: dict[str, set[str]] = {module: set() for module in sources}
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [name if name in sources else str(node.module) for name in whole]
            else:
                continue
            graph[module].update(sources.keys() & set(targets) - {module})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_modules_import_one_another_in_a_circle() -> None:
    sources = {
        name_of(path).removesuffix(".__init__"): path.read_text(encoding="utf-8") for path in FILES
    }
    assert circle(sources) == []
    made_up = {
        "p": "",
        "p.a": "from p import b",
        "p.b": "def f():\n    from p.c import g",
        "p.c": "if TYPE_CHECKING:\n    import p.a",
    }
    assert {*circle(made_up)} == {"p.a", "p.b", "p.c"}
    assert circle(made_up | {"p.c": "import p"}) == []


DEVICES = re.compile(r"(cuda|mps|xpu)(:\d+)?|nccl|gloo")


def device_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Devices and processes as code names them: whole strings, and parts of torch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if DEVICES.fullmatch(node.value):
                yield node.lineno, repr(node.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("torch.cuda", "torch.mps", "torch.distributed"):
                yield node.lineno, name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = getattr(node, "module", None) or ""
            for name in (module, *names, *(f"{module}.{name}" for name in names)):
                if name.startswith(("torch.distributed", "torch.cuda", "accelerate")):
                    yield node.lineno, name


DEVICE_FILES = {
    f"emb_tool.runtime.{name}" for name in ("device", "distributed", "cuda_graphs", "process_state")
}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_devices_and_processes_are_named_in_runtime_alone(path: Path) -> None:
    found = list(device_names(ast.parse(path.read_text(encoding="utf-8"))))
    if name_of(path) in DEVICE_FILES:
        assert found
    else:
        assert found == []


HEAVY = (
    "torch transformers sentence_transformers datasets pyarrow sklearn scipy matplotlib accelerate"
)


def test_help_and_methods_do_without_torch() -> None:
    script = f"""
import sys
from emb_tool.cli.app import commands, main
lines = [["--help"], ["methods"], ["methods", "distill", "leaf"]]
lines += [[command, "--help"] for command in commands()]
for line in lines:
    try:
        code = main(line)
    except SystemExit as done:
        code = done.code
    assert not code, (line, code)
print("heavy:", *sorted({set(HEAVY.split())!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
