"""Complex trees and the pairs of real ones that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops


def test_complex_trees_stand_for_their_pairs():
    z = {"a": np.array([1 + 2j, 3 - 1j], np.complex64), "b": np.float32(0.5)}
    H = linops.Hessian(lambda z: jnp.sum(jnp.abs(z["a"]) ** 4) * z["b"], z)
    vector = np.asarray(H.domain.ravel(z))
    np.testing.assert_array_equal(vector, [1, 3, 0.5, 2, -1])
    there = H @ vector
    for point in (z, vector, H.x, H.domain.unravel(vector)):
        np.testing.assert_allclose(H.at(point) @ vector, there)
    np.testing.assert_allclose(H.domain.ravel(H.mv(z)), there, rtol=1e-6)
    re, im = H.mv(z)
    assert im["b"] is None
    np.testing.assert_allclose(H.domain.ravel({"a": re["a"] + 1j * im["a"], "b": re["b"]}), there, rtol=1e-6)
    real = {"a": np.ones(2, np.float32), "b": np.float32(1)}  # for real numbers, with imaginary parts 0
    np.testing.assert_array_equal(H.domain.ravel(real), [1, 1, 1, 0, 0])
    with pytest.raises(
        ValueError, match=r"structure PyTreeDef\({'a': \*}\).*expected one like the point's: .*'a': \*, 'b'"
    ):
        H.mv({"a": z["a"]})
    with pytest.raises(ValueError, match=r"got a vector with imaginary parts where a leaf is float32, expected real"):
        H.map.realified.unravel(np.array([1, 2, 1j], np.complex64))
    with pytest.raises(TypeError, match="the vector has dtype complex64, expected float32"):
        H.domain.unravel(vector * np.complex64(1j))
    with pytest.raises(TypeError, match=r"the tree\['b'\] has dtype complex64, expected float32"):
        linops.Jacobian(lambda x: x["b"], {"b": np.float32(1)}).mv({"b": np.complex64(1j)})


def test_points_in_lists():
    z = np.array([1 + 2j, 3 - 1j], np.complex64)
    H = linops.Hessian(lambda x: jnp.sum(jnp.abs(x[0]) ** 4) + jnp.sum(jnp.abs(x[1]) ** 4), [z, z[:1]])
    np.testing.assert_array_equal(H.at([z, z[:1]]) @ np.ones(6, np.float32), H @ np.ones(6, np.float32))
    there = jax.jit(lambda z: H.at([z, z[:1]]) @ jnp.ones(6))(z)
    np.testing.assert_allclose(there, H @ np.ones(6, np.float32), rtol=1e-6)
