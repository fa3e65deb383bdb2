"""The shape of the tree: no circles, nothing imports upward, few floors, small folders."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipelines", "rrt_core", "schemas")

# From the ground up. A room may import those of lower floors, and none of its own floor or above
# but where a line says so.
FLOORS = (
    ("storage", "options", "stages", "quantities", "configurations", "yaml_text"),
    ("jobs",),
    ("sources",),
    ("stores", "results"),
    ("engines",),
    ("estimate",),
    ("evaluate", "exchange", "train"),
    ("extract", "index", "search", "rerank", "report"),
    ("run", "verify"),
    ("demo",),
    ("cli",),
    ("__main__",),
)


def module_name(path: Path) -> str:
    """Dotted name of a file below the root."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path.relative_to(ROOT)): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def known(name: str) -> str:
    """The module that a dotted name lies in, or ""."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def names_in(node: ast.AST, path: Path) -> Iterator[str]:
    """Absolute dotted names that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = path.relative_to(ROOT).parts
        above = parts[: len(parts) - node.level] if node.level else ()
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(module: str, lazy: bool) -> set[str]:
    """Modules that a module imports; with `lazy` also inside functions and for types alone."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: Iterator[ast.AST] = ast.walk(tree) if lazy else iter(tree.body)
    found = {known(name) for node in nodes for name in names_in(node, path)}
    return {name for name in found - {"", module} if not module.startswith(f"{name}.")}


def graph(lazy: bool) -> dict[str, set[str]]:
    """Module -> what it imports."""
    return {module: imports_of(module, lazy) for module in MODULES}


def room(module: str) -> str:
    """A module's folder below `pipelines`, or its own name at the top."""
    return module.split(".")[1] if "." in module else ""


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """The members of one circle, or nothing."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(edges[module]):
            if around := visit(other, [*path, module]):
                return around
        done.add(module)
        return []

    return next((around for module in edges if (around := visit(module, []))), [])


def longest(edges: Mapping[str, set[str]]) -> list[str]:
    """The longest chain of imports, from the top."""

    @cache
    def below(module: str) -> tuple[str, ...]:
        return (module, *max(map(below, sorted(edges[module])), key=len, default=()))

    return list(max(map(below, edges), key=len))


def of_pipelines(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The part of a graph that lies in `pipelines`."""
    return {
        module: {other for other in others if other.startswith("pipelines")}
        for module, others in edges.items()
        if module.startswith("pipelines")
    }


def test_no_circles_lazy_imports_counted() -> None:
    assert circle(graph(lazy=True)) == []


def test_at_most_twelve_floors_of_modules() -> None:
    chain = longest(of_pipelines(graph(lazy=False)))
    assert len(chain) <= 12, " -> ".join(chain)


def test_nothing_imports_upward_and_at_most_eight_floors_of_rooms() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    rooms: dict[str, set[str]] = {}
    upward = []
    for module, others in of_pipelines(graph(lazy=True)).items():
        for other in others:
            above, below = room(module), room(other)
            if above and below and above != below:
                rooms.setdefault(above, set()).add(below)
                rooms.setdefault(below, set())
                if floor[above] < floor[below]:
                    upward.append(f"{module} -> {other}")

    assert upward == []
    assert circle(rooms) == []
    assert len(longest(rooms)) <= 8, " -> ".join(longest(rooms))


def test_every_room_has_its_floor() -> None:
    rooms = {room(module) for module in MODULES if module.startswith("pipelines.")}
    assert rooms == {name for names in FLOORS for name in names}


def test_folders_of_at_most_sixteen_files() -> None:
    files = Counter(path.parent for path in MODULES.values())
    assert {str(folder): count for folder, count in files.items() if count > 16} == {}


def test_files_in_packages_are_not_found_by_their_own_path() -> None:
    """Packages work as installed wheels and shipped archives: importlib.resources finds files."""
    wrong = [
        str(path.relative_to(ROOT))
        for path in MODULES.values()
        if "__file__" in path.read_text(encoding="utf-8")
    ]
    assert wrong == []
