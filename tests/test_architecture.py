"""Arrows point down: a module imports only from layers below its own, and within it from what comes before."""

import ast
import sys
from pathlib import Path

import numpy as np
import operators

import linops

ROOT = Path(linops.__file__).parent
# Five layers, from the ground up; a module stands on those before it in its own layer too.
LAYERS = [
    ["program.jaxpr.private", "processes", "precision", "arrays", "space", "realify"],
    ["program.jaxpr.primitives", "program.jaxpr.graph", "program.jaxpr.evaluate", "program.jaxpr.code",
     "program.jaxpr.structure",
     "program.jaxpr.linearity", "program.jaxpr.rules", "program.jaxpr.merge", "program.jaxpr.totals",
     "program.jaxpr.double", "program.jaxpr.settle", "program.settings", "program.program", "program.missing",
     "program.arguments", "program.closures", "program.function", "program.prefetch", "program.sources",
     "program.spread", "program.over_data", "program.holomorphy",
     "program.residuals", "program.pieces", "program.hosted", "program.staged"],
    ["node", "budget", "products", "door", "compiled", "counted", "dense", "ahead", "cost", "linear_map",
     "algebra.factors", "algebra.arithmetic", "algebra.points", "algebra.operator", "algebra.sums", "algebra.blocks",
     "matrix", "losses"],
    ["derivatives.parts", "derivatives.linearized", "derivatives.batches", "derivatives.map",
     "derivatives.jacobian", "derivatives.differences", "derivatives.hessian", "derivatives.mixed",
     "derivatives.gauss_newton", "derivatives.fisher", "derivatives.batched"],
    ["blas", "progress", "files", "monitoring", "iterate", "krylov", "saving", "watching", "linalg.records",
     "linalg.operands", "linalg.problems", "linalg.runs", "linalg.lanczos", "linalg.symmetric",
     "linalg.bidiagonal", "linalg.singular", "linalg.growth", "linalg.functions", "linalg.systems", "linalg.solves",
     "linalg.shifted", "linalg.definite", "linalg.indefinite", "linalg.general",
     "linalg.rotations", "linalg.gradients", "linalg.damped", "linalg.least_squares",
     "linalg.inverses", "sensitivity", "estimate.probes", "estimate.result", "estimate.ranges", "estimate.runs",
     "estimate.traces", "estimate.diagonals",
     "estimate.norms", "estimate.quadrature", "estimate.quadratic", "estimate.determinants", "estimate.densities",
     "precondition", "verify.values", "verify.differences", "verify.claims", "verify.report"],
    ["optimize.results", "optimize.limits", "optimize.vectors",
     "optimize.points", "optimize.constraints", "optimize.objective", "optimize.residuals", "optimize.uncertainty",
     "optimize.trust_region", "optimize.marquardt",
     "optimize.minimizing", "optimize.fitting", "optimize.roots", "plot", "report", "probing", "analysis", "embedded",
     "cli", "__main__"],
]  # fmt: skip
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in ROOT.rglob("*.py")
    if path.stem != "__init__"
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            ours = node.module.split(".")[0] == "linops"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if ours else [node.module]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from names


def test_every_module_has_a_place():
    assert set(MODULES) == set(RANK), "LAYERS has to name each module, and no other"


def test_every_public_operator_is_in_the_zoo():
    public = {t for t in vars(linops).values() if isinstance(t, type) and issubclass(t, linops.Operator)}
    entries = operators.where(made_for="laws")
    made = {type(operators.make(name, *operators.arguments(name, np.float32))) for name in entries}
    assert public - {linops.Operator} <= made


def test_arrows_point_down():
    wrong = [
        f"{module} -> {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if name.startswith("linops.") and not _below(_module(name), module)
    ]
    assert not wrong


def _module(name):
    """The module that an import names, or of which it takes a part."""
    parts = name.split(".")[1:]
    names = (".".join(parts[:k]) for k in range(len(parts), 0, -1))
    return next((name for name in names if name in RANK), name)


def _below(other, module):
    """Whether a module stands below another: in a layer before, or within the layer before it."""
    if other not in RANK or RANK[other] > RANK[module]:
        return False
    layer = LAYERS[RANK[module]]
    return RANK[other] < RANK[module] or layer.index(other) < layer.index(module)


def test_the_core_imports_only_the_card():
    card = {"linops", "jax", "numpy", "scipy"}
    optional = {
        "lineax",
        "matplotlib",
        "sklearn",
        "threadpoolctl",
        "tqdm",
    }  # which are done without where they are not installed
    used = {name.split(".")[0] for path in MODULES.values() for name in imports(path)}
    assert used <= card | optional | sys.stdlib_module_names


# How JAX writes down a function, and names that are private to JAX, SciPy and NumPy.
PRIVATE = {"bind", "constvars", "ctx", "eqns", "get_bind_params", "inner_aval", "invars", "outvars", "val"}


def test_only_one_folder_reads_the_insides_of_jax():
    found = [
        f"{module}: {ast.unparse(node)}"
        for module, path in MODULES.items()
        if not module.startswith("program.jaxpr.")
        for node in ast.walk(ast.parse(path.read_text()))
        if _is_private(node)
    ]
    assert not found


def _is_private(node):
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        return any("._" in name or name.startswith(("jax.extend", "jax.interpreters")) for name in names)
    if not isinstance(node, ast.Attribute):
        return False
    root = node
    while isinstance(root, ast.Attribute):
        root = root.value
    foreign = isinstance(root, ast.Name) and root.id in ("jax", "jnp", "np", "scipy", "func", "LinearOperator")
    return node.attr in PRIVATE or (foreign and node.attr.startswith("_") and not node.attr.startswith("__"))


def test_modules_are_short():
    assert {path.name for path in ROOT.rglob("*.py") if len(path.read_text().splitlines()) > 400} == set()


def test_front_page_is_only_a_contents_page():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    public = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names} == public


def test_no_module_bears_the_name_of_what_is_public():
    """`linops.check` the function would shadow a module `check`."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    parts = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "linops"]
    public = {alias.asname for node in parts for alias in node.names}  # linops.linalg and the like are both
    assert public.isdisjoint(part for module in MODULES for part in module.split("."))


def test_no_method_is_called_by_a_string():
    """Arrows that no test of imports sees."""
    trees = [ast.parse(path.read_text()) for path in MODULES.values()]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = {f.name for c in classes for f in c.body if isinstance(f, ast.FunctionDef) and not f.decorator_list}
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not {name for name in methods if name in texts and name.startswith("_") and not name.endswith("__")}
    called = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    by_name = [node for node in called if isinstance(node.func, ast.Name) and node.func.id == "getattr"]
    assert not {node.args[1].value for node in by_name if isinstance(node.args[1], ast.Constant)} & methods
    assert not [node for node in called if isinstance(node.func, ast.Attribute) and node.func.attr == "methodcaller"]
