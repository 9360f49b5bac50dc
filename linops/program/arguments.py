"""The further arguments of a function: arrays and floats are data, all else is code."""

import dataclasses
import weakref

import jax
import numpy as np

from linops.arrays import as_data, brief
from linops.program.jaxpr.structure import Same, Structure

DATA = jax.ShapeDtypeStruct  # any one object that pickles by reference and is no leaf of args


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How the args of a function are made of data and code. Code is compared by value where it is plain."""

    treedef: jax.tree_util.PyTreeDef
    code: tuple  # the leaves, with DATA where there is data

    @classmethod
    def split(cls, args):
        """The Arguments, the leaves that are code, and the data on the device."""
        leaves, treedef = _with_names(as_tuple(args), "args")
        data, code = [], []
        for name, leaf in leaves:
            code.append(DATA if is_data(leaf) else leaf)
            if is_data(leaf):
                data.append(as_data(leaf, name))
        return cls(treedef, tuple(map(_comparable, code))), code, data

    def parted(self):
        """The Arguments of all but the last argument, and of that one alone, as a tree that is no tuple."""
        *first, last = self.treedef.children()
        start = len(self.code) - last.num_leaves
        return Arguments(jax.tree_util.treedef_tuple(first), self.code[:start]), Arguments(last, self.code[start:])

    @property
    def count(self):
        """How many arrays there are."""
        return sum(code is DATA for code in self.code)

    def data_like(self, args, data, what="args"):
        """The data of other args, of the types of the data before; and what else is not as before, or None."""
        leaves, treedef = _with_names(args, what)
        if treedef != self.treedef:
            return None, f"{what} of structure {treedef} in place of {self.treedef}"
        found, before = [], iter(data)
        for (name, leaf), code in zip(leaves, self.code, strict=True):
            if code is DATA and (is_data(leaf) or type(leaf) is int):  # a number for a number, 1 for 0.1
                array, like = as_data(float(leaf) if type(leaf) is int else leaf, name), next(before)
                if (array.shape, array.dtype) != (like.shape, like.dtype):
                    types = (f"{a.dtype}{list(a.shape)}" for a in (array, like))
                    return None, "{} of type {} for {}".format(name, *types)
                found.append(_typed(array, like))
            elif code is DATA or is_data(leaf) or _comparable(leaf) != code:
                return None, f"{name} = {brief(leaf)}"
        return tuple(found), None


def as_tuple(args):
    """One argument or a tuple, as in SciPy."""
    return args if isinstance(args, tuple) else (args,)


def _with_names(args, what):
    """The leaves of args, with what they are called in errors."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(args)
    return [(f"{what}{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves], treedef


def is_data(leaf):
    """Whether a leaf is an array or a number that is data, and no code."""
    is_text = isinstance(leaf, str | bytes)  # as np.str_ is, a NumPy scalar
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex) and not is_text


def _typed(array, like):
    """An array of the shape and dtype of another one, weak in promotions as that one where it can be made so."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    if array.weak_type and not like.weak_type:
        return array.astype(array.dtype)
    is_number = array.ndim == 0 and not isinstance(array, jax.core.Tracer)
    return as_data(array.item(), "args") if like.weak_type and not array.weak_type and is_number else array


def merge(treedef, code, data):
    """The args of which `Arguments.split` made code and data."""
    data = iter(data)
    return treedef.unflatten([next(data) if leaf is DATA else leaf for leaf in code])


def _comparable(leaf):
    """Code by its value where that is plain; any other object is itself, and is not kept alive by being compared."""
    if leaf is DATA:
        return leaf
    structure = Structure()
    key = structure.value(leaf)
    if not structure.opaque:
        return key
    try:
        return _Object(weakref.ref(leaf))
    except TypeError:
        return Same(leaf)


class _Object(Same):
    """An object of a user, held weakly."""

    def __hash__(self):
        return hash(type(self))

    def __eq__(self, other):
        return isinstance(other, _Object) and self.value() is not None and self.value() is other.value()
