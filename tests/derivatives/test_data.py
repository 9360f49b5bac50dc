"""Operators over data: arrays in chunks, and batches of the host, beside the same function of all data at once."""

import itertools
import pickle
import time
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import operators
import pytest
from counting import collect, compilations
from operators.data import energy, features, misfit, moments, point

import linops
from linops.linalg import cg, eigsh
from linops.optimize import minimize, newton_cg

COUNT = 23
RNG = np.random.default_rng(3)
X = RNG.normal(size=(COUNT, 3)).astype(np.float32)
Y = RNG.normal(size=(COUNT, 2)).astype(np.float32)
P = point(np.float32([0.3, -0.5, 0.8]), np.float32(0.7))
Q = point(np.float32([0.1, 0.9, -0.2]), np.float32(1.2))
VECTOR = RNG.normal(size=4).astype(np.float32)


def pieces(data, size=5):
    """The batches of a tree of arrays, as a list."""
    return [jax.tree.map(lambda a, i=i: a[i : i + size], data) for i in range(0, COUNT, size)]


class Loader:
    """A loader of one's own, which counts its passes."""

    def __init__(self, data):
        self.data, self.passes = data, 0

    def __iter__(self):
        self.passes += 1
        yield from pieces(self.data)


def of_disk(data, folder):
    """The arrays mapped from files."""
    leaves, treedef = jax.tree.flatten(data)
    for i, leaf in enumerate(leaves):
        np.save(folder / f"{i}.npy", leaf)
    return treedef.unflatten([np.load(folder / f"{i}.npy", mmap_mode="r") for i in range(len(leaves))])


def sources(data, folder):
    """The same data, handed over in all ways."""
    yield data, {}
    for size in (1, 5, COUNT, 2 * COUNT):
        yield data, {"batch_size": size}
    yield jax.tree.map(jnp.asarray, data), {"batch_size": 6, "linearize": False}
    yield [*pieces(data), jax.tree.map(lambda a: a[:0], data)], {}
    yield Loader(data), {}
    yield lambda: iter(pieces(data)), {}
    yield of_disk(data, folder), {"batch_size": 7}


def residuals(x, batch):
    return features(x, batch) - batch[:, :2]


OF_X, OF_PAIRS = X, (X, Y)
KINDS = {
    "hessian": (OF_X, lambda x, **options: linops.Hessian(energy, x, **options)),
    "jacobian": (OF_X, lambda x, **options: linops.Jacobian(moments, x, **options)),
    "jacobian_gram": (OF_X, lambda x, **options: linops.JacobianGram(moments, x, **options)),
    "weighted": (OF_X, lambda x, **options: linops.Hessian(moments, x, weights=moments(Q, X[:3]), **options)),
    "gauss_newton": (OF_PAIRS, lambda x, **o: linops.GaussNewton(features, x, misfit, reduction="sum", **o)),
    "least_squares": (OF_X, lambda x, **options: linops.GaussNewton(residuals, x, **options)),
    "mixed": (OF_X, lambda x, **options: linops.MixedDerivative(crossed, x, Q, **options)),
}


def crossed(x, y, batch):
    return jnp.mean(jnp.sin(batch @ x["w"] * y["b"]) * (batch @ y["w"]))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_all_data_at_once_are_one_matrix(kind, tmp_path, pytestconfig):
    data, make = KINDS[kind]
    whole = make(P, data=data)
    expected = whole.toarray()
    assert np.abs(expected - dense(kind)).max() <= 1e-5 * np.abs(expected).max()
    other = (P, Q) if kind == "mixed" else (Q,)
    vectors = RNG.normal(size=(whole.shape[1], 3)).astype(np.float32)
    shift = 0.5 * linops.Identity(whole.shape[1])
    gram = expected.T @ expected + 0.5 * np.eye(whole.shape[1])
    ways = [
        (lambda A: A @ vectors, expected @ vectors),
        (lambda A: (A.T @ A + shift) @ vectors[:, 0], gram @ vectors[:, 0]),
        (lambda A: A.T @ (expected @ vectors), expected.T @ (expected @ vectors)),
        (lambda A: A @ vectors[:, 0], expected @ vectors[:, 0]),
        (lambda A: A.at(*other).toarray(), whole.at(*other).toarray()),
    ]
    some = len(ways) if kind == "hessian" or pytestconfig.getoption("--whole") else 2  # for each way to hand data over
    for turn, (given, options) in enumerate(sources(data, tmp_path), zlib.crc32(kind.encode())):
        A = make(P, data=given, **options)
        for way, wanted in (ways[(turn + i) % len(ways)] for i in range(some)):
            found = way(A)
            assert np.linalg.norm(found - wanted) <= 2e-6 * np.linalg.norm(wanted), (kind, type(given), options)


def dense(kind):
    """The matrix by JAX alone, of all data at once."""
    with jax.enable_x64(True):
        x, y = (jax.tree.map(lambda a: jnp.asarray(a, float), p) for p in (P, Q))
        return np.asarray(jax.jit(matrix, static_argnums=0)(kind, x, y))


def matrix(kind, x, y):
    X64, Y64 = X.astype(float), Y.astype(float)
    hess, jac = operators.data.hess, operators.data.jac
    J = jac(lambda x: moments(x, X64), x)
    if kind == "mixed":
        flat = jax.flatten_util.ravel_pytree
        back = flat(x)[1]

        def f(u, v):
            return crossed(back(u), back(v), X64)

        return jax.jacobian(jax.grad(f), 1)(flat(x)[0], flat(y)[0])
    w = moments(jax.tree.map(lambda a: a.astype(np.float32), Q), X[:3])

    def weighted(x):
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(moments(x, X64)), strict=True))

    R = jac(lambda x: residuals(x, X64), x)
    matrices = {
        "hessian": lambda: hess(lambda x: energy(x, X64), x),
        "jacobian": lambda: J,
        "jacobian_gram": lambda: J @ J.T,
        "weighted": lambda: hess(weighted, x),
        "gauss_newton": lambda: operators.data._gauss_newton(x, X64, Y64),
        "least_squares": lambda: R.T @ R / COUNT,
    }
    return matrices[kind]()


def test_algorithms_go_over_batches_of_the_host():
    loader = Loader(X)
    H, whole = linops.Hessian(energy, P, data=loader), linops.Hessian(energy, P, data=X).toarray()
    shifted = whole + 2 * np.eye(4, dtype=np.float32)
    x, info = cg(H + 2 * linops.Identity(4), VECTOR, rtol=1e-5)
    assert info == 0
    assert np.allclose(shifted @ x, VECTOR, atol=1e-5)
    assert np.allclose(linops.inverse(H + 2 * linops.Identity(4)) @ VECTOR, np.linalg.solve(shifted, VECTOR), atol=1e-5)
    assert np.allclose(eigsh(H, k=2, which="LA", return_eigenvectors=False), np.linalg.eigvalsh(whole)[2:], atol=1e-5)
    assert np.isclose(linops.estimate.trace(H, jax.random.key(0), num_matvecs=4).value, np.trace(whole), atol=1e-5)
    grow = jax.grad(lambda x: jnp.sum(H.at(x).mv(P)["w"] ** 2))
    grow_whole = jax.grad(lambda x: jnp.sum(linops.Hessian(energy, P, data=X).at(x).mv(P)["w"] ** 2))
    found, wanted = (jax.tree.leaves(g(jax.tree.map(jnp.asarray, Q))) for g in (grow, grow_whole))
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def convex(x, batch):
    rows = batch @ x["w"] + x["b"]
    return jnp.mean(jnp.logaddexp(0, rows) - 0.3 * rows) + 0.1 * (x["w"] @ x["w"] + x["b"] ** 2)


def test_minimizers_go_over_batches():
    expected = newton_cg(lambda x: convex(x, X), P)
    for data, options in (X, {"batch_size": 5}), (Loader(X), {}):
        for minimizer in newton_cg, minimize:
            found = minimizer(convex, P, data=data, **options)
            assert found.success
            assert np.allclose(found.x["w"], expected.x["w"], atol=1e-3)


def test_a_pass_is_not_made_in_vain():
    loader = Loader(X)
    H, J = linops.Hessian(energy, P, data=loader), linops.Jacobian(moments, P, data=loader)
    for multiply, passes in [
        (lambda: H @ VECTOR, 1),
        (lambda: H @ np.eye(4, dtype=np.float32), 1),
        (lambda: J.T @ J @ VECTOR, 2),
        (lambda: (H + 2 * H.at(Q) + linops.Identity(4)) @ VECTOR, 1),
    ]:
        multiply()
        before = loader.passes
        multiply()
        assert loader.passes - before == passes


def test_one_program_for_each_shape_of_batches():
    linops.Hessian(energy, P, data=Loader(X)) @ VECTOR
    with compilations() as compiled:
        H = linops.Hessian(lambda x, batch: energy(x, batch), P, data=Loader(2 * X))
        H @ VECTOR
        H.at(Q) @ VECTOR
    assert compiled() == 0


def test_sums_lose_no_digits():
    """Of 20,000 batches: 2^-24 for each of them, added up as they come, would be a thousand times more."""
    many = np.full((20_000, 1), 1 / 3, np.float32)

    def square(x, batch):
        return jnp.sum(batch) * jnp.sum(x**2) / 2

    one = np.ones(1, np.float32)
    exact = float(np.sum(many.astype(float)))
    for data, options in (many, {"batch_size": 1}), (many, {"batch_size": 1, "linearize": False}):
        H = linops.Hessian(square, one, data=data, reduction="sum", **options)
        assert abs((H @ one)[0] - exact) <= np.finfo(np.float32).eps * exact
    H = linops.Hessian(square, one, data=[many[i : i + 100] for i in range(0, 20_000, 100)], reduction="sum")
    assert abs((H @ one)[0] - exact) <= np.finfo(np.float32).eps * exact


def test_pickles_hold_their_data():
    for data, options in (X, {"batch_size": 5}), (pieces(X), {}):
        H = linops.Hessian(energy, P, data=data, **options)
        again = pickle.loads(pickle.dumps(H))
        assert np.array_equal(again @ VECTOR, H @ VECTOR)


def test_a_mean_of_batches_has_all_digits(x64):
    """Those of float64: the number of examples is one, and what a loader makes in a thread has them as well."""
    wide = X.astype(float)

    class Slow(Loader):
        def __iter__(self):
            for batch in pieces(self.data):
                time.sleep(1e-3)
                yield jnp.asarray(batch)

    at = jax.tree.map(lambda a: a.astype(float), P)
    expected = linops.Hessian(energy, at, data=wide) @ VECTOR.astype(float)
    H = linops.Hessian(energy, at, data=Slow(wide))
    with jax.enable_x64(False):
        for _ in range(2):
            assert np.allclose(H @ VECTOR.astype(float), expected, rtol=1e-14, atol=1e-15)


@jax.custom_vjp
def scaled_back(x):
    return jnp.sin(x)


scaled_back.defvjp(lambda x: (scaled_back(x), x), lambda x, ct: (2 * ct * jnp.cos(x),))


@jax.custom_jvp
def scaled_forth(x):
    return jnp.sin(x)


scaled_forth.defjvp(lambda primals, tangents: (scaled_forth(*primals), 3 * tangents[0] * jnp.cos(*primals)))
MATRIX = RNG.normal(size=(3, 3)).astype(np.float32)


@pytest.mark.parametrize("rule", [scaled_back, scaled_forth])
def test_functions_with_rules_and_arrays_of_their_own(rule):
    """Also of batches of other sizes than the first, for which they are traced anew within a step."""

    def f(x, batch):
        return jnp.mean(rule(batch @ (MATRIX @ x["w"])) * x["b"])

    whole = linops.Hessian(lambda x: f(x, X), P).toarray()
    H = linops.Hessian(f, P, data=pieces(X))
    assert np.allclose(H @ VECTOR, whole @ VECTOR, atol=1e-5)
    assert np.allclose(H.toarray(), whole, atol=1e-5)
    assert np.allclose((H @ H) @ VECTOR, whole @ (whole @ VECTOR), atol=1e-5)


def test_loaders_that_move_numbers_are_others():
    """Such as those that flip images, by whole words of memory."""
    images = RNG.normal(size=(COUNT, 2, 2)).astype(np.float32)

    class Flipping(Loader):
        def __iter__(self):
            self.passes += 1
            return iter(pieces(self.data[:, ::-1] if self.passes > 2 else self.data))

    H = linops.Hessian(lambda x, images: jnp.mean(images[:, 0] @ x**2), np.ones(2, np.float32), data=Flipping(images))
    H @ VECTOR[:2]
    with pytest.raises(ValueError, match="gave another batch 0 in a later pass"):
        H @ VECTOR[:2]


def test_threads_share_a_loader():
    class Slow(Loader):
        def __iter__(self):
            for batch in pieces(self.data):
                time.sleep(1e-3)
                yield batch

    H, expected = linops.Hessian(energy, P, data=Slow(X)), linops.Hessian(energy, P, data=X) @ VECTOR
    with ThreadPoolExecutor(8) as pool:
        for product in pool.map(lambda _: H @ VECTOR, range(8)):
            assert np.allclose(product, expected, atol=1e-5)


def test_data_die_with_their_operators():
    def forgotten(loader, f):
        H = linops.Hessian(f, P, data=loader)
        (H @ H + H) @ VECTOR
        jax.grad(lambda x: jnp.sum(H.at(x).mv(P)["w"]))(jax.tree.map(jnp.asarray, Q))
        cg(H + 2 * linops.Identity(4), VECTOR)
        return weakref.ref(loader), weakref.ref(f)

    held = [forgotten(Loader(i * X), lambda x, batch, i=i: i * energy(x, batch)) for i in range(1, 4)]
    collect()
    assert not [ref for refs in held for ref in refs if ref() is not None]


def test_solutions_have_derivatives_over_data():
    """In chunks, whose data are not differentiated; forward they may be."""
    options = {"data": X, "batch_size": 5, "linearize": False}

    def norm(H):
        return jnp.sum(linops.inverse(H + 2 * linops.Identity(4), rtol=1e-6).mv(P)["w"] ** 2)

    H = linops.Hessian(energy, P, **options)
    found = jax.jit(jax.grad(lambda x: norm(H.at(x))))(Q)
    expected = jax.jit(jax.grad(lambda x: norm(linops.Hessian(lambda x: energy(x, X), x))))(Q)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), found, expected)))
    makers = (
        lambda data: linops.Hessian(energy, P, **{**options, "data": data}),
        lambda data: linops.Hessian(lambda x: energy(x, data), P),
    )
    slopes = [jax.jit(lambda a, t, f=f: jax.jvp(lambda d: f(d).mv(P)["w"], (a,), (t,)))(X, X[::-1])[1] for f in makers]
    assert np.allclose(*slopes, atol=1e-5)


def test_batches_may_hold_random_keys(tmp_path):
    keys = jax.random.split(jax.random.key(3), COUNT)

    def noisy(x, batch):
        rows, keys = batch
        return energy(x, rows + jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys))

    expected = linops.Hessian(lambda x: noisy(x, (X, keys)), P) @ VECTOR
    mapped = of_disk(X, tmp_path), keys
    chunks = {"batch_size": 5, "linearize": False}
    for data, options in (pieces((X, keys)), {}), ((X, keys), chunks), (mapped, {"batch_size": 5}):
        assert np.allclose(linops.Hessian(noisy, P, data=data, **options) @ VECTOR, expected, atol=1e-5)


class Shuffled(Loader):
    def __iter__(self):
        return iter(pieces(self.data[RNG.permutation(COUNT)]))


class Fewer(Loader):
    """The first pass that is whole is of all batches."""

    def __iter__(self):
        self.passes += 1
        return iter(pieces(self.data)[: 5 if self.passes <= 2 else 3])


class Once:
    """Such as tqdm makes of a generator: it looks as if it could be gone through again."""

    def __init__(self, data):
        self.rest = iter(data)

    def __iter__(self):
        yield from self.rest


class Failing(Loader):
    def __iter__(self):
        yield from pieces(self.data)[:2]
        raise OSError("the disk is gone")


def test_what_is_no_data_is_refused():
    def product(data, **options):
        H = linops.Hessian(energy, P, data=data, **options)
        return H @ (H @ VECTOR)

    for data, options, error, words in [
        ([], {}, ValueError, "gave no batch, expected at least one"),
        (X[:0], {}, ValueError, "data without examples, arrays of length 0"),
        (iter(pieces(X)), {}, TypeError, "an iterator that is used up after one pass"),
        ((X, Y[:5]), {}, ValueError, "expected a common leading axis, of examples"),
        (5, {}, TypeError, "expected arrays with a common leading axis in a tuple"),
        ({"x": "X.npy"}, {}, TypeError, r"got data\['x'\]='X.npy', expected arrays: np.load\(path, mmap_mode='r'\)"),
        ((X, Path("y.npy")), {"batch_size": 2}, TypeError, r"expected arrays: np.load\(path, mmap_mode='r'\)"),
        ((X, [0] * COUNT), {}, TypeError, r"got data\[1\], a list of numbers, expected an array: np.asarray"),
        ([X, Y], {}, TypeError, r"f fails for a batch of arrays of shapes \[\(23, 2\)\], after .* a tuple, \(X, y\)"),
        ([Y, X], {}, TypeError, r"data is a list of arrays: a list is one of batches, and a data set of several"),
        (X, {"batch_size": 0}, ValueError, "expected a number of examples >= 1"),
        (X, {"reduction": "max"}, ValueError, "expected 'mean' or 'sum'"),
        (pieces(X), {"batch_size": 5}, ValueError, "data that are batches already"),
        (None, {"batch_size": 5}, ValueError, "without data=, expected both"),
        ([X, {"x": X}], {}, ValueError, "expected all of one structure"),
        ([X, X.astype(np.float16)], {}, ValueError, "expected all alike"),
        (Shuffled(X), {}, ValueError, "of a loader that shuffles or augments, pass one that does not"),
        (Once(pieces(X)), {}, ValueError, "of a generator, the function that makes it"),
        (Once([X]), {}, ValueError, "0 batches in place of 1"),
        ([X[:0], X[:0]], {}, ValueError, "have no examples, expected at least one"),
        (Fewer(X), {}, ValueError, "3 batches in place of 5"),
        (Failing(X), {}, OSError, "the disk is gone"),
    ]:
        with pytest.raises(error, match=words):
            product(data, **options)
    with pytest.raises(ValueError, match="expected a common leading axis, of examples"):
        linops.GaussNewton(features, P, misfit, data=[(X, Y), (X, Y[:3])]) @ VECTOR
    with pytest.raises(TypeError, match=r"values of shapes \[\(1,\)\] for one batch and of \[\(3,\)\] for another"):
        linops.Jacobian(lambda x, batch: jnp.mean(batch, 0) * x["b"], P, data=[X, X[:, :1]]) @ VECTOR
    with pytest.raises(TypeError, match="expected a row of each value for each example"):
        linops.GaussNewton(moments, P, data=X)
    with pytest.raises(TypeError, match=r"expected pairs, \(inputs, targets\)"):
        linops.GaussNewton(features, P, misfit, data=X)
    with pytest.raises(TypeError, match="whose number follows that of examples"):
        linops.Jacobian(features, P, data=X, batch_size=5)
    H = linops.Hessian(energy, P, data=pieces(X))
    with pytest.raises(TypeError, match="which come from the host; expected arrays as data= there"):
        jax.jit(lambda v: H @ v)(VECTOR)
    H = linops.Hessian(energy, P, data=X, batch_size=5)
    with pytest.raises(TypeError, match="a gradient with respect to data= was asked for"):
        jax.grad(lambda H: jnp.sum(H @ VECTOR), allow_int=True)(H)
    with pytest.raises(TypeError, match="many operators; expected one: build the"):
        jax.vmap(lambda H: H @ VECTOR)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), H))


def test_small_batches_of_one_call_are_each_what_they_are():
    """Of the host and of the device, alike and not, in any order: small ones of the host go in one call."""
    X = RNG.normal(size=(100, 3)).astype(np.float32)
    cuts = [0, 10, 20, 30, 40, 47, 54, 64, 74, 84, 100]
    expected = linops.Hessian(energy, P, data=X) @ VECTOR
    for kind in (lambda k: False, lambda k: True, lambda k: k % 3 == 1, lambda k: k > 0):
        batches = [jnp.asarray(X[a:b]) if kind(k) else X[a:b] for k, (a, b) in enumerate(itertools.pairwise(cuts))]
        assert np.allclose(linops.Hessian(energy, P, data=batches) @ VECTOR, expected, rtol=1e-5)
    by_four = [X[i : i + 4] for i in range(0, 100, 4)]
    assert np.allclose(linops.Hessian(energy, P, data=by_four) @ VECTOR, expected, rtol=1e-5)


def test_a_limit_of_memory_governs_chunks_and_residuals(caplog):
    many = RNG.normal(size=(2_000, 3)).astype(np.float32)
    product = linops.Hessian(energy, P, data=many) @ VECTOR
    with linops.memory_limit(2**18), caplog.at_level("DEBUG", "linops"):
        H = linops.Hessian(energy, P, data=many)
        assert 100 < H.function.source.size < 2_000
        assert np.allclose(H @ VECTOR, product, rtol=1e-5)
        targets = many[:, :2]
        G = linops.GaussNewton(features, P, misfit, data=(many, targets), reduction="sum")
        assert G.function.source == G.loss.source
        G @ VECTOR
    assert "are taken at once" in caplog.text
    with pytest.raises(ValueError, match="expected a number of bytes > 0"), linops.memory_limit(0):
        pass


def test_errors_of_a_minimum_are_those_of_all_examples():
    """Of a mean as of a sum: N times as many examples determine it so much better."""

    def total(x, batch):
        rows = batch @ x["w"]
        return jnp.sum(jnp.logaddexp(0, rows) - 0.3 * rows) + len(batch) * 0.1 * x["b"] ** 2

    expected = newton_cg(lambda x: total(x, X), P).standard_errors["w"]
    for data in (X, pieces(X)):
        for minimizer in (newton_cg, minimize):
            found = minimizer(lambda x, batch: total(x, batch) / len(batch), P, data=data)
            assert np.allclose(found.standard_errors["w"], expected, rtol=2e-2)
