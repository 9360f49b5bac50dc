"""Derivative rules that a function does not have: said in our own words, with a remedy."""

import contextlib

from linops.program import settings
from linops.program.program import ManyOperatorsError


class MissingRule(TypeError):  # noqa: N818 - users see a TypeError
    """A product needs a derivative rule that the function does not have."""


class OtherBatchError(TypeError):
    """A function that was traced for the first batch of data fails for one of other shapes."""


@contextlib.contextmanager
def differentiating(mode, origin):
    """Take a derivative of a Function, under the settings of its origin; say which rule is missing.

    The function is traced, and so are its own rules: what JAX raises here, of whatever kind, is that an operation has
    none.
    """
    try:
        with settings.entered(origin.settings):
            yield
    except (MissingRule, ManyOperatorsError, OtherBatchError):
        raise
    except (TypeError, ValueError, NotImplementedError, AssertionError, AttributeError) as error:
        said = str(error).strip()
        if any(name in type(error).__name__ for name in ("Sharding", "Tracer")) or "jax.set_mesh" in said:
            raise
        if isinstance(error, NotImplementedError) and any(word in said for word in ("atching rule", "vmap")):
            raise  # of vmap a rule is missing, for which JAX has no error of its own: a block is then made by columns
        raise MissingRule(
            f"a product with a derivative needs {mode}-mode differentiation, and {origin.what} has an operation "
            f"without a {mode} rule; {_expected(mode, said)}. JAX said: {said.splitlines()[0] if said else repr(error)}"
        ) from error


def _expected(mode, said):
    if mode == "forward" and "Linearization failed" in said:  # there is a rule, of jax.jvp alone
        return "expected one that can be linearized, as jax.custom_batching.custom_vmap cannot; pass linearize=False"
    return _EXPECTED[mode]


_EXPECTED = {
    "forward": "expected jax.custom_jvp rules rather than custom_vjp, and no callbacks (with diffrax: "
    "adjoint=diffrax.DirectAdjoint()); J.T @ w may work where J @ v does not",
    "reverse": "expected lax.scan or fori_loop with fixed bounds rather than while_loop, and no callbacks (with "
    "diffrax: adjoint=diffrax.RecursiveCheckpointAdjoint() or DirectAdjoint() with max_steps); J @ v may work where "
    "J.T @ w does not",
}
