"""The console script, most of it in this process: its report, its files, its errors, and how it ends."""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

import linops
from linops import cli
from linops.cli import main
from linops.embedded import digits_problem

A = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
MODULE = """
import jax.numpy as jnp, numpy as np
A = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
def f(x): return 0.5 * x['v'] @ jnp.asarray(A + A.T) @ x['v']
def small(x): return jnp.sum(x**4)
def vector(x): return x['v']
def of_two(x, y): return 0.0
def wrong_type(x): return jnp.sum(x['v']) + 'a'
def wrong_name(x): return x['v'].nothing
def wrong_value(x): raise ValueError('of mine')
def interrupted(x): raise KeyboardInterrupt
def on_a_line(x): return jnp.sum(jnp.linspace(-1, 1, 2000) * x**2)
LINE = np.ones(2000, np.float32)
POINT = {'v': np.ones(30, np.float32)}
WIDE = {'v': np.ones(30)}
def logarithm(x): return jnp.sum(jnp.log(-x['v']))
GAP = {'v': np.full(30, np.nan, np.float32)}
def make_small(): return np.float32([1, 2, 3])
class Model: pass
def make_nothing(): return missing
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the current folder."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "needs.py").write_text("import something_else")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_own_function(module, capsys):
    (module / "out.json").write_text("of last week")
    (module / "out.json").chmod(0o640)
    arguments = ["spectrum", "mine:f", "--at", "mine:POINT", "-k", "3", "--json", "out.json", "--plot", "out.PNG"]
    assert main(arguments) == 0
    report = json.loads((module / "out.json").read_text())
    expected = np.linalg.eigvalsh(np.float64(A) + A.T)
    np.testing.assert_allclose([p["eigenvalue"] for p in report["largest"]], expected[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose([p["eigenvalue"] for p in report["smallest"]], expected[:3], rtol=1e-5)
    assert all(0 <= p["residual"] < 1e-3 for end in ("largest", "smallest") for p in report[end])
    np.testing.assert_allclose(report["frobenius_norm"]["value"], np.linalg.norm(A + A.T), rtol=1e-5)
    assert report["title"] == "mine:f"
    assert report["n"] == 30
    assert report["matvecs"] == 36
    assert report["seconds"] > report["seconds_compiling"] > 0
    assert report["compilations"] > 0
    printed, said = capsys.readouterr()
    assert "Hessian of mine:f" in printed
    assert f"{report['largest'][0]['eigenvalue']:.6g}" in printed
    assert said == ""
    assert (module / "out.PNG").read_bytes().startswith(b"\x89PNG")
    assert (module / "out.json").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in module.iterdir() if path.is_file()) == [
        "mine.py",
        "needs.py",
        "out.PNG",
        "out.json",
    ]


def test_k_that_is_cut(module, capsys):
    assert main(["spectrum", "mine:small", "--at", "mine:make_small"]) == 0
    printed = capsys.readouterr().out
    assert "k = 5 at each end is more than there are: each of the 3 is shown once" in printed
    assert [float(line.split()[0]) for line in printed.splitlines() if "e-" in line or "e+" in line] == [108, 48, 12]


def test_embedded_problem(capsys):
    assert main(["spectrum", "-k", "2", "--seed", "3", "--tol", "1e-5"]) == 0
    printed = capsys.readouterr().out
    assert "scikit-learn's 1,797 digits" in printed
    assert "2410x2410 Hessian with dtype=float64" in printed
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        _, loss, x = digits_problem()
        slope = jax.grad(loss)
        product = jax.jit(lambda v: jax.jvp(slope, (jnp.asarray(x),), (v,))[1])
        H = LinearOperator((len(x), len(x)), matvec=product, dtype=np.float64)
        ends = [eigsh(H, k=2, which=which, v0=rng.normal(size=len(x)))[0] for which in ("LA", "SA")]
        forms = [v @ np.asarray(product(v)) for v in rng.choice([-1.0, 1.0], (64, len(x)))]
    rows = [float(line.split()[0]) for line in printed.splitlines() if "e-" in line]
    np.testing.assert_allclose(rows, [*np.sort(ends[0])[::-1], *np.sort(ends[1])], rtol=1e-5)
    trace, error = next(line.split()[1::2] for line in printed.splitlines() if line.strip().startswith("trace"))
    assert abs(float(trace) - np.mean(forms)) < 3 * np.hypot(float(error), np.std(forms) / 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing:f", "--at", "mine:POINT"], "and where Python looks"),
        (["mine.f:f", "--at", "mine:POINT"], "linops: No module named 'mine.f'; 'mine' is not a package"),
        (["mine:g", "--at", "mine:POINT"], "linops: module 'mine' has no attribute 'g'"),
        (["mine", "--at", "mine:POINT"], "got 'mine', expected MODULE:ATTRIBUTE, as Python imports it, such as mine:l"),
        (["my/net.py:f", "--at", "mine:POINT"],
         "'my/net.py:f', expected MODULE:ATTRIBUTE, as Python imports it, such as my.net:f"),
        (["mine:POINT", "--at", "mine:POINT"], "mine:POINT is dict, expected a function"),
        (["mine:Model", "--at", "mine:POINT"], "mine:Model is a class, expected a function"),
        (["mine:vector", "--at", "mine:POINT"], "Hessian got f with values of shapes"),
        (["mine:f", "--at", "mine:f"], "argument: 'x'; expected a pytree, or a function of nothing"),
        (["mine:f", "--at", "np.ones(3)"], "expected MODULE:ATTRIBUTE, as Python imports it, such as model:"),
        (["mine:f", "--at", "mine:GAP"], "the point has NaN or infinite entries, expected finite"),
        (["mine:logarithm", "--at", "mine:POINT"], "mine:logarithm is nan at the point, expected a finite"),
        (["mine:of_two", "--at", "mine:POINT"],
         "mine:of_two needs x, y, expected a function of the point alone, which --at names"),
        (["mine:on_a_line", "--at", "mine:LINE", "--tol", "2"], "eigsh got tol=2.0, expected 0 <= tol < 1"),
        (["mine:f", "--at", "mine:POINT", "--json", "no/such/folder.json"],
         "no/such/folder.json cannot be written: No such file"),
        (["mine:f", "--at", "mine:POINT", "--json", "."], ". cannot be written: it is a folder, expected a file"),
        (["mine:f", "--at", "mine:POINT", "--plot", "out.xyz"],
         "got --plot out.xyz, expected a name that ends as one of ."),
    ],
)  # fmt: skip
def test_errors_of_the_call(module, capsys, arguments, message):
    """One line, and files of last week are whole."""
    (module / "kept.json").write_text("of last week")
    assert main(["spectrum", "--json", "kept.json", *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (module / "kept.json").read_text() == "of last week"
    assert len(list(module.glob(".*"))) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["mine:wrong_type", "--at", "mine:POINT"], TypeError),
        (["mine:wrong_name", "--at", "mine:POINT"], AttributeError),
        (["mine:wrong_value", "--at", "mine:POINT"], ValueError),
        (["mine:f", "--at", "mine:make_nothing"], NameError),
        (["needs:f", "--at", "mine:POINT"], ModuleNotFoundError),
    ],
)
def test_errors_of_the_user_keep_their_traceback(module, arguments, error):
    with pytest.raises(error) as caught:
        main(["spectrum", *arguments])
    assert any(str(entry.path).startswith(str(module)) for entry in caught.traceback)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine:f"], "a target and --at go together"),
        (["-k", "0"], "-k is 0, expected at least 1"),
        (["--tol", "small"], "argument --tol: invalid float value"),
        (["mine:f", "mine:POINT"], "got mine:POINT beside what it takes: linops spectrum MODULE:FUNCTION --at"),
    ],
)
def test_usage(module, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["spectrum", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_alone(capsys, monkeypatch):
    assert main([]) == 0
    assert "spectrum" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["linops", "--version"])
    for module in "linops", "linops.cli":
        with warnings.catch_warnings(action="ignore"), pytest.raises(SystemExit) as ended:  # of a module run anew
            runpy.run_module(module, run_name="__main__")
        assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("linops ")


def test_float64_that_is_not_had(module, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["spectrum", "mine:f", "--at", "mine:WIDE", "-k", "2"]) == 0
    printed, said = capsys.readouterr()
    assert "dtype=float32" in printed
    assert (
        said
        == "linops: the point is in float64, and float32 is what is computed in: set JAX_ENABLE_X64=1 for float64\n"
    )
    with jax.enable_x64(True):
        assert main(["spectrum", "mine:f", "--at", "mine:WIDE", "-k", "2"]) == 0
        assert capsys.readouterr().err == ""
        assert main(["spectrum", "mine:f", "--at", "mine:POINT", "-k", "2"]) == 0
    assert "float64 is enabled, but the point is not in float64" in capsys.readouterr().err


def test_not_all_converge(module, capsys, monkeypatch):
    """The report says so, and so does the exit status; options go where they are meant to go."""
    report = linops.spectrum(np.eye(4, dtype=np.float32), 1)
    report = dataclasses.replace(report, eigenvalues=np.array([1, np.nan]), reason="the limit was reached")
    asked = {}

    def spectrum(A, k, **options):
        asked.update(options, k=k)
        return report

    monkeypatch.setattr(cli, "spectrum", spectrum)
    arguments = ["-k", "1", "--maxiter", "7", "--tol", "1e-7", "--json", "out.json"]
    assert main(["spectrum", "mine:f", "--at", "mine:POINT", *arguments]) == 1
    assert "1 of 2 eigenvalues are known: the limit was reached" in capsys.readouterr().out
    assert (asked["k"], asked["maxiter"], asked["tol"]) == (1, 7, 1e-7)
    assert json.loads((module / "out.json").read_text())["largest"][0]["eigenvalue"] is None


def test_interrupted(module, capsys, monkeypatch):
    """What is known is shown; files are as they were."""
    (module / "out.json").write_text("of last week")
    arguments = ["spectrum", "--at", "mine:POINT", "--json", "out.json"]
    assert main([*arguments, "mine:interrupted"]) == 130
    assert capsys.readouterr().err == "linops: interrupted, before anything was known\n"
    report = linops.spectrum(np.eye(4, dtype=np.float32), 1)

    def interrupted(*_, **__):
        raise cli.SpectrumInterrupted(report)

    monkeypatch.setattr(cli, "spectrum", interrupted)
    assert main([*arguments, "mine:f", "--save", "mine.py"]) == 130
    printed, said = capsys.readouterr()
    assert str(report) in printed
    assert said == "linops: interrupted; no report was written; the same call goes on from mine.py\n"
    assert (module / "out.json").read_text() == "of last week"


def test_without_optional_packages(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["spectrum"]) == 1
    assert "pip install 'linops[examples]'" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "linops.plot", raising=False)
    monkeypatch.delattr(linops, "plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["spectrum", "mine:f", "--at", "mine:POINT", "--plot", "out.png"]) == 1
    assert "--plot needs Matplotlib, which is not installed: pip install 'linops[plot]'" in capsys.readouterr().err


def test_in_a_process(module):
    """A pipe that is closed is no error and no noise, Ctrl-C no traceback; Matplotlib is not imported for nothing."""
    code = (
        "import sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from linops.cli import main; code = main(); assert 'matplotlib' not in sys.modules; sys.exit(code)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.path.dirname(os.path.dirname(linops.__file__)),
        "JAX_PLATFORMS": "cpu",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-c", code, "spectrum", "--at", "mine:POINT"]
    closed = subprocess.Popen([*command, "mine:f", "--json", "out.json"], **pipes)
    (module / "waits.py").write_text("import time\nprint('waits', flush=True)\ntime.sleep(100)")
    waiting = subprocess.Popen([*command, "waits:f"], **pipes)
    closed.stdout.close()
    assert closed.stderr.read() == ""
    assert closed.wait() == 0
    assert json.loads((module / "out.json").read_text())["converged"]
    assert waiting.stdout.readline() == "waits\n"
    waiting.send_signal(signal.SIGINT)
    assert waiting.stderr.read() == "linops: interrupted, before anything was known\n"
    assert waiting.wait() == 130
    for process in (closed, waiting):
        process.stderr.close()
        process.stdout.close()
