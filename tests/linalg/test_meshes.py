"""`eigsh` and `svds` on eight devices: the numbers of one, and no leaf is gathered in any program that runs."""

import pytest
from processes import in_subprocess

SCRIPT = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import linops
from linops.linalg import eigsh, svds
from linops.program.staged import Flat

moved, call = [], Flat.call

def read(self, function, *arrays):
    stage = self.stage(function, *arrays)
    with self.scope.entered():
        text = stage.run.lower(*stage.consts, *self.leaves, *arrays).compile().as_text()
    for shape, kind in re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce)", text):
        moved.extend((kind, np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\\[(.*?)\\]", shape))
    return call(self, function, *arrays)

mesh = jax.make_mesh((8,), ("d",), axis_types=(getattr(AxisType, sys.argv[1]),))
rng = np.random.default_rng(0)
x = {"b": rng.normal(size=4096).astype(np.float32), "w": rng.normal(size=(64, 48)).astype(np.float32)}
on_mesh = {"b": jax.device_put(x["b"], NamedSharding(mesh, P("d"))), "w": jax.device_put(x["w"], NamedSharding(mesh, P("d", None)))}

def energy(x):
    total = jnp.sum(x["b"]) * jnp.sum(x["w"])
    return jnp.sum(jnp.cos(x["w"]) * jnp.arange(1.0, 49.0)) + jnp.sum(x["b"] ** 4) + 1e-3 * total

def model(x):
    return {"y": x["b"] ** 2 * jnp.mean(x["w"]), "z": jnp.sin(x["w"])}

def runs(x):
    w, v = eigsh(linops.Hessian(energy, x), k=3, which="BE", ncv=12, tol=1e-4, trees=True)
    u, s, right = svds(linops.Jacobian(model, x), k=3, ncv=12, tol=1e-4, trees=True)
    return (w, s), (v, right, {"b": u["y"], "w": u["z"]})

expected, _ = runs(x)
Flat.call = read
values, vectors = runs(on_mesh)
for ours, theirs in zip(values, expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
for tree in vectors:
    for name, leaf in tree.items():
        wanted = NamedSharding(mesh, P(None, *on_mesh[name].sharding.spec))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (name, leaf.sharding)
assert moved, "sums over devices are in the programs"
print(sorted(set((kind, int(size)) for kind, size in moved)))
assert max(size for _, size in moved) < 1000, "one leaf has 3,072 numbers, the other 4,096"
"""


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_no_leaf_is_gathered(axes):
    in_subprocess("-c", SCRIPT, axes, XLA_FLAGS="--xla_force_host_platform_device_count=8")
