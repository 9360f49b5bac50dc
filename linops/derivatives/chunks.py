"""Operators over data with the residuals of each chunk kept."""

import jax
import jax.numpy as jnp

from linops.algebra.operator import Scaled
from linops.algebra.sums import Form, Stacked, Sum
from linops.program.jaxpr.evaluate import struct
from linops.program.over_data import at_batch, functions_over_data
from linops.program.residuals import varying


def over_chunks(A, source):
    """The operator A, linearized at each chunk of its data, in traceable JAX."""
    arrays = [array for f in functions_over_data(A) for array in f.arrays]
    if source.count == source.size:
        return at_batch(A, arrays)._linearization()
    treedef = None

    def leaves_of(batch):
        nonlocal treedef
        leaves, treedef = jax.tree.flatten(at_batch(A, batch)._linearization())
        return leaves

    types = [struct(aval) for f in functions_over_data(A) for aval in f.types[0]]
    varies = varying(leaves_of, types)

    def some(i, wanted):
        leaves = leaves_of(source.batch(arrays, i))
        return [leaf for leaf, is_so in zip(leaves, varies, strict=True) if is_so == wanted]

    _, stacked = jax.lax.scan(lambda _, i: (None, some(i, True)), None, jnp.arange(source.chunks))
    form = Form(treedef, tuple(not is_so for is_so in varies), source.chunks)
    chunks = Stacked(tuple(stacked), tuple(some(0, False)), form, A.domain, A.codomain)
    terms = [_weighted(source.size, source, chunks)]
    if source.rest:
        terms.append(_weighted(source.rest, source, at_batch(A, source.last(arrays))._linearization()))
    return Sum(tuple(terms))


def _weighted(examples, source, operator):
    return Scaled.of(examples / source.count, operator) if source.is_mean else operator
