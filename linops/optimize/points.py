"""Derivatives at one point after another, each given as a vector of the host: compiled once, with a door at each."""

import functools
import math

import jax
import numpy as np

from linops.budget import RESIDUAL_SHARE, memory_budget
from linops.compiled import Compiled
from linops.iterate import scope_of
from linops.products import shorter_dense_matrix, vector_product
from linops.program.jaxpr.evaluate import place
from linops.program.jaxpr.primitives import is_fused
from linops.program.staged import Flat

# What is computed of a derivative A at a point x, a vector, in traceable JAX.


def value_and_gradient(A, x):
    """The value of a scalar function, and its gradient, a vector; A is the Hessian."""
    value, gradient = A.map.value_and_gradient(_tree(A, x))
    return value, A.domain.ravel(gradient)


def values(A, x):
    """The values of a function, a vector; A is the Jacobian."""
    return A.codomain.ravel(A.function(_tree(A, x)))


def values_and_matrix(A, x):
    """The same, and the dense Jacobian."""
    return values(A, x), matrix(A, x)


def matrix(A, x):
    """The dense Jacobian there."""
    return shorter_dense_matrix(at_point(A, x))


def second_order(A, x):
    """Value and gradient, and the Hessian A there, as its products are made."""
    return value_and_gradient(A, x), _form(at_point(A, x))


def weighted(A, x, w):
    """The Hessian A of a sum of values with weights w."""
    return None, _form(at_point(A, x, w))


def first_order(A, x):
    """The Jacobian A there."""
    return None, _form(at_point(A, x))


def product(A, x, v):
    """The product of A there with a vector, of which nothing is kept."""
    return vector_product(at_point(A, x), v)


def is_light(A):
    """Whether a product of A is less work than a call: a linearization, and a door at each point, save nothing then."""
    equations = A.function.program.graph.equations
    entries = sum(math.prod(atom.aval.shape) for equation in equations for atom in equation.outputs)
    is_entrywise = all(is_fused(equation) or equation.name == "reduce_sum" for equation in equations)
    return A._source is None and is_entrywise and entries <= LIGHT


LIGHT = 2**15  # entries of all intermediate values of a function


def _form(A):
    return A._residual_form()


def at_point(A, x, w=None):
    """A derivative at a point, and with weights, which are vectors; of the host too."""
    moved = A._replace(map=A.map._replace(x=_tree(A, x)))
    return moved if w is None else moved._replace(weights=A.map.values.unravel(w))


def _tree(A, x):
    """The point of a vector, laid out as the point that A was made at."""
    leaves, treedef = jax.tree.flatten(A.map.points.unravel(x))
    return treedef.unflatten(place(leaves, map(jax.typeof, jax.tree.leaves(A.x))))


class Evaluated:
    """`function(A, *vectors)`, compiled once for vectors of these sizes: NumPy arrays that stay as they are."""

    def __init__(self, function, A, *sizes):
        self.given = function, A, *sizes
        self.flat = Flat(A, scope_of(A))
        self.vectors = [jax.ShapeDtypeStruct((size,), dtype) for size, dtype in sizes]
        self.function = function

    def __reduce__(self):
        return type(self), self.given

    @functools.cached_property
    def staged(self):
        return self.flat.stage(self.function, *self.vectors)

    def __call__(self, *vectors):
        """The leaves of the result."""
        return self.flat.leaves_of(self.staged, *vectors)


class Moving:
    """An operator of derivatives, at one point after another, and numbers that come with it.

    `function(A, *vectors)` is one of those above. The residuals of the linearization at a point are kept with it while
    they fit the memory budget.
    """

    def __init__(self, function, A, *sizes):
        self.A, self.evaluated = A, Evaluated(function, A, *sizes)
        if A.keep is None and self._takes_too_much():
            self.A = A._replace(keep=False)
            self.evaluated = Evaluated(function, self.A, *sizes)
        numbers, form = self.evaluated.staged.out_tree.children()
        self.count, self.treedef = numbers.num_leaves, form
        self.doors = {}

    def __reduce__(self):
        return type(self), self.evaluated.given

    def _takes_too_much(self):
        return self.A.function.program.mutates or self.evaluated.staged.bytes_out > memory_budget(RESIDUAL_SHARE)

    def __call__(self, *vectors):
        """The numbers, and what there is of the operator."""
        leaves = self.evaluated(*vectors)
        return leaves[: self.count], Moved(self, vectors, leaves[self.count :])

    def door(self, leaves, is_transposed):
        """The door of the operator at a point; that the solver computes in double precision is not said."""
        if is_transposed in self.doors:
            door = self.doors[is_transposed].rebound(leaves)
        else:
            form, name = self.treedef.unflatten(leaves), repr(self.A)
            form, name = (form.T, f"the transpose of {name}") if is_transposed else (form, name)
            door = Compiled(form, name, self.A.check_finite)
            door._warned = True
        self.doors[is_transposed] = door  # the last one: an earlier one would keep its residuals
        return door


class Moved:
    """An operator at one point: its doors, which need less than the operator itself."""

    def __init__(self, moving, vectors, leaves):
        self.moving, self.vectors = moving, vectors
        self.leaves = [jax.device_put(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]

    @functools.cached_property
    def door(self):
        return self.moving.door(self.leaves, False)

    @functools.cached_property
    def operator(self):
        A = self.moving.A
        with scope_of(A).entered():
            moved, form = at_point(A, *self.vectors), self.moving.treedef.unflatten(self.leaves)
        vars(moved).update(_door=self.door, _linearized=None if A.keep is False else form)
        if not A._equals_transpose:
            vars(moved).update(_transposed_door=self.moving.door(self.leaves, True))
        return moved
