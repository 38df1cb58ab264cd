"""The direction of imports: planner -> plans <- runtime, and within a package only what lies above.

Read from the source, so that nothing needs to be imported, and an import inside a function counts as well.
"""

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("plans", "planner", "runtime")
CONTRACT_MAY_IMPORT = {"plans", "yaml", *sys.stdlib_module_names}
NEVER_IN_RUNTIME = {"planner", "ortools", "networkx", "transformers"}
NEVER_IN_PLANNER = {"runtime", "transformers"}
READS_WEIGHTS = {"planner.compile", "planner.lanes", "planner.pickled", "planner.stream"}
"""The only modules of the planner that touch weights; none of them is imported to plan."""
ONLY_IN = {
    "ortools": {
        "planner.bounds",
        "planner.counts",
        "planner.cpsat",
        "planner.moves",
        "planner.search",
        "planner.solve",
        "planner.stage_bounds",
    },
    "numba": {"runtime.kernels"},
    "jinja2": {"planner.report", "runtime.chat"},
    "pynvml": {"planner.nvml"},
}


def modules() -> dict[str, Path]:
    """Dotted names of the product's modules."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


MODULES = modules()


@cache
def nodes(name: str) -> tuple[ast.AST, ...]:
    """All of a module's syntax tree."""
    return tuple(ast.walk(ast.parse(MODULES[name].read_text())))


@cache
def imported(name: str) -> frozenset[str]:
    """Every module that a module imports."""
    found: set[str] = set()
    for node in nodes(name):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: line {node.lineno}: relative import"
            source = node.module or ""
            inner = [f"{source}.{alias.name}" for alias in node.names]
            found |= {target if target in MODULES else source for target in inner}
    return frozenset(found)


def tops(name: str) -> set[str]:
    return {target.partition(".")[0] for target in imported(name)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_packages_form_a_v(name: str) -> None:
    package = name.partition(".")[0]
    if package == "plans":
        assert tops(name) <= CONTRACT_MAY_IMPORT
    if package == "runtime":
        assert not tops(name) & NEVER_IN_RUNTIME
    if package == "planner":
        assert not tops(name) & NEVER_IN_PLANNER


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_imported_inside_a_function(name: str) -> None:
    inner = [
        f"{name}: line {node.lineno}"
        for function in nodes(name)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inner == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_no_cycle(package: str) -> None:
    graph = {
        name: {target for target in imported(name) if target in MODULES and target != name}
        for name in MODULES
        if name.partition(".")[0] == package
    }
    TopologicalSorter(graph).prepare()


def test_each_large_library_has_its_home() -> None:
    homes = {library: {name for name in MODULES if library in tops(name)} for library in ONLY_IN}
    assert homes == ONLY_IN


def reachable(name: str, seen: set[str]) -> set[str]:
    seen.add(name)
    for target in imported(name):
        if target in MODULES and target not in seen:
            reachable(target, seen)
    return seen


@pytest.mark.parametrize("name", [f"planner.{name}" for name in ("solve", "certify", "emit", "layout", "report")])
def test_planning_imports_no_torch(name: str) -> None:
    assert not [module for module in reachable(name, set()) if "torch" in tops(module)]
    assert not reachable(name, set()) & READS_WEIGHTS


def test_only_the_edge_prints() -> None:
    prints = {
        name
        for name in MODULES
        for node in nodes(name)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo")
    }
    assert {name for name in prints if not name.startswith("planner.commands.")} == {"runtime.cli", "runtime.commands"}


@pytest.mark.parametrize(
    "name", [f"planner.{name}" for name in ("cli", "commands.compile", "commands.inputs", "commands.show")]
)
def test_only_to_build_needs_the_solver(name: str) -> None:
    assert not [module for module in reachable(name, set()) if tops(module) & {"ortools", "networkx"}]


def test_verifying_imports_no_torch() -> None:
    assert not [module for module in reachable("runtime.cli", set()) if tops(module) & {"torch", "numba"}]
