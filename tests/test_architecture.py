"""Arrows point down: a module imports only from layers below its own, in layer 2 only what comes before it."""

import ast
from pathlib import Path

import linops

ROOT = Path(linops.__file__).parent
ORDER = [
    ["fork", "jaxpr", "double", "residuals", "rules"],
    ["space"],
    ["probe", "trace"],
    ["holomorphy"],
    ["door", "operands"],
    ["dense"],
    ["products"],
    ["algebra"],
    ["matrix", "jacobian"],
    ["hessian"],
    ["gauss_newton"],
    ["differences", "claims", "check"],
    ["cli"],
]
RANK = {module: rank for rank, layer in enumerate(ORDER) for module in layer}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "linops" else [node.module]
            )
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from names


def test_every_module_has_a_place():
    assert {path.stem for path in ROOT.glob("*.py")} - {"__init__"} == set(RANK)


def test_arrows_point_down():
    wrong = [
        f"{path.stem} -> {name}"
        for path in ROOT.glob("*.py")
        if path.stem != "__init__"
        for name in imports(path)
        if name.startswith("linops.")
        and not (name.split(".")[1] in RANK and (RANK[name.split(".")[1]] < RANK[path.stem] or _later(path.stem, name)))
    ]
    assert not wrong


def _later(module, name):
    """Within a layer, only toward what stands before."""
    layer, other = ORDER[RANK[module]], name.split(".")[1]
    return other in layer and layer.index(other) < layer.index(module)


def test_the_core_imports_only_the_card():
    allowed = {"linops", "jax", "numpy", "scipy"} | {
        "sklearn",
        "threadpoolctl",
    }  # the last two only in the console script
    standard = {"argparse", "collections", "contextlib", "copy", "dataclasses", "functools", "hashlib", "importlib"}
    standard |= {"json", "math", "numbers", "operator", "os", "re", "sys", "time", "typing", "warnings"}
    used = {name.split(".")[0] for path in ROOT.glob("*.py") for name in imports(path)}
    assert used <= allowed | standard


def test_modules_are_short():
    assert {path.name for path in ROOT.rglob("*.py") if len(path.read_text().splitlines()) > 400} == set()


def test_front_page_is_only_a_contents_page():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    public = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names} == public
