"""The Jacobian, and the derivatives of traced functions that everything else is built on."""

import functools

import jax

from linops.algebra import Complexified, Operator, Transposed
from linops.arrays import refuse_point, to_device
from linops.door import RESIDUAL_SHARE, Flat, concrete, memory_budget
from linops.holomorphy import any_complex, complex_space, realified_space, trace_linear
from linops.products import static
from linops.residuals import Thrifty, thrifty
from linops.rules import differentiating
from linops.space import Space, space_of
from linops.trace import Function


class Linear(Operator):
    """A linear function that carries its residuals: what `jax.linearize` and `jax.vjp` return, made thrifty."""

    function: Thrifty | jax.tree_util.Partial
    domain: Space = static()
    codomain: Space = static()
    symmetric: bool = static()
    mode: str = static()

    def __reduce__(self):
        raise TypeError(
            f"{self!r}, a linearized operator, was pickled; expected the operator that it was made from: pickle that, "
            "and linearize it where it is loaded"
        )

    def _mv(self, v):
        return self.function(v)

    def _mv_transposed(self, w):
        with differentiating("reverse" if self.mode == "forward" else "forward"):
            return super()._mv_transposed(w)


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

    def at(self, x):
        """The same operator at another point, a pytree like x or its vector; nothing is traced or compiled.

        Where x is complex and the operator real, its vector is [Re x, Im x].
        """
        return self._replace(x=self._points.point(x))

    @property
    def _points(self):
        """The Space of points."""
        return realified_space(self.realified) if self.realified else Space.of(self.x)

    def _residual_form(self):
        if self.keep is False:
            return self
        if self._traced:
            return self._linear()
        flat = Flat(self)
        staged = flat.stage("_linear")
        if self.keep is None and staged.bytes_out > memory_budget(RESIDUAL_SHARE):
            return self
        return concrete(lambda: flat.finish(staged))  # an operator made outside of a jit keeps arrays also inside


class Jacobian(Derived):
    """The Jacobian J(x) of f, an operator of shape (m, n): v -> d/dt f(x + t v) at t = 0.

    It is a complex matrix for holomorphic f, and for f from real to complex numbers. Any other f of complex numbers is
    realified: J is real, from [Re x, Im x] to [Re f, Im f], or to f where that is real (see `linops.holomorphy`).

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
            return Transposed(self._linear().operator)._mv(v)
        with differentiating("forward"):
            return jax.jvp(self.function, (self.x,), (v,))[1]

    def _mv_transposed(self, w):
        if self.extended:
            return Complexified(self._unextended())._mv_transposed(w)
        with differentiating("reverse"):
            return jax.vjp(self.function, self.x)[1](w)[0]

    def _linear(self):
        if self.extended:
            return Complexified(self._unextended()._linear())
        if self.function.forward:
            return pushforward(self.function, self.x, self.domain, self.codomain)
        return Transposed(pullback(self.function, self.x, self.domain, self.codomain))


def is_extended(function, x):
    """Whether the derivative of a function at x, from real to complex numbers, is to take complex vectors."""
    return any_complex(function.codomain) and not any_complex(Space.of(x))


def point(x):
    """A point given by a user, its leaves on the device, and the Space it lives in."""
    refuse_point(x)
    paths, treedef = jax.tree_util.tree_flatten_with_path(x)
    x = treedef.unflatten([to_device(leaf, f"x{jax.tree_util.keystr(path)}") for path, leaf in paths])
    return x, space_of(x, "x")


def pushforward(f, x, domain, codomain, symmetric=False):
    """The derivative of f at x by one linearization, from tangents to tangents."""
    with differentiating("forward"):
        return Linear(thrifty(lambda x: jax.linearize(f, x)[1], x), domain, codomain, symmetric, "forward")


def pullback(f, x, domain, codomain, symmetric=False):
    """The transposed derivative of f at x, from cotangents to cotangents."""
    with differentiating("reverse"):
        pull = thrifty(lambda x: jax.tree_util.Partial(_single, jax.vjp(f, x)[1]), x)
        return Linear(pull, codomain, domain, symmetric, "reverse")


def _single(pull, w):
    return pull(w)[0]
