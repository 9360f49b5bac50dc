"""A user's function made cacheable: closed-over arrays hoisted, programs keyed by what they compute.

`jax.jit` keys its cache by the identity of a Python function, and compiles arrays that the function
closes over into the program. Here a function is traced to a jaxpr, its arrays become data, and the rest,
a `Program`, equals any other program with the same instructions, so that a fresh lambda over new data
compiles nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from linops.jaxpr import contains, hoist, structure
from linops.space import Space, space_of, to_device


class Program:
    """The instructions of a jaxpr, without data; equal to any other with the same instructions.

    A function that is still to be differentiated carries custom derivative rules, opaque Python callables that JAX
    makes anew in each trace: such a program equals only itself. What is only to be compiled and run (`rules=False`) is
    compared without them.
    """

    __slots__ = ("_hash", "_key", "jaxpr")

    def __init__(self, jaxpr, *, rules=True):
        self.jaxpr = jaxpr
        self._key = (rules, structure(jaxpr, rules))
        self._hash = hash(self._key)

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        return self is other or (isinstance(other, Program) and self._key == other._key)

    def __call__(self, consts, *arguments):
        return jax.core.eval_jaxpr(self.jaxpr, consts, *arguments)

    @functools.lru_cache(maxsize=512)  # noqa: B019 - it holds programs on purpose, a bounded number of them
    def shared(self):
        """The first program seen that equals this one: equal programs become identical, and compare at once."""
        return self


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("consts", "args"), meta_fields=("program", "codomain", "forward")
)
@dataclasses.dataclass(frozen=True)
class Function:
    """x -> f(x, *args) as a program (static) and the arrays it closes over (leaves).

    `codomain` is the Space of its values. `forward` is False where f uses `jax.custom_vjp`, which has no forward rule.
    """

    consts: tuple[jax.Array, ...]
    args: tuple[jax.Array, ...]
    program: Program
    codomain: Space
    forward: bool

    def __call__(self, x):
        return self.codomain.treedef.unflatten(self.program(self.consts, *jax.tree.leaves(x), *self.args))

    @classmethod
    def trace(cls, f, domain, args=(), what="f"):
        """Trace `f(x, *args)` for x in the Space `domain`. Arrays and floats in `args` are data, all else is code.

        An `args` that is no tuple is one argument, as in SciPy.
        """
        if not callable(f):
            raise TypeError(f"{what} is {f!r}, expected a callable")
        args = args if isinstance(args, tuple) else (args,)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(args)
        traced = [isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex) for _, leaf in leaves]
        data = [
            jnp.asarray(leaf)
            if type(leaf) in (float, complex)
            else to_device(leaf, f"args{jax.tree_util.keystr(path)}")
            for (path, leaf), is_data in zip(leaves, traced, strict=True)
            if is_data
        ]

        def flat(x, data):
            data = iter(data)
            merged = [next(data) if is_data else leaf for (_, leaf), is_data in zip(leaves, traced, strict=True)]
            value = f(x, *treedef.unflatten(merged))
            _check_value(value, what)
            return value

        with domain.scope():
            jaxpr, value = _make_jaxpr(flat, what)(domain.struct, data)
            jaxpr, consts = hoist(jaxpr)
        program = Program(jaxpr).shared()
        consts = tuple(to_device(const, f"an array that {what} closes over") for const in consts)
        codomain = space_of(value, f"the value of {what}")
        return cls(consts, tuple(data), program, codomain, not contains(jaxpr, "custom_vjp_call"))


def stage(function, *arguments):
    """Trace `function(*arguments)`, both flat lists of arrays, to a Program that is only to be run, and its consts."""
    jaxpr, consts = hoist(jax.make_jaxpr(function)(*arguments))
    with jax.ensure_compile_time_eval():  # what is staged is kept: arrays, not tracers of a jit in progress
        return Program(jaxpr, rules=False), [jnp.asarray(const) for const in consts]


def _make_jaxpr(f, what):
    """`jax.make_jaxpr` for a user's function; what JAX says of a function that cannot be traced, said with a remedy."""

    def make(*arguments):
        try:
            return jax.make_jaxpr(f, return_shape=True)(*arguments)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise TypeError(
                f"{what} could not be traced: it turned a traced array into a NumPy array or a Python value; expected "
                "a function of jax.numpy operations: use jax.numpy for numpy, and jax.lax.cond, jnp.where or "
                f"jax.lax.while_loop for branches on values. JAX said: {str(error).splitlines()[0]}"
            ) from error

    return make


def _check_value(value, what):
    for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
        if not isinstance(leaf, jax.Array):
            raise TypeError(
                f"{what} returned {type(leaf).__name__}{' at ' * bool(path)}{jax.tree_util.keystr(path)}, expected "
                "jax.Array: compute it with jax.numpy from the argument, or leave it out of the value"
            )
