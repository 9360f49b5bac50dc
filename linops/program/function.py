"""A user's function made cacheable: a program, and the arrays that it closes over as data."""

import copy
import dataclasses
import functools
import operator
import sys
import threading
from collections.abc import Callable
from importlib import import_module

import jax
import numpy as np

from linops.arrays import is_list_of_numbers, place_like, to_device
from linops.program import settings as jax_settings
from linops.program.arguments import Arguments, as_tuple, is_data, merge
from linops.program.jaxpr.evaluate import apply_frugally, is_inexact, is_loop_of_steps, struct
from linops.program.jaxpr.primitives import is_reference
from linops.program.jaxpr.private import is_called_by_cloudpickle
from linops.program.missing import MissingRule
from linops.program.program import Program, program_of
from linops.space import Space, space_of

# Functions are traced one at a time: of threads that trace at once, with and without float64, JAX gives the one arrays
# that it has made for the other (so do its own jit and make_jaxpr).
_TRACING = threading.RLock()

# What JAX raises of a function that makes a traced array one of NumPy, or a Python value.
UNTRACEABLE = jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError


@dataclasses.dataclass(frozen=True)
class Source:
    """How to trace a Function again in another process: code only."""

    f: Callable
    through: Callable | None  # what of linops stands around f: a picklable function of f
    domain: Space
    what: str
    args_treedef: jax.tree_util.PyTreeDef
    code: tuple  # the leaves of args, with DATA where there is data
    settings: tuple  # of JAX, when f was traced
    batch: tuple | None = None  # of a function of batches of data: the structure of one, and the types of its arrays

    @property
    def is_static(self):
        """Whether it can be a part of a pytree's structure: it holds no data of a user, and can be compared."""
        try:
            hash(self)
        except TypeError:
            return False
        return _is_importable(self.f)

    def __reduce__(self):
        # By name, which pickle itself refuses for functions that jax.jit has wrapped.
        f = self.f if not self.is_static or _is_value(self.f) else (self.f.__module__, self.f.__qualname__)
        args = self.args_treedef.unflatten(self.code)  # as a tree: see `skeleton`
        batch = self.batch and self.batch[0].unflatten(self.batch[1])
        return _unpickle_source, (f, self.through, self.domain, self.what, args, self.settings, batch)

    def trace(self, data, batch=None):
        """The Function, for these data in the args of f, and batches of these types, or of those it had."""
        args = merge(self.args_treedef, self.code, data)
        batch = self.batch and self.batch[0].unflatten(batch or self.batch[1])
        with jax_settings.entered(self.settings):
            return Function.trace(self.f, self.domain, args, self.what, through=self.through, batch=batch)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a function is called in errors, and what it and its derivatives are traced and called in."""

    what: str
    settings: tuple
    scope: jax_settings.Scope


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("consts", "batch", "args"),
    meta_fields=("program", "codomain", "origin", "arguments", "source", "is_frugal"),
)
@dataclasses.dataclass(frozen=True)
class Function:
    """x -> f(x, *args) as a program (static) and the arrays it closes over (leaves).

    With data it is f(x, batch, *args) for one batch, whose arrays are put in by `of_batch`.

    `codomain` is the Space of its values. A graph cannot be pickled: a Function is pickled as its Source and its data,
    and traced anew. A `source` is a field where it holds no data. Any other one is kept beside the fields: a structure
    that held it would keep a user's data alive in JAX's caches. Here they live as long as the operator.
    """

    consts: tuple[jax.Array, ...]
    batch: tuple[jax.Array, ...]
    args: tuple[jax.Array, ...]
    program: Program
    codomain: Space
    origin: Origin
    arguments: Arguments
    source: Source | None
    is_frugal: bool = False  # of loops only what steps hand to one another is kept on the way to derivatives

    held_source = None  # of an instance: no field, and not in what is made of its fields

    has_forward_rules = property(lambda self: not self.program.reverse_only)

    def __call__(self, x):
        arguments = *jax.tree.leaves(x), *self.batch, *self.args
        apply = apply_frugally if self.is_frugal else None
        return self.codomain.treedef.unflatten(self.program(self.consts, *arguments, apply=apply))

    @property
    def has_loops(self):
        """Whether it would keep less if it were frugal."""
        return any(map(is_loop_of_steps, self.program.graph.equations))

    @property
    def values(self):
        """The types of its values, a tree of structs, with their shardings."""
        return self.codomain.treedef.unflatten(struct(atom.aval) for atom in self.program.graph.outputs)

    def with_args(self, args, *, but_last=False):
        """The same function with other args, of the same shapes and dtypes; nothing is traced."""
        arguments = self.arguments.parted()[0] if but_last else self.arguments
        data = self._data_like(arguments, as_tuple(args), self.args[: arguments.count], "args")
        return self.replaced(args=(*data, *self.args[arguments.count :]))

    def with_last(self, value):
        """The same function with another last argument, what is held fixed of a point."""
        data = self._data_like(self.arguments.parted()[1], value, self.last, "x")
        return self.with_last_arrays(place_like(data, self.last, value))

    def with_last_arrays(self, arrays):
        """The same function with other arrays in its last argument."""
        return self.replaced(args=(*self.args[: len(self.args) - len(arrays)], *arrays))

    @property
    def last(self):
        """The arrays of the last argument."""
        return self.args[len(self.args) - self.arguments.parted()[1].count :]

    def _data_like(self, arguments, args, before, what):
        with jax_settings.entered(self.origin.settings):
            data, changed = arguments.data_like(args, before, what)
        if changed:
            words = "args like those that" if what == "args" else "what is held fixed of x like what"
            raise ValueError(
                f"at got {changed}, expected {words} {self.origin.what} was traced with: arrays of the "
                "same shapes and dtypes, in the same structure, and all else the same; build the operator anew"
            )
        return data

    def of_batch(self, arrays):
        """The function over one batch of the types that it was traced for."""
        return self.replaced(batch=tuple(arrays))

    def replaced(self, **fields):
        """The same function with other fields."""
        function = dataclasses.replace(self, **fields)
        vars(function).update(held_source=self.held_source)
        return function

    def __deepcopy__(self, memo):
        return self.replaced(consts=copy.deepcopy(self.consts, memo), args=copy.deepcopy(self.args, memo))

    def __reduce__(self):
        source = self.source or self.held_source
        if source is None or not (source.is_static or is_called_by_cloudpickle()):
            raise TypeError(
                f"an operator was pickled whose {self.origin.what} cannot be imported by its name; expected a function "
                f"that its module has under its own name, and hashable args: write {self.origin.what} with def at "
                "module level, not as a lambda or inside of a function, and pass data through args=; or pickle the "
                "operator as it was made with cloudpickle"
            )
        plain = self if self._is_unlaid else source.trace([jax.device_put(np.asarray(array)) for array in self.args])
        return _unpickle_function, (source, self.consts, self.args, self.codomain, plain.program.fingerprint())

    @property
    def _is_unlaid(self):
        """Whether it was traced of arrays that do not say where they lie, as they do not where it is loaded."""
        return all(var.aval.sharding.mesh.empty for var in self.program.graph.inputs)

    @classmethod
    def trace(cls, f, domain, args=(), what="f", through=None, like=None, batch=None):
        """Trace `f(x, *args)` for x in the Space `domain`. Arrays and floats in `args` are data, all else is code.

        With a `batch`, a tree of types, it is `f(x, batch, *args)`, of args on one device where x is.
        `through(f)` is traced instead of f where it is given, a picklable function of functions. `like` is an element
        of the domain, of arrays that may lie on several devices.
        """
        if not callable(f):
            raise TypeError(f"{what} is {f!r}, expected a callable")
        function = through(f) if through else f
        with _TRACING, domain.scope():
            settings, scope = jax_settings.current(), jax_settings.Scope.current()
            arguments, code, data = Arguments.split(args)

            def flat(x, batch, data):
                data = merge(arguments.treedef, code, data)
                value = function(x, *data) if batch is None else function(x, batch, *data)
                _check_value(value, what)
                return value

            with jax_settings.entered(settings):
                x = domain.struct if like is None else jax.tree.map(lambda leaf: struct(jax.typeof(leaf)), like)
                given = data if batch is None or like is not None else [*map(unlaid, map(jax.typeof, data))]
                closed, value = _make_jaxpr(flat, what, args)(x, batch, given)
                program, consts = program_of(closed, keep_rules=True, points=len(jax.tree.leaves(x)), settle=True)
            for const in consts:
                _require_value(const, what)
            if error := program.failing_rule(len(jax.tree.leaves(x))):
                raise MissingRule(f"a custom derivative rule in {what} could not be traced, which raised {error}")
            consts = tuple(to_device(const, f"an array that {what} closes over") for const in consts)
        codomain = space_of(value, f"the value of {what}")
        types = None if batch is None else (jax.tree.structure(batch), tuple(map(unlaid, jax.tree.leaves(batch))))
        source = Source(f, through, domain, what, arguments.treedef, tuple(code), settings, types)
        kept = source if source.is_static else None
        made = cls(consts, (), tuple(data), program, codomain, Origin(what, settings, scope), arguments, kept)
        vars(made).update(held_source=source)
        return made


def function_of_array(f, shape, dtype):
    """A user's function of one array: what it reads now, as code and as the arrays that it closes over."""
    with jax_settings.full_precision():
        return Function.trace(f, Space(jax.tree.structure(0), (shape,), (np.dtype(dtype),)))


def unlaid(aval):
    """The type of an array that does not say where it lies."""
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _require_value(const, what):
    if is_reference(jax.typeof(const)):
        raise TypeError(
            f"{what} reads a mutable reference (jax.new_ref) from outside, {jax.typeof(const)}, whose value may change "
            "between products; expected arrays: pass ref[...] through args=, or make the reference inside"
        )


def _is_value(f):
    """Whether f is an object of linops that is made of other code."""
    return dataclasses.is_dataclass(f) and type(f).__module__.startswith("linops.")


def _is_importable(f):
    """Whether f is what its module has under its name, or made of such."""
    if _is_value(f):
        values = [getattr(f, field.name) for field in dataclasses.fields(f)]
        return all(_is_importable(value) if callable(value) else True for value in values)
    try:
        return operator.attrgetter(f.__qualname__)(sys.modules[f.__module__]) is f
    except (AttributeError, KeyError):
        return False


def _unpickle_source(name, through, domain, what, args, settings, batch=None):
    f = name if callable(name) else operator.attrgetter(name[1])(import_module(name[0]))
    code, treedef = jax.tree.flatten(args)
    types = None if batch is None else (jax.tree.structure(batch), tuple(jax.tree.leaves(batch)))
    return Source(f, through, domain, what, treedef, tuple(code), settings, types)


def _unpickle_function(source, consts, args, codomain, fingerprint):
    function = source.trace(args)
    arrays = [[jax.typeof(const) for const in values] for values in (function.consts, consts)]
    (version, digest), (version_then, digest_then) = function.program.fingerprint(), fingerprint
    same_program = digest == digest_then or version != version_then  # another JAX traces other programs
    if not (same_program and function.codomain.layout == codomain.layout and arrays[0] == arrays[1]):
        raise ValueError(
            f"{getattr(source.f, '__qualname__', source.what)} is not the function that it was when its operator was "
            "pickled: it computes something else, or its value, or an array that it uses, has another shape or dtype; "
            "expected the same code and version: build the operator anew"
        )
    return function.replaced(consts=consts, codomain=codomain)


def _make_jaxpr(f, what, args):
    """`jax.make_jaxpr` for a user's function; what JAX says of a function that cannot be traced, said with a remedy."""

    def make(x, *others):
        try:
            return jax.make_jaxpr(f, return_shape=True)(x, *others)
        except UNTRACEABLE as error:
            raise TypeError(
                f"{what} could not be traced: it turned a traced array into a NumPy array or a Python value; expected "
                "a function of jax.numpy operations: use jax.numpy for numpy, and jax.lax.cond, jnp.where or "
                "jax.lax.while_loop for branches on values; a number that tells f what to do is not for args= but for "
                f"functools.partial. {''.join(_hints(x, args))}JAX said: {str(error).splitlines()[0]}"
            ) from error
        except Exception as error:
            for hint in _hints(x, args):
                error.add_note(hint)
            raise

    return make


def _hints(x, args):
    """What is no array of all that f was given, where one may be meant."""
    for what, tree in ("x", x), ("args", as_tuple(args)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_list_of_numbers)[0]:
            name = f"{what}{jax.tree_util.keystr(path)}"
            if is_list_of_numbers(leaf):
                count = len(jax.tree.leaves(leaf))
                yield f"{name} is a list, a tree of {count} numbers: for a vector pass np.array({name}). "
            elif hasattr(type(leaf), "__array__") and not is_data(leaf):
                yield f"{name} is of type {type(leaf).__name__}, which is code: for an array pass np.asarray({name}). "


PART = "for a function that gives (value, aux), pass lambda x: f(x)[0]"


def _check_value(value, what):
    for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
        if not isinstance(leaf, jax.Array):
            raise TypeError(
                f"{what} returned {type(leaf).__name__}{' at ' * bool(path)}{jax.tree_util.keystr(path)}, expected "
                f"jax.Array: compute it with jax.numpy from the argument, or leave it out of the value: {PART}"
            )
        if not is_inexact(jax.typeof(leaf)):
            raise TypeError(
                f"the value of {what}{jax.tree_util.keystr(path)} has dtype {leaf.dtype}, expected floating point, "
                f"since a derivative is taken of it; convert it with .astype(float), or leave it out: {PART}"
            )
