"""Sphinx configuration. In a page, "The list `name` stands here ..." is replaced by what `GENERATED[name]` returns."""

import ast
import functools
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import linops

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

project = "linops"
author = "the linops developers"
version = release = linops.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"linops {version}"
html_copy_source = False
default_role = "code"
myst_heading_anchors = 2
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
napoleon_google_docstring = False
napoleon_use_param = False


@functools.cache
def tests(path):
    """A module of the tests."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / "tests" / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples():
    """A section for each file of examples/: its docstring, then its code."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        tree = ast.parse(path.read_text())
        title, _, text = ast.get_docstring(tree).partition("\n")
        yield f"## {title.rstrip('.')}\n{text}\n\n`examples/{path.name}`:\n"
        yield f"```{{literalinclude}} ../examples/{path.name}\n:lines: {tree.body[0].end_lineno + 2}-\n```\n"


def api():
    """Each public name, in the order of the package's contents page."""
    names = [name for name, value in vars(linops).items() if name[0] != "_" and callable(value)]
    for name in names:
        value = getattr(linops, name)
        lines = [f"## {name}\n", "```{eval-rst}"]
        if not isinstance(value, type):
            lines.append(f".. autofunction:: linops.{name}")
        elif issubclass(value, Exception):
            lines.append(f".. autoclass:: linops.{name}()")
        else:
            parameters = list(inspect.signature(value.__init__).parameters.values())[1:]
            parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
            bases = "LinearOperator" if value is linops.Operator else "Operator, Products"
            lines += [
                f".. autoclass:: linops.{name}{inspect.Signature(parameters)}",
                "   :members:",
                f"   :inherited-members: {bases}",
            ]
        yield "\n".join([*lines, "```\n"])


def layers():
    """The modules by layer, with the first line of each docstring."""
    yield from ("| layer | module | |", "| --- | --- | --- |")
    for number, layer in enumerate(tests("test_architecture.py").LAYERS):
        for module in layer:
            text = ast.get_docstring(ast.parse((ROOT / "linops" / f"{module.replace('.', '/')}.py").read_text()))
            yield f"| {number} | `{module}` | {text.splitlines()[0]} |"


def scipy_operators():
    """What the SciPy contract is tested with, by kind."""
    kinds = {}
    for name, kind in tests("test_scipy_contract.py").KINDS.items():
        kinds.setdefault(kind, []).append(f"`{name}`")
    yield from ("| kind | operators |", "| --- | --- |")
    yield from (f"| {kind} | {', '.join(names)} |" for kind, names in kinds.items())


def scipy_entries():
    """The entry points of the SciPy contract, variants of one function on one line."""
    rows = {}
    for name, entry in tests("test_scipy_contract.py").ENTRIES.items():
        function, _, variant = name.partition(", ")
        forms, kinds, dtypes = rows.setdefault(function, ([], set(), set()))
        forms += [f"`{variant}`"] if variant else []
        kinds |= entry.kinds
        dtypes.add("float64 only" if entry.float64_only else "yes")
    yield from ("| entry point | tested forms | kinds | float32 |", "| --- | --- | --- | --- |")
    for function, (forms, kinds, dtypes) in rows.items():
        yield f"| `{function}` | {', '.join(forms)} | {'; '.join(sorted(kinds))} | {', '.join(sorted(dtypes))} |"


def hostile():
    """Which shapes go which way, and what other vectors come to."""
    module = tests("test_door_vectors.py")
    yield from ("| shape | taken by |", "| --- | --- |")
    yield from (f"| {name} | {', '.join(f'`{way}`' for way in ways)} |" for name, ways in module.shape_table())
    yield from ("", "| comes to | what is multiplied |", "| --- | --- |")
    yield from (f"| {outcome} | {'; '.join(names)} |" for outcome, names in module.table().items())


def faults():
    """The faults that are planted, and what `check` says of them."""
    return tests("verify/test_report.py").table()


def wild():
    """The functions from the wild."""
    module = tests("program/test_function.py")
    yield ", ".join(f"{name}" for name in module.FUNCTIONS)


def life():
    """What operators of the zoo go through, and which."""
    zoo = importlib.import_module("operators")
    settings, transformations = tests("laws/test_settings.py"), tests("laws/test_transformations.py")
    copied = tests("laws/test_copies.py").WAYS
    tried = {
        ", ".join(copied): zoo.where(made_for="laws", importable=True),
        "at another point": tests("laws/test_points.py").MOVED,
        "built inside `jit`, `vmap` of `jit` and `grad`": transformations.NAMES,
        "an argument of `jit`, `vmap` and `scan`, and returned from them": transformations.AS_ARGUMENTS,
        f"under settings of JAX: {', '.join(settings.SETTINGS)}": " ".join(settings.PAIRS).split(),
        "on a mesh of four devices": zoo.where(made_for="devices"),
        "used by eight threads at once, pickled for a new process": tests("test_door.py").IN_THREADS,
    }
    yield from ("| | operators |", "| --- | --- |")
    yield from (f"| {what} | {', '.join(f'`{name}`' for name in names)} |" for what, names in tried.items())


GENERATED = {
    function.__name__: function
    for function in (examples, api, layers, scipy_operators, scipy_entries, hostile, faults, wild, life)
}


def generate(app, docname, source):
    """Fill in what a page asks for."""
    source[0] = re.sub(r"\*\(The list `(\w+)` stands here .*\)\*", lambda m: "\n".join(GENERATED[m[1]]()), source[0])


def setup(app):
    """Register the generator of pages."""
    app.connect("source-read", generate)
