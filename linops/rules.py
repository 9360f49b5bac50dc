"""Derivative rules: saying which one a function does not have."""

import contextlib
import re


class MissingRule(TypeError):  # noqa: N818 - users see a TypeError
    """A product needs a derivative rule that the function does not have."""


@contextlib.contextmanager
def differentiating(mode):
    """Say which derivative rule is missing. The function is traced before, so that errors here are those of rules."""
    try:
        yield
    except MissingRule:
        raise
    except (TypeError, ValueError, NotImplementedError, AssertionError) as error:
        said = str(error)
        if said and not re.search("differentiation|autodiff|callback|transpose|UndefinedPrimal", said, re.IGNORECASE):
            raise  # the error of a custom rule
        raise MissingRule(
            f"a product with a derivative needs {mode}-mode differentiation, and the function has an operation without "
            f"a {mode} rule; {_expected(mode, said)}. JAX said: {said.splitlines()[0] if said else repr(error)}"
        ) from error


def _expected(mode, said):
    if mode == "forward" and "Linearization failed" in said:  # there is a rule, of jax.jvp alone
        return "expected one that can be linearized, as jax.custom_batching.custom_vmap cannot; pass linearize=False"
    return _EXPECTED[mode]


_EXPECTED = {
    "forward": "expected jax.custom_jvp rules rather than custom_vjp, and no callbacks; J.T @ w may work where J @ v "
    "does not",
    "reverse": "expected lax.scan or fori_loop with fixed bounds rather than while_loop, and no callbacks; J @ v may "
    "work where J.T @ w does not",
}
