"""The console script, in this process: its report against dense eigenvalues, and its errors."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import ArpackNoConvergence

from linops import cli
from linops.cli import digits_problem, main

pytestmark = pytest.mark.usefixtures("optimized")

A = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the current folder."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp, numpy as np\n"
        "A = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)\n"
        "def f(x): return 0.5 * x['v'] @ jnp.asarray(A + A.T) @ x['v']\n"
        "def small(x): return jnp.sum(x**4)\n"
        "def vector(x): return x['v']\n"
        "POINT = {'v': np.ones(30, np.float32)}\n"
        "def make_small(): return np.float32([1, 2, 3])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_own_function(module, capsys):
    assert main(["spectrum", "mine:f", "--at", "mine:POINT", "-k", "3", "--json", "out.json"]) == 0
    report = json.loads((module / "out.json").read_text())
    expected = np.linalg.eigvalsh(np.float64(A) + A.T)
    np.testing.assert_allclose([p["eigenvalue"] for p in report["largest"]], expected[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose([p["eigenvalue"] for p in report["smallest"]], expected[:3], rtol=1e-5)
    assert all(0 <= p["residual"] < 1e-3 for end in ("largest", "smallest") for p in report[end])
    assert report["n"] == 30
    assert report["products"] > 10
    assert report["seconds_per_product"] > 0
    assert report["compilations"] > 0
    printed = capsys.readouterr().out
    assert "Hessian spectrum of mine:f" in printed
    assert f"{report['largest'][0]['eigenvalue']:.6g}" in printed


def test_function_of_few_numbers(module, capsys):
    assert main(["spectrum", "mine:small", "--at", "mine:make_small"]) == 0
    printed = capsys.readouterr().out
    assert [float(line.split()[0]) for line in printed.splitlines() if "e-" in line or "e+" in line][:3] == [
        108,
        48,
        12,
    ]


@pytest.mark.parametrize(("k", "largest", "smallest"), [("1", [108], [12]), ("2", [108, 48], [12])])
def test_each_eigenvalue_of_few_is_at_one_end(module, k, largest, smallest):
    assert main(["spectrum", "mine:small", "--at", "mine:make_small", "-k", k, "--json", "out.json"]) == 0
    report = json.loads((module / "out.json").read_text())
    for end, expected in (("largest", largest), ("smallest", smallest)):
        np.testing.assert_allclose([p["eigenvalue"] for p in report[end]], expected, rtol=1e-5)


def test_eigenvalues_that_do_not_converge(module, capsys, monkeypatch):
    def eigsh(A, k, **_):
        A @ np.ones(30, np.float32)
        raise ArpackNoConvergence("No convergence", np.ones(1), np.ones((30, 1), np.float32))

    monkeypatch.setattr(cli, "eigsh", eigsh)
    assert main(["spectrum", "mine:f", "--at", "mine:POINT"]) == 1
    assert "ARPACK did not converge on all eigenvalues asked for" in capsys.readouterr().out


def test_embedded_problem(capsys):
    assert main(["spectrum", "-k", "2"]) == 0
    printed = capsys.readouterr().out
    assert "scikit-learn's 1,797 digits" in printed
    assert "2,410 x 2,410 float64" in printed
    with jax.enable_x64(True):
        _, loss, x = digits_problem()
        expected = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(jnp.asarray(x)))
    rows = [float(line.split()[0]) for line in printed.splitlines() if "e-" in line]
    np.testing.assert_allclose(rows, [*expected[::-1][:2], *expected[:2]], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing:f", "--at", "mine:POINT"], "No module named 'nothing'"),
        (["mine:g", "--at", "mine:POINT"], "module 'mine' has no attribute 'g'"),
        (["mine:f", "--at", "mine:POINT", "--json", "no/such/folder.json"], "No such file or directory"),
        (["mine", "--at", "mine:POINT"], "got 'mine', expected MODULE:ATTRIBUTE"),
        (["mine:vector", "--at", "mine:POINT"], "Hessian got f with values of shapes"),
    ],
)
def test_errors(module, capsys, arguments, message):
    assert main(["spectrum", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["mine:f"], "a target and --at go together"), (["-k", "0"], "-k is 0, expected at least 1")],
)
def test_usage(module, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["spectrum", *arguments])
    assert message in capsys.readouterr().err


def test_without_scikit_learn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["spectrum"]) == 1
    assert "pip install 'linops[examples]'" in capsys.readouterr().err
