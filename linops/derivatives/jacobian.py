"""The Jacobian."""

import functools

from linops.algebra.operator import Complexified
from linops.derivatives.batches import read
from linops.derivatives.map import Derived, Map
from linops.node import static
from linops.realify import complex_space


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
    data : pytree of arrays, or batches, optional
        Then f is `f(x, batch, *args)`, and the operator is of its mean, or sum, over all examples. Arrays share a
        leading axis, of examples, and go to the device, where they are walked in chunks; those that `np.load` maps
        from disk are read as they are needed. Batches are whatever can be gone through again and again: a list, a
        loader, or a function that makes a generator. They are read ahead of the device, which holds a few at a time.
    batch_size : int, optional
        How many examples are worked on at once where residuals are not kept, for which all are worked on once; by
        default all. What f is of an example must not depend on the others of its batch.
    reduction : {"mean", "sum"}
        What f itself does over the examples of a batch. A batch of a mean weighs what it holds.
    wrt : str or callable, optional
        The part of x to differentiate: a path of keys, such as "layers/0", or `callable(path, leaf) -> bool`. The rest
        is held fixed and costs nothing: data and code, as in `args`. Trees of the domain are like x, with None for it.
    linearize : bool, optional
        True keeps the residuals of one linearization for all products, False recomputes them in each; by default they
        are kept while they take at most a quarter of the device's memory, and f uses no mutable references.
    check_finite : bool
        Whether a NumPy product of finite numbers that has NaN or Inf raises `FloatingPointError`.

    Raises
    ------
    TypeError
        Where x or f(x) is not of floating point, f cannot be traced, or a product needs a derivative rule
        (forward for `J @ v`, reverse for `J.T @ w`) that f does not have.
    ValueError
        Where data are empty, or bring other batches in a later pass, or `wrt` selects nothing.

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

    def __init__(
        self, f, x, *, args=(), wrt=None, data=None, batch_size=None, reduction="mean", linearize=None,
        check_finite=True,
    ):  # fmt: skip
        traced = Map.trace(f, x, args, data=read(data, batch_size, reduction), wrt=wrt)
        vars(self).update(map=traced, extended=traced.is_extended, keep=linearize, check_finite=check_finite)

    domain = functools.cached_property(lambda self: self._over_field(self.map.points))
    codomain = property(lambda self: self._over_field(self.map.values))

    def _over_field(self, space):
        return complex_space(space) if self.extended else space

    def _unextended(self):
        return self._replace(extended=False)

    def _mv(self, v):
        if self.extended:
            return Complexified(self._unextended())._mv(v)
        return self.map.push(v) if self.function.has_forward_rules else self._linearization()._mv(v)

    def _mv_transposed(self, w):
        return Complexified(self._unextended())._mv_transposed(w) if self.extended else self.map.pull(w)

    def _linearization(self):
        if self.extended:
            return Complexified(self._unextended()._linearization())
        return self.map.linearize(self.function, self.domain, self.codomain, self.function.values)
