"""Count XLA compilations, as JAX itself reports them, and look into what is kept of them."""

import contextlib
import gc

import jax.monitoring
import jax.numpy as jnp

from linops.program.staged import clear_caches

_events = []


def _listen(name, *_, **__):
    if name == "/jax/core/compile/backend_compile_duration":
        _events.append(name)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compilations():
    """A context whose value counts the compilations since its start."""
    start = len(_events)
    yield lambda: len(_events) - start


def collect():
    """Free what has died since the last time; what is left, most of it JAX's, is not gone through again."""
    gc.collect()
    gc.freeze()


def forget():
    """Empty all caches, JAX's own too."""
    jax.clear_caches()
    clear_caches()
    collect()


def text(A):
    """The program of a product, as it is handed to XLA."""
    with A._scope.entered():
        return jax.jit(lambda A, v: A @ v).lower(A, jnp.ones(A.shape[1], A.dtype)).as_text()
