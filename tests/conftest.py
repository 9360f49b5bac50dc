"""Settings for all tests: float64 is off, as JAX has it by default; a test that wants it asks for the fixture `x64`."""

import jax
import pytest


@pytest.fixture
def x64():
    """JAX with float64, for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def quick_compilations():
    """For a module of hundreds of small programs: what XLA saves in a run is not worth its time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
