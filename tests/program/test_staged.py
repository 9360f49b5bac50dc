"""What is staged: caches are bounded and hold no data, and large arrays have no second copy."""

import collections
import functools
import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import collect

import linops
from linops.program import program, staged


def test_a_point_of_weak_type_traces_nothing():
    H = linops.Hessian(lambda x: jnp.sum(x**3), np.float32(2))
    H @ np.ones(1, np.float32)
    before = len(staged._staged.found)
    assert H.at(jnp.asarray(3.0)) @ np.ones(1, np.float32) == 18
    assert len(staged._staged.found) == before


def test_caches_are_bounded(monkeypatch):
    before = {*program._programs}
    monkeypatch.setattr(staged, "_staged", staged._Recent(4))
    monkeypatch.setattr(staged, "_plain", collections.OrderedDict())
    monkeypatch.setattr(program, "_recent", collections.OrderedDict())
    monkeypatch.setattr(program, "_KEPT", 4)
    for power in range(2, 8):
        linops.Hessian(lambda x, p=power: jnp.sum(x**p), np.ones(2, np.float32)) @ np.ones(2, np.float32)
    collect()
    assert len(staged._staged.found) == len(program._recent) == 4
    assert len({*program._programs} - before) <= 4 + 2 * 4  # those in use by what is staged


def test_no_second_copy_of_a_large_array():
    """The residuals of A x are A itself: passed through, not copied by XLA."""
    A = jnp.ones((400, 300))
    J = linops.Jacobian(lambda x: jnp.tanh(A @ x), np.ones(300, np.float32))
    J @ np.ones(300, np.float32)
    copies = [leaf for leaf in jax.tree.leaves(J.linearize()) if leaf.shape == A.shape]
    assert [leaf.unsafe_buffer_pointer() for leaf in copies] == [A.unsafe_buffer_pointer()]
    assert sum(array.nbytes == A.nbytes for array in jax.live_arrays()) == 1


def test_caches_hold_no_data():
    """Programs of fresh lambdas over fresh arrays are kept, their arrays are not."""

    def construct(seed):
        A = jnp.full((123, 77), float(seed))
        J = linops.Jacobian(lambda x: jnp.tanh(A @ x), np.ones(77, np.float32))
        J.T @ np.ones(123, np.float32)
        (J.T @ J) @ np.ones(77, np.float32)

    for seed in range(10):
        construct(seed)
    assert not [array for array in jax.live_arrays() if array.shape == (123, 77)]


@pytest.mark.parametrize("known", [True, False])
def test_a_linearization_is_compiled_alone_and_within(known, monkeypatch):
    """By options of its own where no jit is in progress, as far as JAX tells; a part of a program cannot have them."""
    if not known:
        monkeypatch.setattr(staged, "is_outermost", lambda: False)
    x = np.linspace(0.5, 1, 7, dtype=np.float32)
    outside, inside = (linops.Jacobian(lambda x: jnp.sin(x) * jnp.exp(x), x) for _ in range(2))
    expected = np.exp(x) * (np.sin(x) + np.cos(x)) * x
    np.testing.assert_allclose(outside @ x, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda v: inside @ v)(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda v: inside @ v)(x[None])[0], expected, rtol=1e-5)


class Table:
    """An object of a user that holds data, and looks them up on the host."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, i):
        return self.rows[np.asarray(i)]


def _looked_up(rows, call=lambda table: table):
    table = Table(np.asarray(rows))
    host, struct = call(table), jax.ShapeDtypeStruct(rows.shape, rows.dtype)
    return table, lambda x: x * jax.pure_callback(host, struct, jnp.arange(rows.size)), ()


def _with_rule(rows):
    f = jax.custom_jvp(lambda x: rows * x)
    f.defjvp(lambda p, t: (f(*p), rows * t[0]))
    return f


def _looped(f):
    return lambda x: jax.lax.scan(lambda y, _: (f(y), None), x, None, length=2)[0]


def _in_args(held):
    return held, lambda x, held: getattr(held, "rows", held) * x, (held,)


HOLDERS = {  # what is held, and a function with args that holds it
    "closure": lambda rows: (rows, lambda x: jnp.tanh(rows * x), ()),
    "args": _in_args,
    "jit": lambda rows: (rows, jax.jit(lambda x: rows * x), ()),
    "scan": lambda rows: (rows, _looped(lambda x: rows * x), ()),
    "jit in a scan": lambda rows: (rows, _looped(jax.jit(lambda x: rows * x)), ()),
    "branch": lambda rows: (rows, lambda x: jax.lax.cond(x[0] > 0, lambda x: x * rows, jnp.sin, x), ()),
    "checkpoint": lambda rows: (rows, jax.checkpoint(lambda x: jnp.sin(rows * x)), ()),
    "rule": lambda rows: (rows, _with_rule(rows), ()),
    "rule in a scan": lambda rows: (rows, _looped(_with_rule(rows)), ()),
    "callback": _looked_up,
    "partial callback": lambda rows: _looked_up(rows, functools.partial),
    "object in args": lambda rows: _in_args(Table(rows)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_data_die_with_their_operators(holder):
    v = np.ones(7, np.float32)

    def construct(seed):
        held, f, args = HOLDERS[holder](jnp.full(7, 1.0 + seed))
        J = linops.Jacobian(f, v, args=args)
        for A in (J, J.at(2 * v), linops.Hessian(lambda x: jnp.sum(f(x, *args) ** 2), v)):
            A @ v, A.rmatvec(v), A.toarray()
        return weakref.ref(held)

    dead = [construct(seed) for seed in range(4)]
    collect()
    assert [ref() for ref in dead] == [None] * 4


def test_which_arrays_are_one_is_part_of_the_key():
    """Operators of three terms over two arrays, each array in the one or in the other places."""
    a, b = (linops.Matrix(np.full((2, 2), k, np.float32)) for k in (1, 10))
    v = np.ones(2, np.float32)
    for terms in itertools.product((a, b), repeat=3):
        expected = 2 * sum(int(A.array[0, 0]) * k for A, k in zip(terms, (1, 2, 4), strict=True))
        A, B, C = terms
        np.testing.assert_array_equal((A + 2 * B + 4 * C) @ v, [expected, expected])
