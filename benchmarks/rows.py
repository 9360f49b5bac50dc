"""The rows: each returns, by rival, calls to be measured in turn or times that it measured, and the cost by XLA."""

import contextlib
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import problems
from bars import WAYS
from measure import cost, fresh
from problems import normal
from scipy.sparse.linalg import LinearOperator, cg, eigsh
from threadpoolctl import threadpool_limits

import linops
from linops.program.jaxpr.primitives import CHEAP

ROWS = {}


def row(function):
    """Register a row under its function's name."""
    ROWS[function.__name__] = function
    return function


def has(package):
    return importlib.util.find_spec(package) is not None


def device(call):
    """Until the numbers are there."""
    return lambda: jax.block_until_ready(call())


def _products(n, kind):
    model, loss, weights = problems.digits(problems.LAYERS[n])
    scalar, vector_valued, point = problems.flat(model, loss, weights)
    if kind == "Hessian":
        A = linops.Hessian(lambda weights: loss(model(weights)), weights)
        product = problems.hessian_vector(scalar)
        linear = jax.linearize(jax.grad(scalar), point)[1]
    else:
        A = linops.GaussNewton(model, weights, loss)
        product = problems.gauss_newton_vector(vector_valued, loss)
        outputs, push = jax.linearize(vector_valued, point)
        pull, curve = jax.linear_transpose(push, point), jax.linearize(jax.grad(loss), outputs)[1]
        linear = jax.tree_util.Partial(lambda push, pull, curve, v: pull(curve(push(v)))[0], push, pull, curve)
    bare, prelinearized = jax.jit(product), jax.jit(lambda linear, v: linear(v))
    gradient = jax.jit(jax.grad(scalar))
    v = normal(n)
    on_device = jnp.asarray(v)
    B, C = (problems.handwritten(n, f) for f in (lambda v: bare(point, v), lambda v: prelinearized(linear, v)))
    np.testing.assert_allclose(A @ v, B @ v, rtol=1e-2, atol=1e-4)
    calls = {
        "linops": lambda: A @ v,
        "by hand": lambda: B @ v,
        "by hand, prelinearized": lambda: C @ v,
        "bare program, jvp": device(lambda: bare(point, on_device)),
        "bare program, prelinearized": device(lambda: prelinearized(linear, on_device)),
        "one gradient": device(lambda: gradient(point)),
    }
    if has("curvlinops"):
        D = problems.curvlinops("Hessian" if kind == "Hessian" else "GGN", problems.LAYERS[n], weights).to_scipy()
        to_torch, from_torch = problems.orders(weights)
        np.testing.assert_allclose(A @ v, from_torch(D @ to_torch(v)), rtol=1e-2, atol=1e-3)
        calls["curvlinops"] = lambda: D @ v
    if has("lineax") and kind == "Hessian":
        import equinox
        import lineax

        operator = lineax.JacobianLinearOperator(lambda x, _: jax.grad(scalar)(x), point, jac=None)
        multiply = equinox.filter_jit(lambda operator, v: operator.mv(v))  # a point closed over would be folded
        calls["lineax"] = lambda: np.array(multiply(operator, v))
    if n == 2_410:
        dense = A.toarray()
        calls["materialized"] = lambda: dense @ v
    return calls, limits(A)


def limits(A):
    """What XLA counts in the compiled product of an operator."""
    door = A._door
    staged = door.staged
    v = jnp.zeros(door.columns, door.dtype)
    return cost(staged.run.lower(*staged.consts, *door._flat.leaves, v).compile())


for size in problems.LAYERS:
    for kind in ("Hessian", "Gauss-Newton"):
        ROWS[f"{kind} of the digits network, product, n = {size:,}"] = functools.partial(_products, size, kind)


def _eigsh(n):
    A, scalar, point, weights = problems.hessian(n)
    bare, prelinearized = jax.jit(problems.hessian_vector(scalar)), jax.jit(lambda linear, v: linear(v))
    linear = jax.linearize(jax.grad(scalar), point)[1]
    B, C = (problems.handwritten(n, f) for f in (lambda v: bare(point, v), lambda v: prelinearized(linear, v)))
    v = normal(n)

    def held(A):
        with threadpool_limits(1, "blas"):
            return eigsh(A, k=10, v0=v)

    expected = eigsh(B, k=10, v0=v)[0]
    np.testing.assert_allclose(held(A)[0], expected, rtol=1e-3)
    calls = {
        "linops, BLAS on one thread": lambda: held(A),
        "linops": lambda: eigsh(A, k=10, v0=v),
        "by hand": lambda: eigsh(B, k=10, v0=v),
        "by hand, BLAS on one thread": lambda: held(B),
        "by hand, prelinearized, BLAS on one thread": lambda: held(C),
    }
    if has("curvlinops"):
        D = problems.curvlinops("Hessian", problems.LAYERS[n], weights).to_scipy(dtype=np.dtype(np.float32))
        calls["curvlinops"] = lambda: eigsh(D, k=10, v0=v)
    if has("matfree"):
        from matfree import decomp, eig

        partial = eig.eigh_partial(decomp.tridiag_sym(55))
        solve = jax.jit(lambda v, point: partial(lambda u: problems.hessian_vector(scalar)(point, u), v))
        start = jnp.asarray(v)
        calls["matfree, 55 steps, not converged"] = device(lambda: solve(start, point))
    return calls, {}


for size in (2_410, 85_002):
    ROWS[f"eigsh(k=10) of the Hessian, n = {size:,}"] = functools.partial(_eigsh, size)


@row
def damped_gauss_newton_step():
    """(G + lam I) x = gradient by cg to rtol = 1e-4, n = 85,002."""
    n, lam = 85_002, np.float32(0.1)
    model, loss, weights = problems.digits(problems.LAYERS[n])
    scalar, vector_valued, point = problems.flat(model, loss, weights)
    gradient = np.asarray(jax.grad(scalar)(point))
    product = problems.gauss_newton_vector(vector_valued, loss)
    A = linops.GaussNewton(model, weights, loss) + lam * linops.Identity(n)
    bare = jax.jit(product)
    B = problems.handwritten(n, lambda v: bare(point, v) + lam * v)
    on_device = jax.jit(
        lambda point, b: jax.scipy.sparse.linalg.cg(lambda v: product(point, v) + lam * v, b, tol=1e-4)[0]
    )
    b = jnp.asarray(gradient)
    expected = cg(B, gradient, rtol=1e-6)[0]
    np.testing.assert_allclose(cg(A, gradient, rtol=1e-6)[0], expected, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(on_device(point, b), expected, rtol=1e-2, atol=1e-3)
    return {  # jaxopt's solve_cg is that of jax.scipy; lineax' CG answers NaN here
        "linops": lambda: cg(A, gradient, rtol=1e-4),
        "by hand": lambda: cg(B, gradient, rtol=1e-4),
        "jax.scipy.sparse.linalg.cg, jitted": device(lambda: on_device(point, b)),
    }, {}


@row
def normal_equations():
    """(J^T J + lam I) v, n = 100,000, beside SciPy's algebra over two operators by hand."""
    n, lam = 100_000, np.float32(0.1)

    def f(x):
        return jnp.tanh(x[:-1]) * x[1:] + jnp.sin(x[:-1])

    x = normal(n, 0)
    point = jnp.asarray(x)
    push = jax.jit(lambda x, v: jax.jvp(f, (x,), (v,))[1])
    pull = jax.jit(lambda x, w: jax.vjp(f, x)[1](w)[0])
    hand = LinearOperator(
        (n - 1, n),
        matvec=lambda v: np.array(push(point, v)),
        rmatvec=lambda w: np.array(pull(point, w)),
        dtype=np.float32,
    )
    J = linops.Jacobian(f, x)
    A = J.T @ J + lam * linops.Identity(n)
    B = hand.H @ hand + lam * problems.handwritten(n, lambda v: v)
    np.testing.assert_allclose(A @ x, B @ x, rtol=1e-4, atol=1e-4)
    return {"linops": lambda: A @ x, "by hand, SciPy's algebra": lambda: B @ x}, {}


@row
def gram_at_two_points():
    """J(x1) J(x2)^T with n = 10,000 and m = 5, dense, at new points each time."""
    n, m = 10_000, 5
    W = jnp.asarray(normal((m, n)) / np.sqrt(n))

    def f(x):
        return jnp.tanh(W @ jnp.sin(x)) + W @ x**2

    x1, x2 = jnp.asarray(normal(n, 2)), jnp.asarray(normal(n, 3))

    def direct(x1, x2):
        return jax.jacrev(f)(x1) @ jax.jacrev(f)(x2).T

    def vmapped(x1, x2):
        pull = jax.vjp(f, x2)[1]
        return jax.vmap(lambda w: jax.jvp(f, (x1,), (pull(w)[0],))[1])(jnp.eye(m)).T

    jitted, jitted_vmapped = jax.jit(direct), jax.jit(vmapped)
    K = linops.JacobianGram(f, x1, x2)
    np.testing.assert_allclose(K.toarray(), direct(x1, x2), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(K.toarray(), vmapped(x1, x2), rtol=1e-3, atol=1e-4)
    return {
        "linops": lambda: K.at(x1, x2).toarray(),
        "direct": device(lambda: direct(x1, x2)),
        "direct, jitted": device(lambda: jitted(x1, x2)),
        "vmapped": device(lambda: vmapped(x1, x2)),
        "vmapped, jitted": device(lambda: jitted_vmapped(x1, x2)),
    }, {}


def _blocks(columns):
    n = 2_410
    A, scalar, point, _ = problems.hessian(n)
    bare = jax.jit(problems.hessian_vector(scalar))
    batched = jax.jit(jax.vmap(problems.hessian_vector(scalar), in_axes=(None, 1), out_axes=1))
    V = normal((n, columns))
    B = problems.handwritten(n, lambda v: bare(point, v))
    np.testing.assert_allclose(A @ V, batched(point, V), rtol=1e-2, atol=1e-4)
    return {
        "linops": lambda: A @ V,
        "linops, one by one": lambda: [A @ v for v in V.T],
        "by hand": lambda: B @ V,
        "by hand, vmapped": lambda: np.array(batched(point, V)),
    }, {}


for columns in (1, 16, 256):
    ROWS[f"block of {columns} columns, Hessian, n = 2,410"] = functools.partial(_blocks, columns)


def _columns(make):
    """A block of 64 columns of a Hessian, beside as many products."""
    f, x = make()
    A = linops.Hessian(f, x)
    linear = A.linearize()
    at_once = jax.jit(lambda linear, V: jax.vmap(lambda v: linear @ v)(V.T).T)
    V = normal((A.shape[1], 64))
    expected = np.stack([A @ v for v in V.T], axis=1)
    np.testing.assert_allclose(A @ V, expected, rtol=1e-2, atol=1e-5 * np.abs(expected).max())
    return {
        "linops": lambda: A @ V,
        "linops, one by one": lambda: [A @ v for v in V.T],
        "all columns in one vmap": lambda: np.array(at_once(linear, V)),
    }, {}


for make in problems.SHARING:
    ROWS[f"block of 64 columns, Hessian: {make.__name__.replace('_', ' ')}"] = functools.partial(_columns, make)


def _tiny(n):
    def f(x):
        return jnp.sum(x**4)

    x = np.linspace(-1, 1, n, dtype=np.float32)
    point = jnp.asarray(x)
    bare = jax.jit(problems.hessian_vector(f))
    A, B = linops.Hessian(f, x), problems.handwritten(n, lambda v: bare(point, v))
    A @ x
    return {
        "linops": lambda: A @ x,
        "by hand": lambda: B @ x,
        "jitted, NumPy to NumPy": lambda: np.array(bare(point, x)),
    }, {}


for size in (10, 1_000):
    ROWS[f"overhead: Hessian of sum(x**4), n = {size:,}"] = functools.partial(_tiny, size)


@row
def chain_of_100_points():
    """A product at each of 100 points, n = 2,410."""
    model, loss, weights = problems.digits(problems.LAYERS[2_410])
    scalar, _, point = problems.flat(model, loss, weights)
    points = [point + 0.01 * normal(point.size, seed) for seed in range(100)]
    v = normal(point.size)
    H, direct = linops.Hessian(scalar, point), linops.Hessian(scalar, point, linearize=False)
    H @ v, direct @ v
    bare = jax.jit(problems.hessian_vector(scalar))

    def rebuilt(x):
        return jax.jit(lambda v: problems.hessian_vector(scalar)(x, v))(v)

    return {
        "linops": lambda: [H.at(x) @ v for x in points],
        "linops, linearize=False": lambda: [direct.at(x) @ v for x in points],
        "by hand, the point an argument": lambda: [np.array(bare(x, v)) for x in points],
        "by hand, a jitted closure at each point": lambda: [np.array(rebuilt(x)) for x in points],
    }, {}


@row
def fresh_lambda():
    """A Hessian from a fresh lambda over other data, with its first product, n = 85,002."""
    seeds = iter(range(10**6))
    v = normal(85_002)

    def construct(multiply):
        model, loss, weights = problems.digits(problems.LAYERS[85_002], next(seeds))
        return multiply(lambda weights: loss(model(weights)), *problems.flat(model, loss, weights)[::2], weights)

    return {
        "linops": lambda: construct(lambda f, scalar, point, weights: linops.Hessian(f, weights) @ v),
        "by hand": lambda: construct(
            lambda f, scalar, point, weights: np.array(jax.jit(problems.hessian_vector(scalar))(point, v))
        ),
    }, {}


def _ways(make):
    """Ways to a Hessian product: linops keeps what is dear to compute, for forward over reverse."""
    f, x = make()
    v = jax.tree.map(lambda leaf: jnp.asarray(normal(leaf.shape)), x)
    g = jax.grad(f)
    kept, reverse = jax.jit(lambda x: jax.linearize(g, x)[1])(x), jax.jit(lambda x: jax.vjp(g, x)[1])(x)
    apply = jax.jit(lambda linear, v: linear(v))
    programs = {
        "forward over reverse": jax.jit(lambda x, v: jax.jvp(g, (x,), (v,))[1]),
        "reverse over forward": jax.jit(lambda x, v: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x)),
        "reverse over reverse": jax.jit(lambda x, v: jax.vjp(g, x)[1](v)[0]),
    }
    with contextlib.suppress(TypeError):  # jax.checkpoint rounds what is kept, and cannot round complex numbers
        dear = jax.checkpoint(g, policy=lambda primitive, *_, **__: primitive.name not in CHEAP)
        by_policy = jax.jit(lambda x: jax.linearize(dear, x)[1])(x)
        programs["forward over reverse, what is dear kept"] = lambda x, v: apply(by_policy, v)
    A = linops.Hessian(f, x)
    for leaf, expected in zip(
        jax.tree.leaves(A.mv(v)), jax.tree.leaves(programs["forward over reverse"](x, v)), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-2, atol=1e-4 * float(jnp.abs(expected).max()))
    return {
        "linops": device(lambda: A.mv(v)),
        "forward over reverse, all kept": device(lambda: apply(kept, v)),
        "reverse over reverse, all kept": device(lambda: apply(reverse, v)),
        **{name: device(functools.partial(program, x, v)) for name, program in programs.items()},
    }, {}


for make in problems.KINDS:
    ROWS[WAYS.format(make.__name__.replace("_", " "))] = functools.partial(_ways, make)


def _grid(side):
    f = problems.reaction_diffusion
    u = normal((side, side))
    J = linops.Jacobian(f, u)
    point = jnp.asarray(u)
    bare = jax.jit(lambda u, v: jax.jvp(f, (u,), (v,))[1])
    linear = jax.linearize(f, point)[1]
    prelinearized = jax.jit(lambda linear, v: linear(v))
    v = normal(side * side, 2)
    on_device = jnp.asarray(v.reshape(side, side))
    np.testing.assert_allclose(J @ v, np.ravel(bare(point, on_device)), rtol=1e-4, atol=1e-4)
    B = problems.handwritten(v.size, lambda v: bare(point, v.reshape(side, side)).ravel())
    vector = jnp.asarray(v)
    J @ vector
    return {
        "linops": lambda: J @ v,
        "linops, on the device": device(lambda: J @ vector),
        "by hand": lambda: B @ v,
        "bare program, jvp": device(lambda: bare(point, on_device)),
        "bare program, prelinearized": device(lambda: prelinearized(linear, on_device)),
    }, limits(J)


for side in (1_000, 3_162, 10_000):
    ROWS[f"reaction and diffusion on a grid, Jacobian, n = {side**2:,}"] = functools.partial(_grid, side)


def _first_product(n):
    return {rival: fresh("first_product", rival, n, runs=5) for rival in FIRST}, {}


FIRST = ("linops", "linops, linearize=False", "by hand")
for size in (2_410, 85_002):
    ROWS[f"first product, compilation included, n = {size:,}"] = functools.partial(_first_product, size)


@row
def closed_over_400_MB():  # noqa: N802 - megabytes
    """Construction and first product over 400 MB of data, closed over and in args."""
    return {"linops": fresh("closed_over", "closure"), "linops, in args": fresh("closed_over", "args")}, {}


def _import():
    return {"linops": fresh("import_linops", runs=7)}, {}


ROWS["import"] = _import


def _peak_memory(n, columns, rivals):
    rivals = [rival for rival in rivals if rival != "curvlinops" or has("curvlinops")]
    return {rival: fresh("peak_memory", rival, n, columns) for rival in rivals}, {}


MEMORY = {}  # rows of bytes, not of seconds
for size in problems.LAYERS:
    MEMORY[f"peak memory of a new point and a product, Hessian, n = {size:,}"] = functools.partial(
        _peak_memory, size, 1, ("linops", "linops, linearize=False", "by hand", "curvlinops")
    )
MEMORY["peak memory of a new point and 256 columns, Hessian, n = 2,410"] = functools.partial(
    _peak_memory, 2_410, 256, ("linops", "by hand", "by hand, vmapped", "curvlinops")
)
