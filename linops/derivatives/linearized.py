"""Linearizations: a derivative with what its products need of the point."""

import functools

import jax
import jax.numpy as jnp

from linops.algebra.operator import Operator, Transposed
from linops.node import static
from linops.program.function import Origin
from linops.program.jaxpr.evaluate import place, struct, tangent_struct
from linops.program.missing import differentiating
from linops.program.program import Program, keeps_rules
from linops.program.residuals import thrifty
from linops.program.settings import Scope
from linops.space import Space


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
