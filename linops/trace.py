"""A user's function made cacheable: closed-over arrays hoisted, programs keyed by what they compute.

`jax.jit` keys its cache by the identity of a Python function, and compiles arrays that the function
closes over into the program. Here a function is traced to a jaxpr, its arrays become data, and the rest,
a `Program`, equals any other program with the same instructions, so that a fresh lambda over new data
compiles nothing.
"""

import contextlib
import dataclasses
import functools
import hashlib
import operator
import re
import sys
from collections.abc import Callable
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np

from linops.arrays import to_device
from linops.jaxpr import contains, hoist, structure
from linops.space import Space, space_of


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

    def fingerprint(self):
        """JAX's version, and a digest of the program that is the same in another process."""
        text = re.sub("0x[0-9a-f]+", "", str(self.jaxpr))  # addresses of functions
        return jax.__version__, hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Source:
    """How to trace a Function again in another process: code only, of an `f` that can be imported there."""

    f: Callable
    through: Callable | None  # what of linops stands around f: a picklable function of f
    domain: Space
    what: str
    args_treedef: jax.tree_util.PyTreeDef
    code: tuple  # the leaves of args, with _DATA where there is data
    settings: tuple  # of JAX, when f was traced

    @classmethod
    def of(cls, f, through, domain, what, args_treedef, code):
        """The Source, or None where f cannot be imported, or the code in args cannot be compared."""
        settings = tuple(getattr(jax.config, name) for name in _SETTINGS)
        source = cls(f, through, domain, what, args_treedef, tuple(code), settings)
        try:
            hash(source)
        except TypeError:
            return None
        return source if _is_importable(f) else None

    def __reduce__(self):
        # By name, which pickle itself refuses for functions that jax.jit has wrapped.
        f = (self.f.__module__, self.f.__qualname__)
        if not _is_importable(self.f):
            raise TypeError(
                f"{self.what} was {'.'.join(f)} when the operator was made, and the module now has another function of "
                "that name; expected the same one: build the operator anew"
            )
        return _unpickle_source, (f, *(getattr(self, field.name) for field in dataclasses.fields(self)[1:]))

    def trace(self, data):
        """The Function, for these data in the args of f."""
        data = iter(data)
        args = self.args_treedef.unflatten([next(data) if leaf is _DATA else leaf for leaf in self.code])
        with contextlib.ExitStack() as stack:
            for setting, value in zip(_SETTINGS.values(), self.settings, strict=True):
                stack.enter_context(setting(value))
            return Function.trace(self.f, self.domain, args, self.what, through=self.through)


_DATA = jax.ShapeDtypeStruct  # any one object that pickles by reference and is no leaf of args
_SETTINGS = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("consts", "args"),
    meta_fields=("program", "codomain", "forward", "what", "source"),
)
@dataclasses.dataclass(frozen=True)
class Function:
    """x -> f(x, *args) as a program (static) and the arrays it closes over (leaves).

    `codomain` is the Space of its values. `forward` is False where f uses `jax.custom_vjp`, which has no forward rule.
    A jaxpr cannot be pickled: a Function with a `source` is pickled as that and its data, and traced anew.
    """

    consts: tuple[jax.Array, ...]
    args: tuple[jax.Array, ...]
    program: Program
    codomain: Space
    forward: bool
    what: str
    source: Source | None

    def __call__(self, x):
        return self.codomain.treedef.unflatten(self.program(self.consts, *jax.tree.leaves(x), *self.args))

    def __reduce__(self):
        if self.source is None:
            raise TypeError(
                f"an operator was pickled whose {self.what} cannot be imported by its name; expected a function that "
                f"its module has under its own name, and hashable args: write {self.what} with def at module level, "
                "not as a lambda or inside of a function, and pass data through args="
            )
        return _unpickle_function, (self.source, self.consts, self.args, self.codomain, self.program.fingerprint())

    @classmethod
    def trace(cls, f, domain, args=(), what="f", through=None):
        """Trace `f(x, *args)` for x in the Space `domain`. Arrays and floats in `args` are data, all else is code.

        An `args` that is no tuple is one argument, as in SciPy. `through(f)` is traced instead of f where it is given,
        a picklable function of functions.
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

        function = through(f) if through else f

        def flat(x, data):
            data = iter(data)
            merged = [next(data) if is_data else leaf for (_, leaf), is_data in zip(leaves, traced, strict=True)]
            value = function(x, *treedef.unflatten(merged))
            _check_value(value, what)
            return value

        with domain.scope():
            jaxpr, value = _make_jaxpr(flat, what)(domain.struct, data)
            jaxpr, consts = hoist(jaxpr)
        program = Program(jaxpr).shared()
        consts = tuple(to_device(const, f"an array that {what} closes over") for const in consts)
        codomain = space_of(value, f"the value of {what}")
        code = [_DATA if is_data else leaf for (_, leaf), is_data in zip(leaves, traced, strict=True)]
        source = Source.of(f, through, domain, what, treedef, code)
        return cls(consts, tuple(data), program, codomain, not contains(jaxpr, "custom_vjp_call"), what, source)


def _is_importable(f):
    """Whether f is what its module has under its name."""
    try:
        return operator.attrgetter(f.__qualname__)(sys.modules[f.__module__]) is f
    except (AttributeError, KeyError):
        return False


def _unpickle_source(name, *rest):
    module, attribute = name
    return Source(operator.attrgetter(attribute)(import_module(module)), *rest)


def _unpickle_function(source, consts, args, codomain, fingerprint):
    function = source.trace(args)
    arrays = [[jax.typeof(const) for const in values] for values in (function.consts, consts)]
    (version, digest), (version_then, digest_then) = function.program.fingerprint(), fingerprint
    same_program = digest == digest_then or version != version_then  # another JAX traces other programs
    if not (same_program and function.codomain.layout == codomain.layout and arrays[0] == arrays[1]):
        raise ValueError(
            f"{source.f.__module__}.{source.f.__qualname__} is not the function that it was when its operator was "
            "pickled: it computes something else, or its value, or an array that it uses, has another shape or dtype; "
            "expected the same code and version: build the operator anew"
        )
    return dataclasses.replace(function, consts=consts, codomain=codomain)


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
