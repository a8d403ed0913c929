"""The house rules that an `ast` can hold: which way imports point, who may import what, sizes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vauban

ROOT = Path(vauban.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A module may import from its own level and from levels above it in this list.
LEVELS = [
    ["__init__", "errors", "types"],
    ["policy_base"],
    [
        "policy_console",
        "policy_extraction",
        "policy_output",
        "policy_sandbox",
        "policy_standing",
        "policy_tools",
    ],
    ["policy"],
    ["policy_sources"],
    ["text"],
    ["detectors"],
    ["state"],
    ["access"],
    [
        "guard",
        "screening",
        "offline",
        "telemetry",
        "standin",
        "mark",
        "recent",
        "protocol",
        "scripted",
    ],
    ["treatment"],
    ["hosts"],
    ["agents", "training", "redteam", "console"],
    ["commands"],
    ["cli", "__main__"],
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
MAY_IMPORT = {
    "torch": {
        "detectors", "training", "offline.py", "standin.py", "hosts/vllm/engine.py",
        "hosts/vllm/stream.py",
        "hosts/vllm/scripted_model.py", "hosts/vllm/front.py", "hosts/vllm/screener.py",
    },
    "vllm": {"hosts/vllm"},
    "tritonclient": {"hosts/triton"},
    "faiss": {"detectors/extraction/index.py"},
    "valkey": {"state/valkey.py"},
    "transformers": {"detectors", "training", "standin.py", "hosts/triton/served.py"},
    "triton_python_backend_utils": set(),
    "fastapi": {"hosts/vllm"},
    "mcp": {"agents/tool_server.py"},
    "kubernetes": {"agents/cluster.py", "agents/pods.py"},
    "websocket": {"agents/pods.py"},
    "typer": {"commands", "cli.py"},
    "httpx": {"commands", "console/guarded.py", "redteam"},
    "uvicorn": {
        "agents/tool_server.py", "commands/redteam_front.py",
        "console/serve.py", "redteam/relay.py",
    },
    "jinja2": {"console/render.py", "text/template_probe.py"},
    "pyrit": {"redteam/pyrit_driver.py"},
    "presidio_analyzer": {"text/pii.py"},
    "tldextract": {"text/pii.py"},
    "scipy": {"redteam/statistics.py", "training"},
}  # fmt: skip
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
# `tokenizers` raises a bare Exception, and PyRIT whatever its parts do; those handlers name the
# reason beside them.
BROAD_HANDLERS = {"guard.py": 1, "detectors/windows.py": 1, "redteam/pyrit_driver.py": 1}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def top(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of imported modules; a name imported from a package counts as a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_only(path: Path) -> None:
    mine = top(path)
    assert mine in LEVEL, f"{mine}: no place in the house"
    for imported in imports(parse(path)):
        package, _, rest = imported.partition(".")
        if package != "vauban" or not rest:
            continue
        other = rest.split(".")[0]
        if other == "__version__":
            continue
        assert LEVEL[other] <= LEVEL[mine], f"{name_of(path)} imports vauban.{rest}"


def test_the_guest_imports_only_the_standard_library() -> None:
    import sys

    for path in (ROOT / "agents" / "guest").glob("*.py"):
        for imported in imports(parse(path)):
            if imported != "vauban.agents.guest.agent":  # it is carried in beside what imports it
                assert imported.split(".")[0] in sys.stdlib_module_names, imported


def test_the_sandbox_never_starts_a_program_outside_the_jail() -> None:
    """Only the jail runs anything for the sandbox; the image's build and a version are its own."""
    starts = {"agents/jail.py", "agents/image_build.py", "agents/qemu.py"}
    for path in (ROOT / "agents").glob("*.py"):
        names = {imported.split(".")[0] for imported in imports(parse(path))}
        assert name_of(path) in starts or not names & {"subprocess", "multiprocessing", "pty"}


def test_hosts_do_not_import_each_other() -> None:
    for path in MODULES:
        parts = path.relative_to(ROOT).parts
        if parts[0] != "hosts" or len(parts) < 3:
            continue
        for imported in imports(parse(path)):
            if imported.startswith("vauban.hosts."):
                assert imported.split(".")[2] == parts[1], name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    for imported in imports(parse(path)):
        allowed = MAY_IMPORT.get(imported.split(".")[0])
        if allowed is not None:
            place = name_of(path)
            assert any(place == a or place.startswith(f"{a}/") for a in allowed), imported


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_broad_handlers(path: Path) -> None:
    broad = 0
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = set() if node.type is None else {ast.unparse(n) for n in ast.walk(node.type)}
            broad += node.type is None or bool(caught & {"Exception", "BaseException"})
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            broad += any(ast.unparse(a) in ("Exception", "BaseException") for a in node.args)
    assert broad == BROAD_HANDLERS.get(name_of(path), 0)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_print_no_global_state_no_assert(path: Path) -> None:
    tree = parse(path)
    for node in ast.walk(tree):
        assert not isinstance(node, (ast.Global, ast.Assert)), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"line {node.lineno}"
    assert path.name != "utils.py"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    tree = parse(path)
    assert path.name == "__init__.py" or ast.get_docstring(tree)


def test_an_init_holds_no_logic() -> None:
    for path in ROOT.rglob("__init__.py"):
        for node in parse(path).body:
            assert isinstance(node, (ast.Expr, ast.Assign)), name_of(path)


def test_importing_the_front_loads_neither_torch_nor_vllm() -> None:
    """The API server must not pay for an encoder that runs in the engine."""
    import subprocess
    import sys

    code = (
        "import sys, vauban.hosts.vllm.middleware, vauban.hosts.vllm.plugin;"
        "sys.exit(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
