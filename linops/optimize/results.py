"""What the optimizers on the device hand back: SciPy's OptimizeResult, which is a pytree within jit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from scipy.optimize import OptimizeResult

from linops.iterate import compute, finished
from linops.monitoring import Tally
from linops.products import is_traced
from linops.watching import refuse_in_jit, watched

RUNNING = -1
MESSAGES = (
    "The gradient is as small as gtol asks for.",
    "The limit of iterations, maxiter, was reached.",
    "Limited by precision: no step makes the gradient smaller, or f by more than rounding.",
    "The function, its gradient or a product with its Hessian is not finite.",
    "The limit of products, max_matvecs, was reached.",
    "The callback stopped it.",
    "The step is as small as xtol asks for.",
)
CONVERGED, LIMIT, PRECISION, NOT_FINITE, PRODUCTS, STOPPED, STEP = range(len(MESSAGES))


class Result(OptimizeResult):
    """SciPy's, and a pytree."""

    def __getattr__(self, name):
        if name in ("standard_errors", "covariance"):
            raise AttributeError(
                f"a result that was made in jit or vmap has no {name}; outside of it, at each x, there is "
                "linops.inverse(linops.Hessian(fun, x, args=args)), or of residuals linops.inverse(J.T @ J)"
            )
        return super().__getattr__(name)

    # What a watch reads.
    matvecs = property(lambda self: self["nhev"] if "nhev" in self else self["njev"])
    text = property(lambda self: f"f = {float(self['cost'] if 'cost' in self else self['fun']):.6g}")


def _flatten(result):
    keys = tuple(sorted(result))
    return [(jax.tree_util.DictKey(key), result[key]) for key in keys], keys


jax.tree_util.register_pytree_with_keys(Result, _flatten, lambda keys, values: Result(zip(keys, values, strict=True)))


def optimized(name, algorithm, operators, operands, to_user, callback=None, save=None, progress=False):
    """The result of an algorithm, whose `result(operators, state)` is one; in jit a pytree of arrays.

    `to_user(result)` makes its trees those of the user.
    """
    finish = _Finish(algorithm)
    if is_traced((operators, operands)):
        refuse_in_jit(name, callback=callback, save=save, progress=progress)
        return to_user(finished(algorithm, finish, operators, *operands))
    if callback is None and save is None and not progress:
        result = finished(algorithm, finish, operators, *operands)
    else:
        told = None if callback is None else lambda result: _stops(callback, said(to_user(result), ended=False))
        monitor = Tally(progress=progress)
        state, watch = watched(
            algorithm, operators, operands, finish, [(monitor, False)], told, save, every=None if told is None else 1
        )
        result = compute(finish, operators, state)
        watch.report(result)
        monitor.close()
    result = said(to_user(result))
    if result.status == NOT_FINITE and result.nit == 0:
        raise ValueError(
            f"{name} got a function that is not finite at x0, or whose derivative is not, expected finite numbers: "
            "begin at another point, or look at args and data, of which labels out of range, say, make NaN"
        )
    return result


def _stops(callback, result):
    """Whether a callback wants it to stop: it says True, or raises StopIteration, as in SciPy."""
    try:
        return callback(result)
    except StopIteration:
        return True


def said(result, ended=True):
    """A result of arrays as SciPy has it: numbers, and a message where it ended."""
    numbers = {key: result[key].item() for key in NUMBERS & result.keys()}
    if "cost" not in result:
        numbers["fun"] = result["fun"].item()
    if not ended:
        return Result({key: value for key, value in (result | numbers).items() if key not in ("status", "success")})
    return Result(result | numbers | {"message": MESSAGES[numbers["status"]]})


NUMBERS = {"cost", "nfev", "nhev", "nit", "njev", "optimality", "status", "success"}


@dataclasses.dataclass(frozen=True)
class _Finish:
    """The result of a state; one of a run that goes on was stopped there."""

    algorithm: Any

    def __call__(self, operators, state):
        return self.algorithm.result(operators, state._replace(code=ended(state.code)))


def ended(code):
    """Why it ended, if it did by itself."""
    return jnp.where(code == RUNNING, STOPPED, code)
