"""The life of an operator among others: copies, pickles, threads, processes, transformations, settings, memory."""

import concurrent.futures
import copy
import gc
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
import threading
import weakref

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import operators
import problems
import pytest
import scipy.sparse
from counting import forget, text
from operators.derivatives import only_reverse

import linops

X = problems.tree_point("dict", np.float32)
Z = {"a": problems.complex_normal(3, np.float32), "b": problems.complex_normal((), np.float32, 1)}
SIZE = 11
LINEAR = problems.normal((4, SIZE), np.float32, 9)


def with_args(x, scale, power, options):
    return {"y": options["sign"] * scale * x["w"] ** power, "r": jax.random.normal(options["key"], (2,)) * x["b"]}


def with_global(x):
    return jnp.tanh(LINEAR @ jnp.concatenate([x["b"], x["w"].ravel()]))


SCALE = 2.0


def with_global_scalar(x):
    return SCALE * x["b"]


@jax.jit
def jitted(x):
    return jnp.sin(x["w"]) @ x["w"]


class Nested:
    """A function that is found under a qualified name."""

    @staticmethod
    def f(x):
        return x["b"] ** 3


def _composite():
    J = linops.Jacobian(problems.values, X)
    return J.T @ J + 0.5 * linops.Identity(SIZE)


def ones(A):
    return np.ones(A.shape[1], A.dtype)


# Copies and pickles.

WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda A: pickle.loads(pickle.dumps(A))}


FOUND = {
    "of a library": (jnp.sin, X["b"], ()),
    "jitted": (jitted, X, ()),
    "with a global array": (with_global, X, ()),
    "a static method": (Nested.f, X, ()),
    "with args": (with_args, X, (np.float32(0.7), 2, {"sign": -1.5, "key": jax.random.key(3)})),
    "with a rule": (only_reverse, X["b"], ()),
}


@pytest.mark.parametrize("name", FOUND)
def test_functions_are_found_by_name(name):
    f, x, args = FOUND[name]
    A = linops.Jacobian(f, x, args=args)
    for B in (A, A + scipy.sparse.eye_array(*A.shape, dtype=np.float32)):  # the sum is SciPy's own
        for state in ("fresh", "used"):
            for way, move in WAYS.items():
                C = move(B)
                np.testing.assert_array_equal(C @ ones(C), B @ ones(B), err_msg=f"{way}, {state}")
                np.testing.assert_array_equal(C.T @ ones(C.T), B.T @ ones(B.T), err_msg=f"{way}, {state}")


def test_a_copy_can_do_what_its_origin_can():
    H = linops.Hessian(problems.scalar, X)
    other = problems.tree_point("dict", np.float32, 5)
    for way in WAYS.values():
        np.testing.assert_array_equal(way(H).at(other) @ ones(H), H.at(other) @ ones(H))
        np.testing.assert_array_equal(way(way(H)) @ ones(H), H @ ones(H))
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(H))._door._flat.treedef == H._door._flat.treedef, True
    )  # so that a pickled operator finds the programs of this process


def test_copies_keep_what_is_one_thing_one_thing():
    J = linops.Jacobian(problems.square, X)
    for way in WAYS.values():
        A = way(J - J.T)
        assert A.terms[0] is A.terms[1].operator.operator


def test_copies_and_pickles_hold_no_caches():
    H = linops.Hessian(problems.scalar, X)
    fresh = len(pickle.dumps(H))
    H.rmatvec(H @ ones(H))
    H @ ones(H).astype(np.complex64)
    assert len(pickle.dumps(H)) == fresh
    for way in WAYS.values():
        assert not {"_door", "_linearized", "_adjoint_door", "_complex_door", "_traced"} & set(vars(way(H)))


def test_lambdas_are_copied_but_not_pickled():
    def local(x):
        return jnp.sum(x**3)

    x = X["b"]
    H = linops.Hessian(local, x)
    for way in (copy.copy, copy.deepcopy):
        np.testing.assert_array_equal(way(H) @ ones(H), H @ ones(H))
    message = (
        r"pickled whose {} cannot be imported by its name; expected a function that its module has.*"
        r"write {} with def at module level.*pass data through args="
    )
    for A in (
        H,
        linops.Jacobian(lambda x: x, x),
        H @ H + linops.Diagonal(x),
        linops.Jacobian(functools_like(2), x),
        linops.Jacobian(problems.phases, X["w"][0][[0, 1, 2, 0, 1]]).H
        @ linops.Jacobian(lambda x: x * 1j, np.ones(4, np.float32)),
    ):
        with pytest.raises(TypeError, match=message.format("f", "f")):
            pickle.dumps(A)
    with pytest.raises(TypeError, match=message.format("loss", "loss")):
        pickle.dumps(linops.GaussNewton(jnp.sin, x, lambda z: jnp.sum(z**2)))


def test_cloudpickle_takes_any_function():
    """As joblib, dask and ray pickle: lambdas over data, at the point where they were made or another."""
    scale, x = np.arange(1, 4, dtype=np.float32), np.ones(3, np.float32)
    jitted = jax.jit(lambda x: jnp.sum(scale * x**3))
    for A in (
        linops.Hessian(lambda x: jnp.sum(scale * x**3), x),
        linops.Hessian(lambda x: jnp.sum(scale * x**3), x).at(2 * x),
        linops.Hessian(lambda x, c: jnp.sum(c * x**3), x, args=(scale,)).at(x, args=(2 * scale,)),
        linops.Hessian(jitted, x),
        linops.GaussNewton(lambda x: x**2 * scale, x, lambda z: jnp.sum(z**2)),
        linops.Jacobian(lambda z: jnp.conj(z) * scale, x * 1j),
        linops.Jacobian(functools_like(2), x).T @ linops.Jacobian(functools_like(2), x) + 0.5 * linops.Identity(x.size),
    ):
        B = cloudpickle.loads(cloudpickle.dumps(A))
        np.testing.assert_array_equal(B @ ones(A), A @ ones(A))
        for C in (B, copy.copy(A), copy.deepcopy(A)):
            np.testing.assert_array_equal(cloudpickle.loads(cloudpickle.dumps(C)) @ ones(A), A @ ones(A))
    with pytest.raises(TypeError, match=r"or pickle the operator as it was made with cloudpickle"):
        cloudpickle.dumps(jax.tree.map(lambda leaf: leaf, linops.Jacobian(lambda x: x**2, x)))


def functools_like(power):
    class Power:
        def __call__(self, x):
            return x**power

    return Power()


def test_args_that_cannot_be_compared_are_not_pickled():
    def code(x, options):
        return options.scale * x

    class Options:
        scale = 2.0
        __hash__ = None

    globals()["code"] = code
    code.__qualname__ = "code"
    J = linops.Jacobian(code, X["b"], args=(Options(),))
    np.testing.assert_array_equal(J @ ones(J), [2, 2])
    with pytest.raises(TypeError, match=r"expected a function that .* and hashable args"):
        pickle.dumps(J)
    np.testing.assert_array_equal(copy.deepcopy(J) @ ones(J), [2, 2])


def test_linearized_operators_are_not_pickled():
    L = linops.Jacobian(problems.values, X).linearize()
    np.testing.assert_array_equal(copy.deepcopy(L) @ ones(L), L @ ones(L))
    for A in (L, L.T, linops.Hessian(problems.scalar, X).linearize() * 2):
        with pytest.raises(TypeError, match=r"a linearized operator, was pickled; expected the operator that it was"):
            pickle.dumps(A)


def test_functions_that_have_changed(monkeypatch):
    H = linops.Jacobian(with_global, X)
    pickled = pickle.dumps(H)
    expected = H @ ones(H)
    monkeypatch.setitem(globals(), "LINEAR", 2 * LINEAR)  # the arrays of that day are what is pickled
    np.testing.assert_array_equal(pickle.loads(pickled) @ ones(H), expected)
    pickled_program = pickle.dumps(linops.Jacobian(with_global_scalar, X))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    with pytest.raises(ValueError, match=r"with_global_scalar is not the function.*it computes something else"):
        pickle.loads(pickled_program)
    monkeypatch.setitem(globals(), "LINEAR", LINEAR[:2])
    with pytest.raises(ValueError, match=r"with_global is not the function that it was .* expected the same code"):
        pickle.loads(pickled)
    monkeypatch.setitem(globals(), "with_global", lambda x: x["b"])
    with pytest.raises(TypeError, match=r"f cannot be imported by its name; expected a function that its module has"):
        pickle.dumps(H)


def test_float64_is_not_narrowed_by_a_pickle():
    with jax.enable_x64(True):
        x = problems.tree_point("dict", np.float64)
        made = [linops.Hessian(problems.scalar, x), linops.Matrix(np.eye(3)), 2 * linops.Diagonal(np.ones(2))]
        pickled = [pickle.dumps(A) for A in made]
        for A, data in zip(made, pickled, strict=True):
            B = pickle.loads(data)
            assert B.dtype == np.float64
            np.testing.assert_array_equal(B @ ones(A), A @ ones(A))
    for A, data in zip(made, pickled, strict=True):
        with pytest.raises(
            TypeError, match=r"pickled with arrays of 64 bits.*expected float64 to be enabled: call jax"
        ):
            pickle.loads(data)
        assert copy.deepcopy(A).dtype == np.float64
        np.testing.assert_array_equal(copy.deepcopy(A) @ ones(A), A @ ones(A))


def test_a_pickle_keeps_the_settings_of_its_trace():
    with jax.default_matmul_precision("highest"):
        J = linops.Jacobian(with_global, X)
    B = pickle.loads(pickle.dumps(J))
    assert "HIGHEST" in text(J)
    assert B.function.program is J.function.program


# Threads and processes.

IN_THREADS = ["normal_equations", "jacobian_with_args", "jacobian_realified"]


def in_threads(calls):
    """The results of calls that start at one moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait()
        return call()

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.parametrize("name", IN_THREADS)
def test_threads_share_an_operator(name):
    A, D = operators.make(name, *operators.arguments(name, np.float32)), operators.dense(name, np.float32)
    forget()
    calls = [
        lambda: A @ ones(A),
        lambda: A.rmatvec(np.ones(A.shape[0], A.dtype)),
        lambda: A @ np.ones((A.shape[1], 3), A.dtype),
        lambda: np.asarray(A @ jnp.ones(A.shape[1], A.dtype)),
    ] * 2
    expected = [D @ ones(A), D.T @ np.ones(len(D)), D @ np.ones((A.shape[1], 3)), D @ ones(A)] * 2
    for result, reference in zip(in_threads(calls), expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-4)


def test_threads_with_operators_of_their_own():
    def work(seed):
        x = problems.tree_point("dict", np.float32, seed)
        c = jnp.float32(seed)
        J = linops.Jacobian(lambda x: c * x["w"] @ x["w"], x)
        return [(J @ ones(J), J.T @ ones(J.T)) for _ in range(20)][-1]

    results = in_threads([lambda seed=seed: work(seed) for seed in range(8)])
    for seed, (forward, reverse) in enumerate(results):
        x = problems.tree_point("dict", np.float32, seed)
        D = problems.jacobian(lambda x, seed=seed: seed * x["w"] @ x["w"], x)
        np.testing.assert_allclose(forward, D @ np.ones(SIZE), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(reverse, D.T @ np.ones(9), rtol=1e-4, atol=1e-4)


def test_threads_with_float64_and_float32():
    """Settings of JAX belong to a thread."""

    def wide():
        with jax.enable_x64(True):
            H = linops.Hessian(problems.scalar, problems.tree_point("dict", np.float64))
            return [H @ ones(H) for _ in range(50)]

    def narrow():
        H = linops.Hessian(problems.scalar, X)
        return [H @ ones(H) for _ in range(50)]

    D = problems.hessian(problems.scalar, X)
    for results, dtype in zip(in_threads([wide, narrow] * 2), [np.float64, np.float32] * 2, strict=True):
        assert {result.dtype for result in results} == {np.dtype(dtype)}
        np.testing.assert_allclose(results[-1], D @ np.ones(SIZE), rtol=1e-4, atol=1e-4)


PICKLED_FOR_WORKERS = ["normal_equations", "gauss_newton_real_loss"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes(method):
    """A worker that starts fresh gets the operator by pickle."""
    made = [operators.make(name, *operators.arguments(name, np.float32)) for name in PICKLED_FOR_WORKERS]
    made.append(linops.Jacobian(jnp.sin, X["b"]))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        results = list(pool.map(operator.matmul, made, map(ones, made)))
    for A, result in zip(made, results, strict=True):
        np.testing.assert_allclose(result, A @ ones(A), rtol=1e-5, atol=1e-5)


def test_forks_are_refused():
    """JAX has threads, of which a forked child has none but may wait for their answers, for ever."""
    printed = in_subprocess(
        """
import copy, os, warnings
import jax.numpy as jnp, numpy as np, linops
warnings.simplefilter("ignore")  # Python and JAX warn of the fork
def attempt(multiply):
    try:
        multiply()
    except RuntimeError as error:
        print(error, flush=True)
before = os.fork()  # before any array there is nothing to lose
if before == 0:
    print(linops.Matrix(np.eye(3)) @ np.ones(3), flush=True)
    os._exit(0)
os.waitpid(before, 0)
A, on_device = linops.Matrix(np.eye(3)), jnp.ones(3)
A @ np.ones(3)
after = os.fork()
if after == 0:
    for v in (np.ones(3), np.ones((3, 2)), on_device):
        attempt(lambda: A @ v)
    attempt(lambda: A.mv(np.ones(3)))
    attempt(lambda: linops.Hessian(jnp.sum, np.ones(3)) @ np.ones(3))
    for use in (copy.deepcopy, linops.check, lambda A: 2 * A, lambda A: A - A, lambda A: A.diagonal()):
        attempt(lambda: use(A))
    for use in (A.domain.ravel, A.domain.unravel, linops.Diagonal, lambda x: linops.batch_jacobian(jnp.sin, x)):
        attempt(lambda: use(on_device))
    os._exit(0)
os.waitpid(after, 0)
"""
    )
    assert printed.startswith("[1. 1. 1.]")
    assert printed.count("got a call in a process that was forked from one that computes with JAX") == 14
    assert printed.count("expected a process of its own: use multiprocessing with the start method spawn or") == 14


def in_subprocess(code, **environment):
    """Run a script, of a main module of its own, with these environment variables; its warnings are errors."""
    path = os.pathsep.join([os.path.dirname(os.path.dirname(linops.__file__)), os.path.dirname(__file__)])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scipy_with_the_array_api():
    in_subprocess(
        """
import copy, pickle, warnings
import jax.numpy as jnp, numpy as np, problems, linops
from scipy.sparse.linalg import cg, eigsh, gmres, lsmr, svds
J = linops.Jacobian(problems.values, problems.tree_point("dict", np.float32))
A = J.T @ J + linops.Identity(11)
D, E = J.toarray(), A.toarray()
b = np.ones(11, np.float32)
np.testing.assert_allclose(cg(A, b, rtol=1e-5)[0], np.linalg.solve(E, b), rtol=1e-3, atol=1e-4)
np.testing.assert_allclose(gmres(A, b, rtol=1e-5)[0], np.linalg.solve(E, b), rtol=1e-3, atol=1e-4)
np.testing.assert_allclose(eigsh(A, k=3)[0], np.linalg.eigvalsh(E)[-3:], rtol=1e-4)
np.testing.assert_allclose(svds(J, k=2)[1], np.linalg.svd(D)[1][:2][::-1], rtol=1e-4)
warnings.simplefilter("ignore")  # lsmr warns of an overflow of its own in float32
np.testing.assert_allclose(lsmr(A, b, atol=1e-6, btol=1e-6)[0], np.linalg.solve(E, b), rtol=1e-2, atol=1e-3)
np.testing.assert_allclose(copy.deepcopy(A) @ b, E @ b, rtol=1e-4)
np.testing.assert_allclose(pickle.loads(pickle.dumps(A)) @ b, E @ b, rtol=1e-4)
np.testing.assert_allclose(pickle.loads(pickle.dumps(A))._matvec(b), E @ b, rtol=1e-4)
""",
        SCIPY_ARRAY_API="1",
    )


def test_two_devices():
    in_subprocess(
        """
import pickle
import jax, jax.numpy as jnp, numpy as np, problems, linops
first, second = jax.devices()
x = problems.tree_point("dict", np.float32)
D, v = problems.jacobian(problems.values, x), np.ones(11, np.float32)
def right(A, device):
    w = A @ jnp.asarray(v)
    np.testing.assert_allclose(w, D @ v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(A @ v, D @ v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(A.T @ np.ones(7, np.float32), D.T @ np.ones(7), rtol=1e-4, atol=1e-4)
    assert w.devices() == {device}, (w.devices(), device)
with jax.default_device(second):
    J = linops.Jacobian(problems.values, x)
    right(J, second)
    right(J.at(x), second)
    right(pickle.loads(pickle.dumps(J)), second)
for placed in (J, linops.Jacobian(problems.values, jax.device_put(x, second))):  # committed, or made elsewhere
    np.testing.assert_allclose(placed @ v, D @ v, rtol=1e-4, atol=1e-5)
right(linops.Jacobian(problems.values, jax.device_put(x, second)), second)
right(linops.Jacobian(problems.values, x), first)
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )


# Memory.


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory of a process where Linux says it")
@pytest.mark.parametrize("way", ["at", "fresh lambdas", "importable"])
def test_a_thousand_points_hold_memory_flat(way):
    """400 kB of data and residuals at each point; kept for all points, they would make 400 MB."""
    n = 50_000
    H = linops.Hessian(lambda x: jnp.sum(x**4), np.ones(n, np.float32))
    v = np.ones(n, np.float32)

    def make(i):
        x = np.full(n, 1 + i % 7, np.float32)
        if way == "at":
            return H.at(x), 12 * (1 + i % 7) ** 2
        if way == "importable":
            return linops.Hessian(scaled_cubes, x, args=(np.full(n, 1 + i % 5, np.float32),)), 6 * (1 + i % 7) * (
                1 + i % 5
            )
        c = jnp.asarray(np.full(n, 1 + i % 5, np.float32))
        return linops.Hessian(lambda x: jnp.sum(c * x**3), x), 6 * (1 + i % 7) * (1 + i % 5)

    def after(points):
        for i in range(points):
            A, expected = make(i)
            assert (A @ v)[0] == pytest.approx(expected)
            (A + linops.Identity(n)) @ v
        del A
        return sum(array.nbytes for array in jax.live_arrays()), resident_bytes()

    gc.collect()
    gc.disable()  # freed at once, not at some later collection
    try:
        live, resident = after(30)
        live_later, resident_later = after(1000)
    finally:
        gc.enable()
    assert live_later <= live
    assert resident_later - resident < 30e6


def scaled_cubes(x, c):
    return jnp.sum(c * x**3)


def test_copies_are_freed_at_once():
    gc.collect()
    gc.disable()
    try:
        for way in WAYS.values():
            A = way(_composite())
            A @ ones(A)
            dead = [weakref.ref(A), weakref.ref(A.terms[0])]
            del A
            assert [ref() for ref in dead] == [None, None]
    finally:
        gc.enable()


# Settings of JAX.


def test_strict_promotion_to_complex_numbers():
    H = linops.Hessian(problems.scalar, X)
    expected = 1j * (H @ ones(H))
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose((1j * H) @ ones(H), expected, rtol=1e-5)
        np.testing.assert_allclose(H @ (1j * ones(H)), expected, rtol=1e-5)


def test_nan_under_debug_nans():
    J = linops.Jacobian(jnp.sqrt, np.zeros(2, np.float32), check_finite=False)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        J @ np.zeros(2, np.float32)
    assert np.isnan(J @ np.zeros(2, np.float32)).all()


def test_precision_belongs_to_the_construction():
    """Not the one that a cache saw first, nor that at the time of the product."""

    def program(precision):
        with jax.default_matmul_precision(precision):
            J = linops.Jacobian(with_global, X)
        J @ ones(J)
        return text(J)

    as_it_is, full, fast, again = program(None), program("highest"), program("default"), program(None)
    assert "HIGHEST" in as_it_is  # a product in float32 is in float32, on GPUs too
    assert "HIGHEST" not in fast
    assert as_it_is == full == again


def test_toggling_x64():
    D = problems.hessian(problems.scalar, X)
    H32 = linops.Hessian(problems.scalar, X)
    with jax.enable_x64(True):
        H64 = linops.Hessian(problems.scalar, problems.tree_point("dict", np.float64))
        inside = H32 @ np.ones(SIZE, np.float32)  # the first product elsewhere than the construction
    results = [H64 @ np.ones(SIZE), H32 @ np.ones(SIZE, np.float32)]
    assert [result.dtype for result in [inside, *results]] == [np.float32, np.float64, np.float32]
    for result in [inside, *results]:
        np.testing.assert_allclose(result, D @ np.ones(SIZE), rtol=1e-4, atol=1e-4)
    with jax.enable_x64(True):
        assert (H32 @ jnp.ones(SIZE, jnp.float32)).dtype == np.float32
        assert (H64 @ jnp.ones(SIZE)).dtype == np.float64
        assert H32.at(X).dtype == np.float32


def test_toggling_x64_with_complex_numbers():
    with jax.enable_x64(True):
        z = jax.tree.map(lambda leaf: leaf.astype(np.complex128), Z)
        J = linops.Jacobian(problems.holomorphic, z)
        D = J.toarray()
        fresh = J.at(z)
    assert D.dtype == np.complex128
    v = np.linspace(1, 2, 4) * (1 + 1j)
    np.testing.assert_allclose(fresh @ v, D @ v, rtol=1e-13)
