"""Everything shown is run: the examples in docstrings, the README and the docs."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops

ROOT = Path(__file__).parents[1]
NAMES = {"jax": jax, "jnp": jnp, "np": np, "linops": linops}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages(linops.__path__, "linops.")])
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name), extraglobs=NAMES, optionflags=FLAGS).failed == 0


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_pages(path):
    assert doctest.testfile(str(path), module_relative=False, optionflags=FLAGS).failed == 0


@pytest.mark.parametrize("name", [name for name in dir(linops) if name[0] != "_" and callable(getattr(linops, name))])
def test_public_objects_are_documented(name):
    value = getattr(linops, name)
    assert value.__doc__
    assert all(
        getattr(value, member).__doc__
        for member in vars(value)
        if not member.startswith("_") and callable(getattr(value, member)) and isinstance(value, type)
    )
