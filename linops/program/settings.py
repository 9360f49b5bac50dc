"""The settings of JAX that change what is traced: read when a function is traced, entered whenever it is again."""

import contextlib
import dataclasses

import jax

from linops.arrays import float64_if

_CONTEXTS = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_threefry_partitionable": jax.threefry_partitionable,
    "jax_legacy_prng_key": jax.legacy_prng_key,
}

# What JAX's own default is where it is None: on GPUs TF32, with three decimal digits of a float32 product.
_FULL_PRECISION = "float32"


def current():
    """The settings in force, and the mesh, as a tuple; products of float32 are in float32 unless a user set another."""
    values = {name: getattr(jax.config, name) for name in _CONTEXTS}
    values["jax_default_matmul_precision"] = values["jax_default_matmul_precision"] or _FULL_PRECISION
    return *values.values(), jax.sharding.get_abstract_mesh()


@contextlib.contextmanager
def full_precision():
    """What a user's jit or grad traces: products of float32 in float32, unless a user set another. A decorator, too."""
    with jax.default_matmul_precision(jax.config.jax_default_matmul_precision or _FULL_PRECISION):
        yield


@contextlib.contextmanager
def entered(settings):
    """A context to trace in, with these settings."""
    *values, mesh = settings
    with contextlib.ExitStack() as stack:
        for (name, context), value in zip(_CONTEXTS.items(), values, strict=True):
            if getattr(jax.config, name) != value:
                stack.enter_context(context(value))
        now = jax.sharding.get_abstract_mesh()
        if now != mesh and not now.manual_axes:  # what each device does by itself is of the mesh that it is on
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        yield


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a compiled program is called in: whether with float64 enabled, and the mesh that it was traced for."""

    wide: bool
    mesh: jax.sharding.Mesh | None = None

    @classmethod
    def current(cls):
        """That of what is traced now."""
        return cls(jax.config.jax_enable_x64, None if jax.sharding.get_abstract_mesh().empty else _mesh())

    @classmethod
    def around(cls, scopes):
        """The one for a program that is made of several."""
        meshes = [scope.mesh for scope in scopes if scope.mesh is not None]
        return cls(any(scope.wide for scope in scopes), meshes[0] if meshes else None)

    @property
    def is_entered(self):
        """Whether nothing is to be entered."""
        return (not self.wide or jax.config.jax_enable_x64) and not self._needs_mesh

    @property
    def _needs_mesh(self):
        return self.mesh is not None and _mesh() not in (self.mesh, None)

    @contextlib.contextmanager
    def entered(self):
        """The context to stage and call in."""
        with float64_if(self.wide), jax.set_mesh(self.mesh) if self._needs_mesh else contextlib.nullcontext():
            yield


def _mesh():
    """The mesh that is set, of devices; None inside of a jit, where it cannot be set, nor be asked for."""
    try:
        return jax.sharding.get_mesh()
    except ValueError:
        return None
