"""Sums of operators; of many that are one program over other arrays, minibatches say, that is compiled once."""

import dataclasses
import itertools
import operator

import jax
import jax.numpy as jnp

from linops.algebra.operator import Operator, adapt, common_space, over_one_field
from linops.node import static
from linops.program.sources import in_all, no_sum, with_terms
from linops.space import Space

MANY = 4  # terms that are alike, of which it pays to stack their arrays


class Sum(Operator):
    """A + B + C + ..."""

    terms: tuple[Operator, ...]

    @classmethod
    def of(cls, left, right):
        if left.shape != right.shape:
            raise ValueError(f"{left!r} + {right!r}: expected operators of one shape")
        left, right = over_one_field(left, right)
        if not adapt(left, right):
            domain = common_space((left, left.domain), (right, right.domain))
            codomain = common_space((left, left.codomain), (right, right.codomain))
            left, right = left._on(domain, codomain), right._on(domain, codomain)
        terms = (A.terms if isinstance(A, Sum) else (A,) for A in (left, right))
        return cls(tuple(itertools.chain(*terms)))

    domain = property(lambda self: self.terms[0].domain)
    codomain = property(lambda self: self.terms[0].codomain)
    symmetric = property(lambda self: all(A._equals_transpose for A in self.terms))
    hermitian = property(lambda self: all(A._equals_adjoint for A in self.terms))
    positive_semidefinite = property(lambda self: all(A.positive_semidefinite for A in self.terms))
    _is_semidefinite = property(lambda self: all(A._is_semidefinite for A in self.terms))
    _adapts = property(lambda self: all(A._adapts for A in self.terms))

    def _factors(self):
        return dict(enumerate(self.terms))

    def _with_factors(self, factors):
        return self._replace(terms=tuple(factors.values()))

    def _mv(self, v):
        return _total(A._mv(v) for A in self.terms)

    def _transposed(self):
        return Sum(tuple(A.T for A in self.terms))

    def _residual_form(self):
        """Linearized, and stacked where many are alike; what is stacked is not kept by the terms as well."""
        terms = [A._residual_form() for A in self.terms]
        groups = {}
        for A in terms:
            groups.setdefault(_likeness(A), []).append(A)
        stacked = [(Stacked.of(group),) if len(group) >= MANY else group for group in groups.values()]
        return Sum(tuple(itertools.chain(*stacked)))


class Stacked(Operator):
    """The sum of operators that are one program over other arrays, which are stacked along a leading axis."""

    stacked: tuple
    shared: tuple
    form: "_Form" = static()
    domain: Space = static()
    codomain: Space = static()

    @classmethod
    def of(cls, operators):
        leaves = list(zip(*map(jax.tree.leaves, operators), strict=True))
        same = tuple(all(leaf is column[0] for leaf in column) for column in leaves)
        with operators[0]._scope.entered():
            stacked = tuple(_stacked(column) for column, is_same in zip(leaves, same, strict=True) if not is_same)
        shared = tuple(column[0] for column, is_same in zip(leaves, same, strict=True) if is_same)
        form = _Form(jax.tree.structure(operators[0]), same, len(operators))
        return cls(stacked, shared, form, operators[0].domain, operators[0].codomain)

    def _mv(self, v):
        def add(state, leaves):
            return with_terms(state, jax.tree.leaves(self.form.operator(leaves, self.shared)._mv(v))), None

        types = map(jax.typeof, jax.tree.leaves(self.codomain.struct))
        state, _ = jax.lax.scan(add, no_sum(types), self.stacked, length=self.form.count)
        return self.codomain.treedef.unflatten(in_all(state))


@dataclasses.dataclass(frozen=True)
class _Form:
    """What stacked operators are, without their arrays: which of these they share, and how many there are."""

    treedef: jax.tree_util.PyTreeDef
    same: tuple[bool, ...]
    count: int

    def operator(self, leaves, shared):
        leaves, shared = iter(leaves), iter(shared)
        return self.treedef.unflatten([next(shared if is_same else leaves) for is_same in self.same])


def _stacked(column):
    """Arrays along a new leading axis; of types, the type."""
    is_type = isinstance(column[0], jax.ShapeDtypeStruct)
    return jax.eval_shape(jnp.stack, column) if is_type else jnp.stack(column)


def _likeness(A):
    leaves, treedef = jax.tree.flatten(A)
    return treedef, tuple(map(jax.typeof, leaves))


def _total(products):
    total, *others = products
    for product in others:
        total = jax.tree.map(operator.add, total, product)
    return total


def _plus(left, right):
    return Sum.of(left, right)


Operator._plus = _plus  # which stands below
