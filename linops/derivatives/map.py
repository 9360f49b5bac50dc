"""A function at a point, and the operators that are made of its derivatives there."""

import functools

import jax
import jax.numpy as jnp

from linops.algebra.operator import Operator
from linops.arrays import place_beside, place_like, refuse_point, to_device
from linops.budget import RESIDUAL_SHARE, log, memory_budget
from linops.derivatives import parts
from linops.derivatives.linearized import pullback, pushforward
from linops.node import Node, static
from linops.precision import SaidTogether
from linops.products import concrete, is_traced
from linops.program.arguments import as_tuple
from linops.program.closures import say_closed_over
from linops.program.function import Function
from linops.program.holomorphy import After, trace_linear
from linops.program.jaxpr.evaluate import place
from linops.program.jaxpr.graph import nbytes
from linops.program.missing import differentiating
from linops.program.over_data import OverData, at_once
from linops.program.settings import Scope
from linops.program.staged import Flat, run_once
from linops.realify import any_complex, join, realified_space
from linops.space import Space, space_of


class Map(Node):
    """x -> f(x, *args) at a point, with its first derivatives there.

    Where a part of x is differentiated, `x` is this part, and the rest is the last argument of the function.

    Where f is of complex numbers and its derivative is not complex-linear, it is a function of pairs (Re x, Im x), and
    `realified` is the Space of the points that users give.
    """

    function: Function | OverData
    x: object
    realified: Space | None = static()
    has_rest: bool = static(default=False)

    @classmethod
    def trace(
        cls, f, x, args=(), *, realify=False, what="f", data=None, wrt=None, through=None, operator="Jacobian"
    ):  # fmt: skip
        """Trace f, or `through(f)`, at a point that a user gives, to be differentiated by all of it or a part, `wrt`.

        Over `data`, f is f(x, batch, *args). `realify` asks for pairs wherever there are complex numbers.
        """
        with SaidTogether():
            say_closed_over(f)
            if wrt is not None:
                x, rest = parts.split(x, parts.selected(x, wrt, operator))
                args, through = (*as_tuple(args), parts.held(rest)), After(parts.of_part, through)
            refuse_point(x)
            paths, treedef = jax.tree_util.tree_flatten_with_path(x)
            given = treedef.unflatten([to_device(leaf, f"x{jax.tree_util.keystr(path)}") for path, leaf in paths])
        domain = space_of(given, "x")
        with domain.scope():
            given = place_beside(given, (args, data.arrays if data else None))
        traced = functools.partial(trace_linear, f, given, domain, args, what, realify, through)
        if data is None:
            function, x, realified = traced()
        else:
            found, data = data.traced(traced, given)
            if (smaller := data.fitting(found[0][0])) is not None:
                found, data = smaller.traced(traced, given)
            function, (_, x, realified) = data.over([function for function, _, _ in found]), found[0]
            data.require_reduced(through(f) if through else f, given, args, function)
        return cls._make(function=function, x=apart(x, function), realified=realified, has_rest=wrt is not None)

    origin = property(lambda self: self.function.origin)
    values = property(lambda self: self.function.codomain)

    @functools.cached_property
    def points(self):
        """The Space of points."""
        return realified_space(self.realified) if self.realified else Space.of(self.x)

    @property
    def is_extended(self):
        """Whether the derivative, from real to complex numbers, is to take complex vectors."""
        return any_complex(self.values) and not any_complex(self.points)

    def at(self, x, args=None):
        """The same function at another point that a user gives, placed like the one before if it is of the host.

        Where a part is differentiated, a whole point moves the rest too, which stays where a part is given.
        """
        function = self.function if args is None else self.function.with_args(args, but_last=self.has_rest)
        with SaidTogether():
            if self.has_rest and (sides := parts.split_like(x, self.realified.struct if self.realified else self.x)):
                x, function = sides[0], function.with_last(parts.held(sides[1]))
            at = self._replace(x=apart(self.point(x), function), function=function)
        vars(at).update(points=self.points)
        return at

    @property
    def rest(self):
        """The arrays that are held fixed."""
        return self.function.last if self.has_rest else ()

    def moved(self, x, rest):
        """The same at an element of the Space of points, with other arrays held fixed."""
        return self._replace(x=x, function=self.function.with_last_arrays(rest) if self.has_rest else self.function)

    def point(self, x):
        """A point that a user gives, as an element of the Space of points."""
        leaves, treedef = jax.tree.flatten(x)
        before, structure = jax.tree.flatten(self.x)
        if treedef == structure and all(map(_is_like, leaves, before)):
            return x
        return place_like(self.points.point(x), self.x, x)

    def given(self, x):
        """An element of the Space of points as a user gives one: complex, where that is a pair."""
        return join(x, self.realified) if self.realified else x

    def push(self, v, f=None):
        """The slope along v of the function, or of another one that is computed with it."""
        leaves, treedef = jax.tree.flatten(v)
        v = treedef.unflatten(place(leaves, map(jax.typeof, jax.tree.leaves(self.x))))
        with differentiating("forward", self.origin):
            return jax.jvp(f or self.function, (self.x,), (v,))[1]

    def pull(self, w):
        """The product of w with the transpose of the derivative."""
        with differentiating("reverse", self.origin):
            leaves = place(jax.tree.leaves(w), jax.tree.leaves(self.function.values))
            return jax.vjp(self.function, self.x)[1](self.values.treedef.unflatten(leaves))[0]

    def value_and_gradient(self, x, weights=None):
        """The values at x, and the gradient of the sum of them all, or of their weighted sum."""
        with differentiating("reverse", self.origin):
            value, pull = jax.vjp(self.function, x)
            return value, pull(jax.tree.map(jnp.ones_like, value) if weights is None else weights)[0]

    def gradient(self, x, weights=None):
        """The gradient at x of the sum of all values, or of their weighted sum."""
        return self.value_and_gradient(x, weights)[1]

    def linearize(self, f, domain, codomain, like):
        """The derivative at x of a function that is computed with it, with values of the types `like`, linearized."""
        if self.function.has_forward_rules:
            return pushforward(f, self.x, domain, codomain, self.origin)
        return pullback(f, self.x, domain, codomain, self.origin, like)


def _is_like(leaf, other):
    """Whether a leaf is a device array, and of the type of another one."""
    is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return is_array and jax.typeof(leaf) == jax.typeof(other)


def apart(x, other):
    """A point in arrays that are not those of another tree: where they coincide here, they do not at another point."""
    held = {id(leaf) for leaf in jax.tree.leaves(other)}
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if id(leaf) in held and not is_traced(leaf) else leaf, x)


class Derived(Operator):
    """An operator made of derivatives of a function at a point.

    A subclass adds `_linearization`, the operator with its residuals, in traceable JAX. `keep` says what becomes of
    these: True keeps them, False computes them anew in each product, None keeps them while they fit the memory budget.
    Those of data on the device are of all examples at once, which are walked in chunks where they are not kept.
    """

    map: Map
    keep: bool | None = static()
    check_finite: bool = static()

    function = property(lambda self: self.map.function)
    x = property(lambda self: self.map.x)
    domain = functools.cached_property(lambda self: self.map.points)

    def at(self, x, args=None):
        """The same operator at another point, a pytree like x or its vector; nothing is traced or compiled.

        Where x is complex and the operator real, its vector is [Re x, Im x]. Other `args` are like those before: arrays
        of the same shapes and dtypes, and all else the same. Of an operator with `wrt`, a whole x moves what is held
        fixed too; the part alone, with None for the rest, or its vector, leaves that.
        """
        return self._replace(map=self.map.at(x, args))

    def _points(self):
        return [(self.map.given(self.x), *self.map.rest)]

    @property
    def _scope(self):
        return Scope.around([super()._scope, self.map.origin.scope])

    @property
    def _source(self):
        """Where its data come from, or None."""
        return self.function.source if isinstance(self.function, OverData) else None

    def _kept(self):
        """The operator with its residuals, in traceable JAX."""
        return (self if self._source is None else at_once(self))._linearization()

    def _residual_form(self):
        if self.keep is False or (self.keep is None and self.function.program.mutates):
            return self
        if self._source is not None and (self._source.is_of_host or (self._traced and self._is_too_much())):
            return self
        if self._traced:
            return self._kept()
        flat = Flat(self, self._scope)
        staged = flat.stage(linearization)
        if self.keep is None and staged.bytes_out > memory_budget(RESIDUAL_SHARE):
            log.debug("%r computes its residuals anew in each product: %d bytes do not fit", self, staged.bytes_out)
            return self._frugal()
        return concrete(lambda: flat.finish(staged))  # an operator made outside of a jit keeps arrays also inside

    def _frugal(self):
        """The same operator, whose products keep of the loops of f only what steps hand to one another."""
        if self._source is not None or not self.function.has_loops:
            return self
        log.debug("%r computes the steps of its loops anew on the way back", self)
        return self._replace(map=self.map._replace(function=self.function.replaced(is_frugal=True)), keep=False)

    def _is_too_much(self):
        """Whether its residuals would not fit the memory budget, though it is walked in chunks for that."""
        kept = jax.tree.leaves(jax.eval_shape(Derived._kept, self))
        return self.keep is None and sum(map(nbytes, kept)) > memory_budget(RESIDUAL_SHARE)


@run_once
def linearization(A):
    """An operator, linearized."""
    return A._kept()
