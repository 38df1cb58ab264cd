"""The direction of imports: planner -> plans <- runtime, and inside each the packages that a package may import.

Imports are read from the source, so that nothing is imported and imports inside functions count too.
"""

import ast
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("plans", "planner", "runtime")

ROOMS = {
    "planner.integers": set(),
    "planner.errors": set(),
    "planner.directory_lock": {"planner.errors"},
    "planner.demo_model": set(),
    "planner.report": set(),
    "planner.efficiency": set(),
    "planner.hardware": {"planner.errors", "planner.efficiency"},
    "planner.checkpoints": {"planner.errors"},
    "planner.quantized": {"planner.errors"},
    "planner.families": {"planner.errors", "planner.checkpoints", "planner.quantized"},
    "planner.costs": {"planner.integers", "planner.efficiency"},
    "planner.solver": {"planner.errors", "planner.integers"},
    "planner.problem": {"planner.errors", "planner.integers", "planner.costs", "planner.solver"},
    "planner.images": {
        "planner.directory_lock",
        *("planner.errors", "planner.checkpoints", "planner.families", "planner.quantized"),
    },
    "planner.request": {"planner.errors", "planner.costs", "planner.families", "planner.hardware"},
    "planner.formulations": {"planner.families", "planner.problem"},
    "planner.infeasible": {"planner.errors", "planner.solver"},
    "planner.enough_hosts": {
        *("planner.errors", "planner.integers", "planner.problem", "planner.solver", "planner.infeasible"),
    },
    "planner.longest_context": {
        *("planner.integers", "planner.problem", "planner.solver", "planner.request", "planner.formulations"),
        "planner.enough_hosts",
    },
    "planner.speculation": {
        *("planner.errors", "planner.integers", "planner.costs", "planner.families", "planner.problem"),
        *("planner.solver", "planner.formulations", "planner.enough_hosts"),
    },
    "planner.emit": {"planner.costs", "planner.problem", "planner.solver"},
    "planner.exports": {"planner.errors", "planner.problem"},
    "planner.plan_directory": {
        "planner.errors",
        "planner.directory_lock",
        "planner.checkpoints",
        "planner.families",
    },
    "planner.build": {
        *("planner.errors", "planner.costs", "planner.families", "planner.problem", "planner.solver"),
        *("planner.request", "planner.formulations", "planner.enough_hosts", "planner.longest_context", "planner.emit"),
        *("planner.plan_directory", "planner.speculation"),
    },
    "planner.remedies": {
        *("planner.errors", "planner.hardware", "planner.problem", "planner.solver", "planner.request"),
        *("planner.formulations", "planner.enough_hosts", "planner.longest_context", "planner.build"),
        *("planner.integers", "planner.families"),
    },
    "planner.fleet": {
        *("planner.errors", "planner.integers", "planner.costs", "planner.families"),
        *("planner.problem", "planner.solver", "planner.formulations", "planner.enough_hosts", "planner.speculation"),
        *("planner.build", "planner.plan_directory"),
    },
    "planner.api": {
        *("planner.errors", "planner.demo_model", "planner.checkpoints", "planner.families", "planner.hardware"),
        *("planner.costs", "planner.problem", "planner.solver", "planner.images", "planner.request", "planner.build"),
        *("planner.remedies", "planner.plan_directory", "planner.speculation", "planner.fleet", "planner.integers"),
    },
    "planner.commands": {
        *("planner.errors", "planner.demo_model", "planner.report", "planner.hardware", "planner.checkpoints"),
        *("planner.families", "planner.solver", "planner.problem", "planner.images", "planner.request"),
        *("planner.plan_directory", "planner.remedies", "planner.api", "planner.exports", "planner.speculation"),
        "planner.fleet",
    },
    "planner.cli": {"planner.commands"},
    "planner.__main__": {"planner.cli"},
    "runtime.errors": set(),
    "runtime.sampling": {"runtime.errors"},
    "runtime.request": {"runtime.errors", "runtime.sampling"},
    "runtime.special_tokens": {"runtime.errors"},
    "runtime.text": {"runtime.errors", "runtime.request", "runtime.special_tokens"},
    "runtime.chat": {"runtime.errors", "runtime.special_tokens"},
    "runtime.comm": {"runtime.errors"},
    "runtime.image": {"runtime.errors"},
    "runtime.model": {"runtime.errors", "runtime.sampling", "runtime.comm", "runtime.image"},
    "runtime.calibration": {"runtime.errors", "runtime.comm", "runtime.image", "runtime.model"},
    # errors: a captured step that takes more memory than is planned, whenever it is captured
    "runtime.decode": {"runtime.errors", "runtime.sampling", "runtime.comm", "runtime.image", "runtime.model"},
    "runtime.processes": {
        *("runtime.errors", "runtime.request", "runtime.text", "runtime.comm", "runtime.image", "runtime.model"),
        *("runtime.decode", "runtime.sampling"),
    },
    "runtime.tokenizer": {
        *("runtime.errors", "runtime.request", "runtime.text", "runtime.chat", "runtime.special_tokens"),
    },
    "runtime.generation": {"runtime.request"},
    "runtime.continuous": {"runtime.errors", "runtime.generation", "runtime.request", "runtime.processes"},
    "runtime.engine": {
        *("runtime.errors", "runtime.request", "runtime.tokenizer", "runtime.image", "runtime.processes"),
        *("runtime.generation", "runtime.continuous"),
    },
    "runtime.serve": {
        *("runtime.errors", "runtime.request", "runtime.text", "runtime.chat", "runtime.generation"),
        *("runtime.continuous", "runtime.engine"),
    },
    "runtime.commands": {
        *("runtime.errors", "runtime.request", "runtime.text", "runtime.chat", "runtime.image", "runtime.processes"),
        *("runtime.generation", "runtime.engine", "runtime.serve", "runtime.calibration"),
    },
    "runtime.cli": {"runtime.errors", "runtime.processes", "runtime.commands"},
    "runtime.__main__": {"runtime.cli"},
}
"""The rooms from the bottom up, each with exactly those of its top package that it imports."""

FRONT = "tools/eagleplan"
"""The package ``eagleplan``: one call from files to text. Somebody has to call both packages, and neither may call the
other; it lies in tools/, the one directory whose modules use both, and is installed beside them."""
FRONT_MAY_IMPORT = {
    *("planner", "planner.errors", "plans.exports", "plans.schema"),
    *("runtime", "runtime.errors", "runtime.request"),
    *("eagleplan", "eagleplan.calls", "eagleplan.kept"),
}
"""Interfaces of the packages: what they export, their errors, and the types of arguments."""

SOLVER = "planner.solver"
CONTRACT_MAY_IMPORT = {"plans", "yaml", *sys.stdlib_module_names}
NEVER_IN_RUNTIME = {"planner", "ortools", "transformers"}
NEVER_IN_PLANNER = {"runtime", "transformers"}
READS_WEIGHTS = {
    "planner.checkpoints.pickle_to_safetensors",
    "planner.images.compile",
    "planner.images.pipeline",
    "planner.images.reader",
    "planner.images.blocks",
    "planner.images.stream",
    "planner.quantized.codes",
    "planner.quantized.converting",
    "planner.quantized.rounding",
}
"""The only modules of the planner that touch weights; none of them is imported to plan."""
ONLY_IN = {
    "ortools": {"planner.solver"},
    "pynvml": {"planner.hardware"},
    "psutil": {"planner.hardware", "runtime.processes"},
    "safetensors": {"planner.commands"},
    "huggingface_hub": {"planner.checkpoints"},
    "blake3": {"planner.images", "runtime.image"},
    "numba": {"runtime.model"},
    "llvmlite": {"runtime.model"},
    "torch": {
        *("planner.checkpoints", "runtime.comm", "runtime.image", "runtime.model", "runtime.decode"),
        *("runtime.processes", "runtime.tokenizer", "runtime.calibration"),
    },
    "triton": {"runtime.model"},
    "jinja2": {"planner.report", "runtime.chat"},
    "rich": {"planner.report", "planner.commands", "runtime.commands"},
    "click": {"planner.commands", "planner.cli", "runtime.commands", "runtime.cli"},
    "yaml": {"plans.strict_yaml"},
    "regex": {"planner.quantized"},
    "starlette": {"runtime.serve"},
    "uvicorn": {"runtime.serve"},
    "h11": {"runtime.serve"},
    "pydantic": {"runtime.serve"},
    "prometheus_client": {"runtime.serve"},
}
"""Each library that has a home, and where that is."""


def modules() -> dict[str, Path]:
    """Return the files of the product's modules by dotted name."""
    files = (file for top in TOPS for file in sorted((ROOT / top).rglob("*.py")))
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


MODULES = modules()


def room(name: str) -> str:
    """Return the room of a module: its package directly below planner, plans or runtime, or the module itself."""
    return ".".join(name.split(".")[:2])


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What the tests ask of a module's source; its syntax tree is not kept."""

    imported: frozenset[str]
    """Names of all modules that it imports."""
    inner_lines: tuple[int, ...]
    """Lines of its imports inside functions."""
    called: frozenset[str]
    """Functions that it calls by a name or by an attribute of a name."""


@cache
def source(name: str) -> Source:
    """Return what a module's source says, read in one pass over its syntax tree."""
    targets: set[str] = set()
    called: set[str] = set()
    inner_lines = []
    left: list[tuple[ast.AST, bool]] = [(ast.parse(MODULES[name].read_text()), False)]
    while left:
        node, inside = left.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            targets |= _targets(name, node)
            if inside:
                inner_lines.append(node.lineno)
        elif isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=function):
                    called.add(function)
                case ast.Attribute(value=ast.Name(id=owner), attr=function):
                    called.add(f"{owner}.{function}")
        inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        left += [(child, inside) for child in ast.iter_child_nodes(node)]
    return Source(imported=frozenset(targets), inner_lines=tuple(inner_lines), called=frozenset(called))


def _targets(name: str, node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the names of the modules that an import of a module imports."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert node.level == 0, f"{name}: line {node.lineno}: relative import"
    origin = node.module or ""
    inner = [f"{origin}.{alias.name}" for alias in node.names]
    return {target if target in MODULES else origin for target in inner}


def imported(name: str) -> frozenset[str]:
    """Return the names of all modules that a module imports."""
    return source(name).imported


def tops(name: str) -> set[str]:
    return {target.partition(".")[0] for target in imported(name)}


def reachable(name: str, seen: set[str]) -> set[str]:
    seen.add(name)
    for target in imported(name):
        if target in MODULES and target not in seen:
            reachable(target, seen)
    return seen


@pytest.mark.parametrize("name", sorted(MODULES))
def test_packages_form_a_v(name: str) -> None:
    top = name.partition(".")[0]
    if top == "plans":
        assert tops(name) <= CONTRACT_MAY_IMPORT
    if top == "runtime":
        assert not tops(name) & NEVER_IN_RUNTIME
    if top == "planner":
        assert not tops(name) & NEVER_IN_PLANNER


def test_one_package_is_above_both_and_calls_their_interfaces() -> None:
    used = set()
    for file in sorted((ROOT / FRONT).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module or "")
    own = {name for name in used if name.partition(".")[0] not in sys.stdlib_module_names}
    assert own == FRONT_MAY_IMPORT
    assert not [name for name in MODULES if "eagleplan" in tops(name)]


def test_every_room_is_in_the_table() -> None:
    assert {room(name) for name in MODULES if name not in TOPS and room(name).partition(".")[0] != "plans"} == set(
        ROOMS
    )


@pytest.mark.parametrize("own", sorted(ROOMS))
def test_a_room_uses_only_the_rooms_below_it(own: str) -> None:
    top = own.partition(".")[0]
    used = {
        room(target)
        for name in MODULES
        if room(name) == own
        for target in imported(name)
        if target in MODULES and target.partition(".")[0] == top
    }
    assert used - {own, top} == ROOMS[own]


@pytest.mark.parametrize("top", TOPS)
def test_rooms_form_no_cycle(top: str) -> None:
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        if name.partition(".")[0] == top and name != top:
            own = room(name)
            used = {room(target) for target in imported(name) if target in MODULES and target != top}
            graph.setdefault(own, set()).update(used - {own})
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("top", TOPS)
def test_modules_form_no_cycle(top: str) -> None:
    graph = {
        name: {target for target in imported(name) if target in MODULES and target != name}
        for name in MODULES
        if name.partition(".")[0] == top
    }
    TopologicalSorter(graph).prepare()


def test_the_solver_is_a_closed_library() -> None:
    """It imports the product's errors and integers only; nothing of models, plans or inventories."""
    used = {target for name in MODULES if room(name) == SOLVER for target in imported(name)}
    product = {target for target in used if target.partition(".")[0] in TOPS and room(target) != SOLVER}
    assert product <= {"planner.errors", "planner.integers"}


def test_each_large_library_is_used_in_one_room() -> None:
    homes = {library: {room(name) for name in MODULES if library in tops(name)} for library in ONLY_IN}
    assert homes == ONLY_IN


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_imported_inside_a_function(name: str) -> None:
    assert source(name).inner_lines == ()


@pytest.mark.parametrize(
    "name",
    [
        "planner.solver.solve",
        "planner.solver.certify",
        "planner.emit",
        "planner.images.layout",
        "planner.report.render",
    ],
)
def test_planning_imports_no_torch(name: str) -> None:
    assert not [module for module in reachable(name, set()) if "torch" in tops(module)]
    assert not reachable(name, set()) & READS_WEIGHTS


def test_only_commands_print_and_through_the_one_door() -> None:
    calls = [(room(name), function) for name in MODULES for function in source(name).called]
    doors = ("out", "err", "terminal.out", "terminal.err")
    assert {place for place, function in calls if function in doors} == {"planner.commands", "runtime.commands"}
    assert [place for place, function in calls if function in ("print", "click.echo")] == []


@pytest.mark.parametrize(
    "name",
    ["planner.cli", *(f"planner.commands.{name}" for name in ("compile", "diff", "inventory", "scan", "show"))],
)
def test_commands_other_than_build_need_no_solver(name: str) -> None:
    assert not [module for module in reachable(name, set()) if tops(module) & {"ortools"}]


@pytest.mark.parametrize("name", ["runtime.cli", "runtime.commands.verify_images"])
def test_help_and_verifying_import_no_torch(name: str) -> None:
    assert not [module for module in reachable(name, set()) if tops(module) & {"torch", "numba"}]


@pytest.mark.parametrize("package", sorted(name for name, file in MODULES.items() if file.name == "__init__.py"))
def test_every_package_has_a_docstring(package: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[package].read_text()))
