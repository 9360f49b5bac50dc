"""The settings of JAX that change what is traced: read when a function is traced, entered whenever it is again."""

import contextlib

import jax

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
    """The settings in force, a tuple; matrix products of float32 are in float32 unless a user set it otherwise."""
    values = {name: getattr(jax.config, name) for name in _CONTEXTS}
    values["jax_default_matmul_precision"] = values["jax_default_matmul_precision"] or _FULL_PRECISION
    return tuple(values.values())


@contextlib.contextmanager
def entered(settings):
    """A context with these settings."""
    with contextlib.ExitStack() as stack:
        for (name, context), value in zip(_CONTEXTS.items(), settings, strict=True):
            if getattr(jax.config, name) != value:
                stack.enter_context(context(value))
        yield


def is_wide(settings):
    """Whether float64 is enabled."""
    return settings[0]
