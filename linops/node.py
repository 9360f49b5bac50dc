"""What every operator is made of: a frozen dataclass that is a JAX pytree, with its copies and pickles."""

import copy
import dataclasses
import functools
import inspect

import jax
import numpy as np

from linops.arrays import require_threads, to_device

_WIDE = {np.dtype(name) for name in ("int64", "uint64", "float64", "complex128")}  # not complex64, of 8 bytes as well


def static(**options):
    """A field of an operator that is code and no data: `size: int = linops.static()`; options as `dataclasses.field`.

    Its value is hashable, and another one is another program.
    """
    return dataclasses.field(metadata={"static": True}, **options)


class Node:
    """A frozen dataclass and a pytree: a subclass annotates its fields, arrays, pytrees and nodes, or `static` ones."""

    def __init_subclass__(cls):
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, eq=False, repr=False, init=not _is_constructed_as_its_base(cls))(cls)
        is_static = {field.name: "static" in field.metadata for field in dataclasses.fields(cls)}
        data = tuple(name for name, no in is_static.items() if not no)
        code = tuple(name for name, yes in is_static.items() if yes)

        def flatten_with_keys(self):
            leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in data]
            return leaves, tuple(getattr(self, name) for name in code)

        def flatten(self):
            return tuple(getattr(self, name) for name in data), tuple(getattr(self, name) for name in code)

        def unflatten(aux, leaves):
            return cls._make(**dict(zip(data, leaves, strict=True)), **dict(zip(code, aux, strict=True)))

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

    def __post_init__(self):
        """For subclasses that leave their constructor to dataclasses: NumPy leaves go to the device."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "static" not in field.metadata and not isinstance(value, Node):
                on_device = functools.partial(_on_device, what=field.name)
                object.__setattr__(self, field.name, jax.tree.map(on_device, value, is_leaf=_is_node))

    @classmethod
    def _make(cls, **fields):
        """An instance with these fields, whatever the constructor of the class takes."""
        self = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        return self

    def _replace(self, **changes):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self._make(**{**fields, **changes})

    # Copies are of the fields only: doors and residuals are found again when they are needed.

    def __copy__(self):
        return self._replace()

    def __deepcopy__(self, memo):
        require_threads()
        copied = functools.partial(copy.deepcopy, memo=memo)
        tree = functools.partial(jax.tree.map, copied, is_leaf=lambda value: hasattr(value, "__deepcopy__"))
        fields = {field: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self._make(**{f.name: v if "static" in f.metadata else tree(v) for f, v in fields.items()})

    def __reduce__(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        wide = any(getattr(leaf, "dtype", None) in _WIDE for leaf in jax.tree.leaves(self))
        return _unpickle, (type(self), fields, repr(self), wide)


def _unpickle(cls, fields, name, wide):
    if wide and not jax.config.jax_enable_x64:
        raise TypeError(
            f"{name} was pickled with arrays of 64 bits, which JAX would narrow here; expected float64 to be enabled: "
            'call jax.config.update("jax_enable_x64", True) before loading it'
        )
    return cls._make(**fields)


def _is_constructed_as_its_base(cls):
    """Whether a class adds no field to the base whose constructor it has, as a Hessian with a claim more."""
    own = [name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)]
    fields = set().union(*(getattr(base, "__dataclass_fields__", ()) for base in cls.__bases__))
    base = next(base for base in cls.__mro__[1:] if "__init__" in vars(base))
    return not own and bool(fields) and fields == set(getattr(base, "__dataclass_fields__", ()))


def _is_node(value):
    return isinstance(value, Node)


def _on_device(leaf, what):
    return to_device(leaf, what) if isinstance(leaf, np.ndarray | np.generic) else leaf
