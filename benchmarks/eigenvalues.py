"""Eigenvalues of the Hessian of a network on digits: products and seconds of `linops.linalg.eigsh` and of its peers.

    python benchmarks/eigenvalues.py             seconds, in turn, at equal recomputed residuals, and products
    python benchmarks/eigenvalues.py --products  products against ncv, tol and k
    python benchmarks/eigenvalues.py --without curvlinops   without rivals of which the names contain a word

Peers that are not installed are left out.
"""

import argparse
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import problems
from measure import interleaved
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from threadpoolctl import threadpool_limits

import linops

STEPS, RATE = 200, 1e-3  # of Adam, for trained weights


def trained(loss_of, weights):
    """The weights after some steps of Adam (Kingma and Ba, 2015)."""

    @jax.jit
    def step(t, state):
        x, mean, square = state
        g = jax.grad(loss_of)(x)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, g)
        square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, square, g)

        def move(x, m, s):
            return x - RATE * (m / (1 - 0.9**t)) / (jnp.sqrt(s / (1 - 0.999**t)) + 1e-8)

        return jax.tree.map(move, x, mean, square), mean, square

    nothing = jax.tree.map(jnp.zeros_like, weights)
    state = weights, nothing, nothing
    for t in range(1, STEPS + 1):
        state = step(float(t), state)
    return state[0]


def problem(n, is_trained):
    """The operator, and the loss as a function of one vector with that vector, for what is written by hand."""
    model, loss, weights = problems.digits(problems.LAYERS[n])
    if is_trained:
        weights = trained(lambda weights: loss(model(weights)), weights)
    scalar, _, point = problems.flat(model, loss, weights)
    return linops.Hessian(lambda weights: loss(model(weights)), weights), scalar, point, weights


class Counted(LinearOperator):
    """An operator whose products are counted."""

    def __init__(self, A):
        super().__init__(np.float32, A.shape)
        self.A, self.count = A, 0

    def _matvec(self, v):
        self.count += 1
        return self.A.matvec(v.reshape(-1))


def residual(H, w, v):
    """The largest residual norm, computed in double precision of float32 products, relative to the largest value."""
    w, v = np.asarray(w, np.float64), np.asarray(v)
    return max(np.linalg.norm(np.asarray(H @ v[:, i], np.float64) - w[i] * v[:, i]) for i in range(len(w))) / max(
        abs(w)
    )


def both_ends(solve, A, k, **options):
    """SciPy's eigenpairs at both ends, for which ARPACK needs two runs."""
    (w1, v1), (w2, v2) = (solve(A, k=k, which=which, **options) for which in ("LA", "SA"))
    return np.r_[w2, w1], np.hstack([v2, v1])


def seconds(n, is_trained, ends, k, tols, without=None):
    """Rivals in turn, each with the tolerance that gives it residuals like the others'; their products, residuals."""
    H, scalar, point, weights = problem(n, is_trained)
    bare = jax.jit(problems.hessian_vector(scalar))
    by_hand = problems.handwritten(n, lambda v: bare(point, v))
    pushed = jax.jit(lambda x: jax.linearize(jax.grad(scalar), x)[1])(point)
    apply = jax.jit(lambda pushed, v: pushed(v))
    prelinearized = problems.handwritten(n, lambda v: apply(pushed, v))
    v0 = problems.normal(n)
    scipy_tol, ours_tol = tols
    count = 2 * k if ends else k

    def by_scipy(A, threads=None):
        with threadpool_limits(threads, "blas"):
            try:
                if ends:
                    return both_ends(eigsh, A, k, v0=v0, tol=scipy_tol, maxiter=n if n < 10_000 else 60)
                return eigsh(A, k=k, which="LA", v0=v0, tol=scipy_tol)
            except ArpackNoConvergence:
                return None

    def by_linops():
        w, v, record = linops.linalg.eigsh(
            H, k=count, which="BE" if ends else "LA", v0=v0, tol=ours_tol, full_output=True
        )
        return np.asarray(w), np.asarray(v), record

    calls = {
        "linops": by_linops,
        "SciPy, by hand": lambda: by_scipy(by_hand),
        "SciPy, prelinearized by hand, BLAS on one thread": lambda: by_scipy(prelinearized, 1),
        "SciPy over linops, BLAS on one thread": lambda: by_scipy(H, 1),
    }
    if importlib.util.find_spec("curvlinops"):
        D = problems.curvlinops("Hessian", problems.LAYERS[n], weights).to_scipy(dtype=np.dtype(np.float32))
        calls["SciPy over curvlinops"] = lambda: by_scipy(D)
        from_torch = problems.orders(weights)[1]
    if importlib.util.find_spec("matfree") and not ends:
        from matfree import decomp, eig

        steps = 60
        partial = eig.eigh_partial(decomp.tridiag_sym(steps))
        solve = jax.jit(lambda v, point: partial(lambda u: problems.hessian_vector(scalar)(point, u), v))
        calls[f"matfree, {steps} steps"] = lambda: _last(solve(jnp.asarray(v0), point), k)
    calls = {name: call for name, call in calls.items() if not without or without not in name}
    print(f"n = {n:,}, {'trained' if is_trained else 'random'} weights, {count} pairs {'of both ends' if ends else ''}")
    for name, call in calls.items():
        found = call()
        if found is None:
            print(f"  {name:50s} not converged")
            continue
        if name.endswith("curvlinops"):
            found = found[0], np.stack([from_torch(v) for v in found[1].T], axis=1)
        counted = Counted(H)
        products = int(found[2].matvecs) if len(found) == 3 else _products(name, by_scipy, counted)
        print(f"  {name:50s} products {products:>6}  largest residual {residual(H, *found[:2]):.1e} of the norm")
    times = interleaved(calls, seconds=2.0, least=3, most=15)
    for name, (low, median, high) in times.items():
        ratio = median / times["linops"][1]
        print(f"  {name:50s} {1e3 * median:9.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f}), {ratio:.2f}")


def _products(name, by_scipy, counted):
    if not name.startswith("SciPy"):
        return "-"
    by_scipy(counted, 1)
    return counted.count


def _last(found, k):
    values, vectors = found
    order = np.argsort(values)[-k:]
    return np.asarray(values)[order], np.asarray(vectors)[order].T


def products(n):
    """Products against ncv, tol and k, trained weights; ARPACK's beside them."""
    H, scalar, point, _ = problem(n, True)
    print(f"n = {n:,}, trained weights: products with those of final residuals, and the largest residual")
    restarts = n if n < 10_000 else 60
    for which, k in (("LA", 1), ("LA", 10), ("LA", 50), ("SA", 10), ("BE", 20)):
        for tol in (1e-3, 1e-5):
            row = []
            for ncv in (max(2 * k, 20) + 1, 64, 96, None, 160):
                if ncv is not None and ncv <= k + 1:
                    continue
                w, v, record = linops.linalg.eigsh(H, k=k, which=which, tol=tol, ncv=ncv, full_output=True)
                row.append(f"ncv {ncv or 'default'}: {int(record.matvecs)} ({residual(H, w, v):.0e})")
            counted = Counted(H)
            try:
                solve = (
                    functools.partial(both_ends, eigsh, k=k // 2)
                    if which == "BE"
                    else functools.partial(eigsh, k=k, which=which)
                )
                found = solve(counted, v0=problems.normal(n), tol=tol, maxiter=restarts)
                row.append(f"ARPACK: {counted.count} ({residual(H, *found):.0e})")
            except ArpackNoConvergence:
                row.append(f"ARPACK: not after {counted.count}")
            if importlib.util.find_spec("furax"):
                for ncv in (2 * k, k + 80):  # its default, and what linops takes
                    count, found = _by_furax(scalar, point, k=k, m=ncv, which=which, tol=tol, max_restarts=60)
                    row.append(f"furax, ncv {ncv}: {count} ({residual(H, *found):.0e})")
            print(f"  {which} k = {k:2d} tol = {tol:.0e}   " + "   ".join(row), flush=True)


def _by_furax(scalar, point, **options):
    """How many products furax's thick-restart Lanczos takes, and its eigenpairs."""
    import furax
    from furax.linalg import lanczos_tr

    count = 0

    def one_more():
        nonlocal count
        count += 1

    @furax.symmetric
    class HessianByHand(furax.AbstractLinearOperator):
        def mv(self, v):
            jax.debug.callback(one_more)
            return problems.hessian_vector(scalar)(point, v)

    v0 = jnp.asarray(problems.normal(len(point)))
    A = HessianByHand(in_structure=jax.ShapeDtypeStruct(v0.shape, v0.dtype))
    found = jax.jit(lambda v0: lanczos_tr(A, v0, **options))(v0)
    jax.block_until_ready(found)
    jax.effects_barrier()
    return count, (found.eigenvalues, np.asarray(found.eigenvectors).T)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", action="store_true", help="products against ncv, tol and k")
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_410, 85_002])
    parser.add_argument("--without", metavar="WORD", help="rivals to leave out")
    options = parser.parse_args()
    for n in options.sizes:
        if options.products:
            products(n)
            continue
        seconds(n, False, False, 10, (0, 3e-5), options.without)
        seconds(n, True, True, 10, (1e-3, 1e-2), options.without)


if __name__ == "__main__":
    main()
