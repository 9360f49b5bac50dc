"""The bridge to scipy.optimize beside an adapter by hand: jitted value with gradient, and Hessian product.

    python benchmarks/bridge.py

Both make the same number of steps of the same solver, in turn in one process; what is compared is the whole run.
"""

import warnings

import jax
import jax.numpy as jnp
import measure
import numpy as np
import problems
import scipy.optimize

from linops.optimize import Objective

STEPS = 150
METHODS = ("Newton-CG", "trust-ncg", "trust-krylov", "L-BFGS-B")


def report():
    """By problem and method: seconds of a run by hand and through an Objective, and their ratio."""
    found = {}
    for name, (f, x0, steps) in _problems().items():
        for method in METHODS:
            times = measure.interleaved(_rivals(f, x0, method, steps), seconds=6, least=15)
            hand, ours = times["by hand"], times["linops"]
            found[f"{name}, {method}"] = {"times": times, "ratio": ours[1] / hand[1]}
            print(f"{name}, {method}")
            for rival, (low, median, high) in times.items():
                print(f"    {rival:10} {1e3 * median:9.4g} ms  ({1e3 * low:.4g} to {1e3 * high:.4g})")
            print(f"    ratio      {ours[1] / hand[1]:9.2f}", flush=True)
    return found


def _problems():
    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    network, _, start = problems.flat(*problems.digits(problems.LAYERS[2_410]))
    return {
        "chained Rosenbrock, n = 1,000": (rosenbrock, np.tile([-1.2, 1.0], 500).astype(np.float32), STEPS),
        "digits network, n = 2,410": (network, np.asarray(start), 3),
    }


def _rivals(f, x0, method, steps):
    value_and_gradient = jax.jit(jax.value_and_grad(f))
    product = jax.jit(lambda x, v: jax.jvp(jax.grad(f), (x,), (v,))[1])
    needs_products = method != "L-BFGS-B"

    def run(fun, jac, hessp):
        return scipy.optimize.minimize(
            fun, x0, jac=jac, method=method, options={"maxiter": steps}, **({"hessp": hessp} if needs_products else {})
        )

    def by_hand():
        def fun(x):
            value, gradient = value_and_gradient(x)
            return float(value), np.array(gradient)

        return run(fun, True, lambda x, v: np.array(product(x, v)))

    objective = Objective(f, x0)

    def ours():
        objective._points.clear()  # a new run: x0 is computed
        return run(objective.fun, objective.jac, objective.hessp)

    return {"by hand": by_hand, "linops": ours}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    report()
