"""The Jacobian, and the derivatives of traced functions that everything else is built on."""

import functools

import jax
import jax.numpy as jnp

from linops.algebra import Complexified, Operator, Transposed
from linops.arrays import place_like, refuse_point, to_device
from linops.door import RESIDUAL_SHARE, concrete, memory_budget
from linops.products import static
from linops.program.function import Function, Origin
from linops.program.holomorphy import trace_linear
from linops.program.jaxpr.evaluate import place, struct, tangent_struct
from linops.program.missing import differentiating
from linops.program.program import Program, keeps_rules
from linops.program.residuals import thrifty
from linops.program.settings import Scope
from linops.program.staged import Flat, run_once
from linops.realify import any_complex, complex_space, realified_space
from linops.space import Space, space_of


class Linear(Operator):
    """A linear function that carries its residuals: what `jax.linearize` and `jax.vjp` return, made thrifty."""

    kept: tuple
    program: Program = static()
    domain: Space = static()
    codomain: Space = static()
    mode: str = static()
    origin: Origin = static()

    @property
    def _scope(self):
        return Scope.around([super()._scope, self.origin.scope])

    def __reduce__(self):
        raise TypeError(
            f"{self!r}, a linearized operator, was pickled; expected the operator that it was made from: pickle that, "
            "and linearize it where it is loaded"
        )

    def _mv(self, v):
        consts = len(self.program.constants)
        leaves = place(jax.tree.leaves(v), self._avals[0])
        return self.codomain.treedef.unflatten(self.program(self.kept[:consts], *self.kept[consts:], *leaves))

    @property
    def _avals(self):
        """The types of vectors and of products."""
        graph = self.program.graph
        vectors = graph.inputs[len(graph.inputs) - len(self.domain.shapes) :]
        return [var.aval for var in vectors], [atom.aval for atom in graph.outputs]

    def _mv_transposed(self, w):
        w = self.codomain.treedef.unflatten(place(jax.tree.leaves(w), self._avals[1]))
        like = self.domain.treedef.unflatten(map(struct, self._avals[0]))
        if self.mode == "forward":
            with differentiating("reverse", self.origin):
                return jax.linear_transpose(self._mv, like)(w)[0]
        # The backward pass of a custom_vjp may be one of custom_vjp again, which can be differentiated in reverse only.
        with differentiating("forward", self.origin):
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), like)
            return jax.vjp(self._mv, zeros)[1](w)[0]


class Derived(Operator):
    """An operator made of derivatives of a function at a point x.

    A subclass adds `_linear`, itself linearized, in traceable JAX. `keep` says what becomes of the residuals: True
    keeps them, False computes them anew in each product, None keeps them while they fit the memory budget.
    """

    function: Function
    x: object
    realified: Space | None = static()  # the Space of the points that a user gives, where x is their (Re, Im)
    keep: bool | None = static()
    check_finite: bool = static()

    domain = functools.cached_property(lambda self: self._points)

    def at(self, x, args=None):
        """The same operator at another point, a pytree like x or its vector; nothing is traced or compiled.

        Where x is complex and the operator real, its vector is [Re x, Im x]. Other `args` are like those before: arrays
        of the same shapes and dtypes, and all else the same.
        """
        return self._replace(x=self._point(x, self.x), function=self._function_of(args))

    def _point(self, x, before):
        """A point that a user gives, where the one before lies if it comes from the host."""
        return place_like(self._points.point(x), before, x)

    def _function_of(self, args):
        return self.function if args is None else self.function.with_args(args)

    @property
    def _points(self):
        """The Space of points."""
        return realified_space(self.realified) if self.realified else Space.of(self.x)

    @property
    def _scope(self):
        return Scope.around([super()._scope, self.function.origin.scope])

    def _residual_form(self):
        if self.keep is False:
            return self
        if self._traced:
            return self._linear()
        flat = Flat(self, self._scope)
        staged = flat.stage(linear)
        if self.keep is None and staged.bytes_out > memory_budget(RESIDUAL_SHARE):
            return self
        return concrete(lambda: flat.finish(staged))  # an operator made outside of a jit keeps arrays also inside


@run_once
def linear(A):
    """An operator, linearized."""
    return A._linear()


class Jacobian(Derived):
    """The Jacobian J(x) of f, an operator of shape (m, n): v -> d/dt f(x + t v) at t = 0.

    It is a complex matrix for holomorphic f, and for f from real to complex numbers. Any other f of complex numbers is
    realified: J is real, from [Re x, Im x] to [Re f, Im f], or to f where that is real (see
    `linops.program.holomorphy`).

    Parameters
    ----------
    f : callable
        `f(x, *args)`, a JAX function from a pytree of n numbers to a pytree of m.
    x : pytree of arrays
        The point. NumPy arrays and Python floats are copied to the device.
    args : tuple
        Further arguments of f. Arrays and floats in it are traced, never compiled in.
    linearize : bool, optional
        True keeps the residuals of one linearization for all products, False recomputes them in each; by default they
        are kept while they take at most a quarter of the device's memory.
    check_finite : bool
        Whether a NumPy product of finite numbers that has NaN or Inf raises `FloatingPointError`.

    Raises
    ------
    TypeError
        Where x or f(x) is not of floating point, f cannot be traced, or a product needs a derivative rule
        (forward for `J @ v`, reverse for `J.T @ w`) that f does not have.

    Notes
    -----
    Products with J are `jax.jvp`, those with `J.T` `jax.vjp`. A function with `jax.custom_vjp`, which has no forward
    rule, is multiplied by the transpose of its vjp, where that is made of linear operations.

    Examples
    --------
    >>> J = Jacobian(lambda x: x[1:] * x[:-1], np.array([1.0, 2.0, 3.0], np.float32))
    >>> J.toarray().tolist()
    [[2.0, 1.0, 0.0], [0.0, 3.0, 2.0]]
    """

    extended: bool = static()  # from real to complex numbers, and from there to complex vectors

    def __init__(self, f, x, *, args=(), linearize=None, check_finite=True):
        x, domain = point(x)
        function, x, realified = trace_linear(f, x, domain, args)
        vars(self).update(function=function, x=x, realified=realified, extended=is_extended(function, x))
        vars(self).update(keep=linearize, check_finite=check_finite)

    domain = functools.cached_property(lambda self: self._over_field(self._points))
    codomain = property(lambda self: self._over_field(self.function.codomain))

    def _over_field(self, space):
        return complex_space(space) if self.extended else space

    def _unextended(self):
        return self._replace(extended=False)

    def _mv(self, v):
        if self.extended:
            return Complexified(self._unextended())._mv(v)
        if not self.function.forward:
            return self._linear()._mv(v)
        with differentiating("forward", self.function.origin):
            return jax.jvp(self.function, (self.x,), (v,))[1]

    def _mv_transposed(self, w):
        if self.extended:
            return Complexified(self._unextended())._mv_transposed(w)
        with differentiating("reverse", self.function.origin):
            leaves = place(jax.tree.leaves(w), jax.tree.leaves(self.function.values))
            return jax.vjp(self.function, self.x)[1](self.function.codomain.treedef.unflatten(leaves))[0]

    def _linear(self):
        if self.extended:
            return Complexified(self._unextended()._linear())
        spaces = self.domain, self.codomain
        if self.function.forward:
            return pushforward(self.function, self.x, *spaces, self.function.origin)
        return pullback(self.function, self.x, *spaces, self.function.origin, self.function.values)


def is_extended(function, x):
    """Whether the derivative of a function at x, from real to complex numbers, is to take complex vectors."""
    return any_complex(function.codomain) and not any_complex(Space.of(x))


def point(x):
    """A point given by a user, its leaves on the device, and the Space it lives in."""
    refuse_point(x)
    paths, treedef = jax.tree_util.tree_flatten_with_path(x)
    x = treedef.unflatten([to_device(leaf, f"x{jax.tree_util.keystr(path)}") for path, leaf in paths])
    return x, space_of(x, "x")


def pushforward(f, x, domain, codomain, origin):
    """The derivative of f at x by one linearization, from tangents to tangents."""
    with differentiating("forward", origin):
        kept, program = thrifty(lambda x: jax.linearize(f, x)[1], x, tangents(x), keep_rules=keeps_rules())
    return Linear(kept, program, domain, codomain, "forward", origin)


def pullback(f, x, domain, codomain, origin, values):
    """The same for functions with reverse rules only: the transpose of the pullback of cotangents like `values`."""
    with differentiating("reverse", origin):
        pull = functools.partial(_pull, f)
        kept, program = thrifty(pull, x, values, keep_rules=True)
    return Transposed(Linear(kept, program, codomain, domain, "reverse", origin))


def tangents(x):
    """The types of tangents at x."""
    return jax.tree.map(lambda leaf: tangent_struct(jax.typeof(leaf)), x)


def _pull(f, x):
    return jax.tree_util.Partial(_single, jax.vjp(f, x)[1])


def _single(pull, w):
    return pull(w)[0]
