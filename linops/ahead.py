"""Two compilations at a time: that of an operator's first product, while the operator is linearized.

What a linearization will give is known before it is computed: as an operator of types in place of arrays, of which the
product can be compiled. XLA does so without Python's lock, so that a first product takes little longer than by hand,
where one program does both.
"""

import contextlib
import threading

import jax

from linops.arrays import require_threads
from linops.products import array_product
from linops.program.hosted import is_hosted
from linops.program.jaxpr.evaluate import struct
from linops.program.staged import Flat, was_known


def prepared(operator):
    """`operator.linearize()`, for a product with a vector."""
    if "_linearized" in vars(operator) or operator._traced or was_known(operator) or not _is_simple(operator):
        return operator.linearize()
    require_threads()
    with operator._scope.entered():  # types of 64 bits are narrowed elsewhere
        form, v = _types(operator).linearize(), jax.ShapeDtypeStruct((operator.shape[1],), operator.dtype)
        flat = Flat(form, form._scope)
        staged = flat.stage(array_product, v)
        if is_hosted(staged.graph):
            return operator.linearize()
        lowered = flat.lower(staged, v)  # here, for contexts are of a thread
    compiling = threading.Thread(target=_compile, args=(lowered,))
    try:
        compiling.start()
    except RuntimeError:  # a process that may have no more threads
        return operator.linearize()
    try:
        return operator.linearize()
    finally:
        compiling.join()


def _is_simple(operator):
    """Whether types do for its arrays, and the program that is compiled for them is the one that is called.

    No array is bound to a device, none is in it twice, which types do not tell, and no code of a user asks for numbers.
    """
    arrays = [leaf for leaf in jax.tree.leaves(operator) if isinstance(leaf, jax.Array)]
    is_bound = any(leaf.committed for leaf in arrays) or not jax.sharding.get_abstract_mesh().empty
    is_once = len(arrays) == len({*map(id, arrays)})
    return _is_ours(operator) and is_once and not is_bound and not jax.config.jax_disable_jit


def _is_ours(operator):
    return type(operator).__module__.startswith("linops.") and all(map(_is_ours, operator._factors().values()))


def _types(operator):
    """The operator with the types of its arrays."""
    return jax.tree.map(lambda leaf: struct(jax.typeof(leaf)) if isinstance(leaf, jax.Array) else leaf, operator)


def _compile(lowered):
    with contextlib.suppress(Exception):  # it is said where the product is computed
        lowered.compile()
