"""What an entry of the zoo is, and the points that entries are made at."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import problems


@dataclasses.dataclass(frozen=True)
class Traits:
    """What an operator is by its making, said by hand."""

    made_for: str = "laws"  # or "solvers", "transformations", "devices", "mixed precision": what it is tried in
    claims: str = ""  # what follows from how it is written: s(ymmetric), h(ermitian), p(ositive semidefinite)
    square: bool = False
    complex: bool = False
    importable: bool = True  # its functions have names in a module, so that it can be pickled
    solver: str = ""  # which solvers it suits, of what is made for them


@dataclasses.dataclass(frozen=True)
class Entry:
    """An operator and its dense matrix, as functions of the same arguments: a point, and what else there is."""

    operator: Callable
    dense: Callable  # traced by JAX, of arguments in double precision
    arguments: Callable  # of a dtype and a seed
    at: Callable | None  # the operator moved to other arguments
    traits: Traits


ZOO = {}


def where(**traits):
    """The names of all operators with these traits."""
    wanted = traits.items()
    return [name for name, entry in ZOO.items() if all(getattr(entry.traits, trait) == is_ for trait, is_ in wanted)]


def kind(name):
    """What an operator has in common with those that combine and transform alike: noun, claims, real or complex."""
    traits = ZOO[name].traits
    return name.split("_")[0], traits.claims, traits.complex


@functools.cache
def build(name, dtype):
    """The operator and its dense matrix, made once for all tests."""
    return make(name, *arguments(name, dtype)), dense(name, dtype)


def arguments(name, dtype, seed=0):
    """What an operator is made of, with other numbers for another seed."""
    with jax.enable_x64(dtype == np.float64 or jax.config.jax_enable_x64):
        return ZOO[name].arguments(dtype, seed)


def make(name, *arguments, **options):
    """The operator of these arguments, made anew."""
    double = any(leaf.dtype in (np.float64, np.complex128) for leaf in jax.tree.leaves(arguments))
    with jax.enable_x64(double or jax.config.jax_enable_x64):
        return ZOO[name].operator(*arguments, **options)


def dense(name, dtype, seed=0):
    """The dense matrix, made by JAX in double precision."""
    with jax.enable_x64(True):
        return np.asarray(_compiled(name)(*jax.tree.map(_double, arguments(name, dtype, seed))))


@functools.cache
def _compiled(name):
    return jax.jit(ZOO[name].dense)


def _double(leaf):
    return np.asarray(leaf).astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)


def entry(name, operator, dense, arguments, at=None, **traits):
    """Register an operator. What claims to be symmetric or Hermitian is square."""
    traits["square"] = traits.get("square", bool(traits.get("claims")))
    ZOO[name] = Entry(operator, dense, arguments, at, Traits(**traits))


def moved(A, *point):
    return A.at(*point)


# Points: each of a dtype and a seed.


def tree(kind):
    return lambda dtype, seed=0: (problems.tree_point(kind, dtype, seed),)


def normal(*shapes):
    return lambda dtype, seed=0: tuple(problems.normal(shape, dtype, seed + i) for i, shape in enumerate(shapes))


def complex_normal(*shapes):
    return lambda dtype, seed=0: tuple(
        problems.complex_normal(shape, dtype, seed + i) for i, shape in enumerate(shapes)
    )


def complex_point(dtype, seed=0):
    a, b = complex_normal(3, ())(dtype, seed)
    return ({"a": a, "b": b},)


def half_complex_point(dtype, seed=0):
    return ({**complex_point(dtype, seed)[0], "b": problems.normal((), dtype, seed)},)


def beside(*points):
    """Points of several arguments, one after the other."""
    return lambda dtype, seed=0: sum((point(dtype, seed + 7 * i) for i, point in enumerate(points)), ())
