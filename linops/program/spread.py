"""Arrays that lie on several devices along their examples: each device goes over its own, and one sum ends a pass.

A chunk that all devices take together would end with a sum over devices, as many in a pass as there are chunks.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from linops.program.jaxpr.code import Code
from linops.program.jaxpr.primitives import says_where
from linops.program.sources import Examples


@dataclasses.dataclass(frozen=True)
class Spread(Code):
    """Chunks of so many parts of arrays, each of which lies on devices of its own along axes of a mesh.

    Without a mesh, as after a pickle, the parts are gone over one after the other.
    """

    each: Examples
    mesh: jax.sharding.AbstractMesh | None
    axes: tuple[str, ...]
    shards: int

    is_of_host = False
    is_mean = property(lambda self: self.each.is_mean)
    size = property(lambda self: self.each.size * self.shards)
    count = property(lambda self: self.each.count * self.shards)

    def __reduce__(self):
        return Spread, (self.each, None, (), self.shards)

    def total(self, summand, types, arrays, operands):
        """The sum over all chunks, in traceable JAX."""

        def of_part(arrays, operands):
            return self.each.total(summand, types, arrays, operands)

        return self.summed(of_part, list(arrays), list(operands))

    def summed(self, function, arrays, operands):
        """The sum, or mean, over all parts of what a function gives of the arrays of each and of trees of arrays."""
        if self.mesh is None:
            sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), self.of_parts(function, arrays, operands))
        else:

            def of_part(arrays, operands):
                return jax.lax.psum(function(arrays, operands), self.axes)

            sums = self._mapped(of_part, PartitionSpec(), arrays, operands)
        return jax.tree.map(lambda leaf: leaf / self.shards, sums) if self.is_mean else sums

    def of_parts(self, function, arrays, operands):
        """What a function gives of each part, along a leading axis, each where its part lies."""
        if self.mesh is None:
            rows = [array.reshape(self.shards, len(array) // self.shards, *array.shape[1:]) for array in arrays]
            return jax.lax.map(lambda arrays: function(arrays, operands), rows)

        def of_part(arrays, operands):
            return jax.tree.map(lambda leaf: leaf[None], function(arrays, operands))

        return self._mapped(of_part, PartitionSpec(self.axes), arrays, operands)

    def _mapped(self, function, placed, arrays, operands):
        specs = PartitionSpec(self.axes), PartitionSpec()
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs,
            out_specs=placed,
            axis_names={*self.axes},
            check_vma=False,  # of what a function of a user's does nothing is known
        )
        return mapped(*map(_laid, (arrays, operands), specs))


def _laid(tree, spec):
    """Arrays laid along axes, as explicit ones ask it to be said."""

    def laid(leaf):
        mesh = jax.typeof(leaf).sharding.mesh
        return jax.sharding.reshard(leaf, NamedSharding(mesh, spec)) if mesh.explicit_axes else leaf

    return jax.tree.map(laid, tree)


def can_be_spread(function, x, source, arrays):
    """Whether each device can go over examples by itself, for a function that was traced for such a part.

    Not where the function says where its arrays lie, which are other ones then; nor where what all devices need, the
    point say, lies along the same axes, or along any explicit ones: it would be gathered on each of them.
    """
    if any(map(says_where, function.program.graph.walk())):
        return False
    held = {axis for leaf in jax.tree.leaves((x, function.consts, function.args)) for axis in _axes(leaf)}
    if source.mesh.explicit_axes:
        held.update(axis for const in function.consts for axis in jax.typeof(const).sharding.mesh.axis_names)
        return not held and all({*_axes(array)} <= {*source.axes} for array in arrays)
    return held.isdisjoint(source.axes)


def layout(arrays):
    """The mesh on which examples lie on several devices, along which axes, and the number of parts; None for none."""
    for array in arrays:
        if axes := _axes(array, 1):
            mesh = _sharding(array).mesh
            mesh = getattr(mesh, "abstract_mesh", mesh)
            return mesh, axes, math.prod(mesh.shape[axis] for axis in axes)
    return None


def _axes(array, dimensions=None):
    """The axes of a mesh along which the first dimensions of an array lie, or all."""
    found = (entry or () for entry in getattr(_sharding(array), "spec", ())[:dimensions])
    return tuple(axis for entry in found for axis in ((entry,) if isinstance(entry, str) else entry))


def _sharding(array):
    return jax.typeof(array).sharding if isinstance(array, jax.core.Tracer) else array.sharding
