"""Parts of a point: what of it is differentiated, and what is held fixed.

A part is the tree of the point with None in place of what it lacks, so that paths of keys mean the same in both. A
function of a part takes the rest as its last argument: the arrays in it are data, all else is code.
"""

import dataclasses

import jax

from linops.arrays import brief, to_device
from linops.program.arguments import is_data
from linops.space import listed, name_of


def selected(x, wrt, operator):
    """Which leaves of x are differentiated, a tuple of bools: those below a path of keys, or of which `wrt` says so."""
    paths = jax.tree_util.tree_flatten_with_path(x)[0]
    if isinstance(wrt, str):
        found = tuple(any(name_of(keys[:k]) == wrt for k in range(len(keys) + 1)) for keys, _ in paths)
    elif callable(wrt):
        found = tuple(bool(wrt(name_of(keys), leaf)) for keys, leaf in paths)
    else:
        raise TypeError(
            f'{operator} got wrt={brief(wrt)}, expected a path of keys such as "layers/0", or a callable of the path '
            "and the leaf; for a block between two parts, linops.MixedDerivative(f, x, wrt=(rows, columns))"
        )
    if not any(found):
        known = f"x has {listed([keys for keys, _ in paths])}" if paths[0][0] else "x is one array, which has no parts"
        raise ValueError(
            f"{operator} got wrt={brief(wrt)}, which selects nothing of x; expected the path of a leaf, or of what "
            f"holds some, or a callable that is true for some: {known}"
        )
    return found


def split(x, flags):
    """The part of x of which flags are true, and the rest."""
    leaves, treedef = jax.tree.flatten(x)
    pairs = [(leaf, None) if flag else (None, leaf) for leaf, flag in zip(leaves, flags, strict=True)]
    return tuple(treedef.unflatten(side) for side in zip(*pairs, strict=True))


def split_like(x, part):
    """A whole point as the part that another one has, and the rest; None where it is no whole one, but a part."""
    if jax.tree.structure(x) == jax.tree.structure(part):
        return None
    try:
        sides = [_where(part, x, is_in) for is_in in (True, False)]
    except ValueError:  # of another structure: a vector, which the Space knows, or what it refuses
        return None
    return sides


def _where(part, x, is_in):
    return jax.tree.map(lambda p, leaf: leaf if (p is not None) == is_in else None, part, x, is_leaf=_is_none)


def joined(part, rest):
    """The whole of two parts."""
    return jax.tree.map(lambda p, r: r if p is None else p, part, rest, is_leaf=_is_none)


def _is_none(value):
    return value is None


def held(rest):
    """What is held fixed, with its numbers on the device: they are data, as those of the point."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(rest)
    return treedef.unflatten(
        to_device(leaf, f"x{jax.tree_util.keystr(path)}") if is_data(leaf) else leaf for path, leaf in paths
    )


def of_part(f):
    """A function of a whole point as one of a part, with the rest behind its other arguments."""

    def function(part, *args):
        *args, rest = args
        return f(joined(part, rest), *args)

    return function


@dataclasses.dataclass(frozen=True)
class GradientOfPart:
    """The gradient of functions with respect to a part of the point, as functions of the point."""

    flags: tuple[bool, ...]

    def __call__(self, f):
        def gradient(x, *args):
            part, rest = split(x, self.flags)
            return jax.grad(lambda part: f(joined(part, rest), *args))(part)

        return gradient
