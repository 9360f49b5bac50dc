"""Count XLA compilations, as JAX itself reports them."""

import contextlib

import jax.monitoring

_events = []


def _listen(name, seconds, **_):
    if name == "/jax/core/compile/backend_compile_duration":
        _events.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compilations():
    """A context whose value counts the compilations since its start; with `seconds=True`, the time they took."""
    start = len(_events)
    yield lambda seconds=False: sum(_events[start:]) if seconds else len(_events) - start
