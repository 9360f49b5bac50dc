"""Functions of a point and a batch, summed over data: what they and their derivatives are made of is one pass each."""

import dataclasses
import functools

import jax

from linops.program import settings as jax_settings
from linops.program.function import Function, Origin, unlaid
from linops.program.jaxpr.evaluate import struct
from linops.program.jaxpr.totals import Summand, total
from linops.program.missing import differentiating
from linops.program.program import Program
from linops.program.sources import Examples, Stream
from linops.program.spread import Spread


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("parts", "arrays"), meta_fields=("types", "source", "is_loss")
)
@dataclasses.dataclass(frozen=True)
class OverData:
    """x -> the sum, or mean, over examples of f(x, batch, *args), as a `Function` is called.

    `parts` are f for the sizes of batches there are, with their `types`: of arrays the chunks, what is left of them,
    and all at once. `arrays` are those that chunks are cut from; there are none where batches come from the host, in
    other sizes too.
    """

    parts: tuple[Function, ...]
    arrays: tuple[jax.Array, ...]
    types: tuple[tuple, ...]
    source: Examples | Spread | Stream
    is_loss: bool = False  # a function of the values of another one

    first = property(lambda self: self.parts[0])
    program = property(lambda self: self.first.program)
    args = property(lambda self: self.first.args)
    codomain = property(lambda self: self.first.codomain)
    origin = property(lambda self: self.first.origin)
    values = property(lambda self: self.first.values)
    has_forward_rules = property(lambda self: self.first.has_forward_rules)

    def __call__(self, x):
        return over_data(_call, self, x)

    def __reduce__(self):
        return _unpickle, (self.parts, self.arrays, self.types, self.source, self.is_loss)

    last = property(lambda self: self.first.last)

    def with_args(self, args, *, but_last=False):
        """The same with other args, as of a Function."""
        return self._with_parts(part.with_args(args, but_last=but_last) for part in self.parts)

    def with_last(self, value):
        """The same with another last argument."""
        return self._with_parts(part.with_last(value) for part in self.parts)

    def with_last_arrays(self, arrays):
        """The same with other arrays in its last argument."""
        return self._with_parts(part.with_last_arrays(arrays) for part in self.parts)

    def _with_parts(self, parts):
        return dataclasses.replace(self, parts=tuple(parts))

    def of_batch(self, arrays, before=None):
        """The Function of one batch; of a loss, where the model `before` it is of that batch too."""
        for part, types in zip(self.parts, self.types, strict=True):
            if all(array.shape == aval.shape for array, aval in zip(arrays, types, strict=True)):
                return part.of_batch(arrays)
        domain = before.codomain if self.is_loss else None
        return self.source.part(self.first, tuple(map(jax.typeof, arrays)), domain).of_batch(arrays)


def without_arrays(tree):
    """A tree whose functions over data have none."""
    return jax.tree.map(
        lambda f: dataclasses.replace(f, arrays=()) if is_over_data(f) else f, tree, is_leaf=is_over_data
    )


def of_arrays(tree, arrays, source):
    """A tree with other arrays, walked in another way, for its functions over data: a list of them all."""
    arrays = iter(arrays)

    def of_other(node):
        return dataclasses.replace(node, arrays=tuple(next(arrays) for _ in node.types[0]), source=source)

    return jax.tree.map(lambda node: of_other(node) if is_over_data(node) else node, tree, is_leaf=is_over_data)


def _unpickle(parts, arrays, types, source, is_loss):
    if source.is_of_host:
        source.remember(parts[0])
    types = tuple(tuple(map(jax.typeof, map(unlaid, batch))) for batch in types)  # on one device
    return OverData(parts, arrays, types, source, is_loss)


def is_over_data(node):
    """Whether something is a function over data."""
    return isinstance(node, OverData)


def functions_over_data(tree):
    """The functions over data in a tree."""
    return [f for f in jax.tree.leaves(tree, is_leaf=is_over_data) if is_over_data(f)]


def at_batch(tree, batch):
    """A tree with the functions of one batch, a list of arrays, in place of those over data."""
    batch, before = iter(batch), None

    def of_batch(node):
        nonlocal before
        if not is_over_data(node):
            return node
        before = node.of_batch([next(batch) for _ in node.types[0]], before)
        return before

    return jax.tree.map(of_batch, tree, is_leaf=is_over_data)


def at_once(tree):
    """A tree with the functions of all data, as one batch."""
    return at_batch(tree, [array for f in functions_over_data(tree) for array in f.arrays])


def over_data(function, tree, *operands):
    """The sum over batches of `function(tree at the batch, *operands)`, a tree of arrays."""
    functions = functions_over_data((tree, operands))
    source, arrays = functions[0].source, [array for f in functions for array in f.arrays]
    leaves, treedef = jax.tree.flatten(without_arrays((tree, operands)))
    summand = Batchwise(function, treedef, functions[0].program, functions[0].origin)
    out = _types(summand, source, arrays, functions, leaves)
    types, out_tree = jax.tree.flatten(out)
    return out_tree.unflatten(total(summand, source, tuple(map(jax.typeof, types)), arrays, leaves))


def _types(summand, source, arrays, functions, leaves):
    """The types of the results of one batch, as a tree."""
    if isinstance(source, Spread):

        def of_part(arrays, leaves):
            return summand.tree(source.each.batch(arrays, 0), leaves)

        return jax.eval_shape(lambda *values: source.summed(of_part, *values), arrays, leaves)
    batch = [struct(aval) for f in functions for aval in f.types[0]]
    return jax.eval_shape(lambda *values: summand.tree(*values), batch, leaves)


@dataclasses.dataclass(frozen=True)
class Batchwise(Summand):
    """A function of a tree with functions over data, at one batch, as lists of arrays."""

    function: object
    treedef: jax.tree_util.PyTreeDef
    program: Program
    origin: Origin

    opaque = property(lambda self: self.program.opaque)

    def tree(self, batch, leaves):
        """The result, as a tree."""
        tree, operands = self.treedef.unflatten(leaves)
        with jax_settings.entered(self.origin.settings):
            return self.function(at_batch(tree, batch), *operands)

    def __call__(self, batch, leaves):
        return jax.tree.leaves(self.tree(batch, leaves))

    def within(self, mode):
        return differentiating(mode, self.origin)


def _call(function, x):
    return function(x)
