"""Functions are pickled by name: what is found, what has changed, and what is not importable."""

import copy
import pathlib
import pickle
import subprocess
import sys

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import scipy.sparse
from copies import WAYS, ones
from operators.derivatives import only_reverse
from problems import POINT, SIZE

import linops

LINEAR = problems.normal((4, SIZE), np.float32, 9)


def with_args(x, scale, power, options):
    return {"y": options["sign"] * scale * x["w"] ** power, "r": jax.random.normal(options["key"], (2,)) * x["b"]}


def with_global(x):
    return jnp.tanh(LINEAR @ jnp.concatenate([x["b"], x["w"].ravel()]))


def with_global_sum(x):
    return jnp.sum(LINEAR) * x["b"]


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


# Copies and pickles.


FOUND = {
    "of a library": (jnp.sin, POINT["b"], ()),
    "jitted": (jitted, POINT, ()),
    "with a global array": (with_global, POINT, ()),
    "a static method": (Nested.f, POINT, ()),
    "with args": (with_args, POINT, (np.float32(0.7), 2, {"sign": -1.5, "key": jax.random.key(3)})),
    "with a rule": (only_reverse, POINT["b"], ()),
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


def test_lambdas_are_copied_but_not_pickled():
    def local(x):
        return jnp.sum(x**3)

    x = POINT["b"]
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
        linops.Jacobian(problems.phases, POINT["w"][0][[0, 1, 2, 0, 1]]).H
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
    J = linops.Jacobian(code, POINT["b"], args=(Options(),))
    np.testing.assert_array_equal(J @ ones(J), [2, 2])
    with pytest.raises(TypeError, match=r"expected a function that .* and hashable args"):
        pickle.dumps(J)
    np.testing.assert_array_equal(copy.deepcopy(J) @ ones(J), [2, 2])


def test_functions_that_have_changed(monkeypatch):
    H = linops.Jacobian(with_global, POINT)
    pickled = pickle.dumps(H)
    expected = H @ ones(H)
    monkeypatch.setitem(globals(), "LINEAR", 2 * LINEAR)  # the arrays of that day are what is pickled
    np.testing.assert_array_equal(pickle.loads(pickled) @ ones(H), expected)
    pickled_program = pickle.dumps(linops.Jacobian(with_global_scalar, POINT))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    with pytest.raises(ValueError, match=r"with_global_scalar is not the function.*it computes something else"):
        pickle.loads(pickled_program)
    monkeypatch.setitem(globals(), "LINEAR", LINEAR[:2])
    with pytest.raises(ValueError, match=r"with_global is not the function that it was .* expected the same code"):
        pickle.loads(pickled)
    monkeypatch.setitem(globals(), "with_global", lambda x: x["b"])
    with pytest.raises(TypeError, match=r"f cannot be imported by its name; expected a function that its module has"):
        pickle.dumps(H)


def test_pickles_of_another_version(monkeypatch):
    """Of which another program may come, of the same shapes and dtypes."""
    with monkeypatch.context() as then:
        then.setattr(jax, "__version__", "0.1")
        pickled = pickle.dumps(linops.Jacobian(with_global_sum, POINT))
    J = pickle.loads(pickled)
    np.testing.assert_array_equal(J @ ones(J), linops.Jacobian(with_global_sum, POINT) @ ones(J))
    for other in (LINEAR[:2], LINEAR.astype(np.float16)):
        monkeypatch.setitem(globals(), "LINEAR", other)
        with pytest.raises(ValueError, match=r"an array that it uses, has another shape or dtype"):
            pickle.loads(pickled)


def with_settings(x):
    """What depends on the settings of JAX, or is refused under some."""
    noise = jax.random.normal(jax.random.key(0), (2, 7)) + jax.random.uniform(jax.random.PRNGKey(1), (7,))
    return LINEAR[:, :7].T @ x["b"][:4] * noise * jnp.arange(7)


SETTINGS = {
    "matmul precision": lambda: jax.default_matmul_precision("bfloat16"),
    "x64": lambda: jax.enable_x64(True),
    "keys": lambda: jax.default_prng_impl("rbg"),
    "partitionable": lambda: jax.threefry_partitionable(not jax.config.jax_threefry_partitionable),
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "old keys": lambda: jax.legacy_prng_key("error"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pickle_keeps_the_settings_of_its_trace(name):
    """Made under a setting and loaded without, and the other way around."""
    x, setting = {"b": np.ones(4, np.float32)}, SETTINGS[name]
    plain = linops.Jacobian(with_settings, x)
    with setting():
        assert pickle.loads(pickle.dumps(plain)).function.program is plain.function.program
        try:
            J = linops.Jacobian(with_settings, x)
        except (TypeError, ValueError):  # as the setting asks for
            return
    assert J.function.program is not plain.function.program
    assert pickle.loads(pickle.dumps(J)).function.program is J.function.program


MODULE = """
import jax, jax.numpy as jnp
f = jax.custom_{kind}(lambda x: jnp.sin(x))
{rule}
def F(x): return f(x)
"""


DEFINE = {
    "jvp": "f.defjvp(lambda p, t: (f(*p), {C} * jnp.cos(p[0]) * t[0]))",
    "vjp": "f.defvjp(lambda x: (f(x), x), lambda x, w: ({C} * jnp.cos(x) * w,))",
}


DUMP = (
    "import rules, linops, numpy as np, pickle as p; p.dump(linops.Jacobian(rules.F, np.ones(3, 'f')), open('p', 'wb'))"
)


LOAD = "import pickle as p, numpy as np; print((p.load(open('p', 'rb')).T @ np.ones(3, 'f'))[0])"


@pytest.mark.parametrize("kind", DEFINE)
def test_a_pickle_knows_the_rules_of_its_function(kind, tmp_path):
    def run(factor, code):
        module = MODULE.format(kind=kind, rule=DEFINE[kind].format(C=factor))
        pathlib.Path(tmp_path, "rules.py").write_text(module)
        command = [sys.executable, "-B", "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run(1.0, DUMP).returncode == 0
    assert float(run(1.0, LOAD).stdout) == pytest.approx(np.cos(1), rel=1e-6)
    assert "is not the function that it was when its operator was pickled" in run(3.0, LOAD).stderr


_MISSING = object()


@jax.tree_util.register_pytree_node_class
class Module:
    """Like those of equinox: attributes that are not there are known by an object that does not survive a pickle."""

    names = "w", "b", "absent"

    def tree_flatten(self):
        there = [name for name in self.names if hasattr(self, name)]
        leaves = [getattr(self, name) for name in there]
        return leaves, tuple(name if name in there else _MISSING for name in self.names)

    @classmethod
    def tree_unflatten(cls, names, leaves):
        self, leaves = cls(), iter(leaves)
        for name in names:
            if name is not _MISSING:
                setattr(self, name, next(leaves))
        return self


def affine(module, other):
    return other.w @ jnp.tanh(module.w) + module.b


def test_pickles_of_modules_whose_structure_does_not_pickle():
    module, other = Module(), Module()
    module.w, module.b = jnp.linspace(0, 1, 3), jnp.ones(2)
    other.w = jnp.ones((2, 3))
    J = linops.Jacobian(affine, module, args=(other,))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(J)).toarray(), J.toarray())
