"""The console script: `linops spectrum`."""

import argparse
import contextlib
import importlib
import importlib.metadata
import inspect
import json
import operator
import os
import sys
import sysconfig
import time
import traceback
import warnings

import jax
import jax.monitoring
import numpy as np

import linops
from linops.analysis import TOL, spectrum
from linops.arrays import float64_if
from linops.blas import one_blas_thread
from linops.derivatives.hessian import Hessian
from linops.embedded import digits_problem
from linops.files import replaced
from linops.iterate import compute
from linops.precision import PrecisionWarning
from linops.report import SpectrumInterrupted

INTERRUPTED = 130  # as shells have it


class CallError(Exception):
    """What is wrong is how the script was called."""


def script():
    """The process of the console script: one that was interrupted ends at once.

    Threads of XLA that still compile fault where Python takes down what they use.
    """
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments=None):
    """Run the console script; returns its exit status: 0, 1 where not all converged or an error was said, or 130.

    What the arguments cannot be is said beside their usage, and ends the process with 2.
    """
    parser, command = _parsers()
    options, more = parser.parse_known_args(arguments)
    if more:
        command.error(f"got {' '.join(more)} beside what it takes: linops spectrum MODULE:FUNCTION --at MODULE:POINT")
    if options.command is None:
        parser.print_help()
        return 0
    if options.k < 1:
        command.error(f"-k is {options.k}, expected at least 1")
    if bool(options.target) != bool(options.at):
        command.error("a target and --at go together: linops spectrum MODULE:FUNCTION --at MODULE:POINT")
    try:
        return _spectrum(options)
    except KeyboardInterrupt:
        _say("interrupted, before anything was known")
        return INTERRUPTED
    except CallError as error:
        _say(error)
        return 1
    except Exception as error:
        if not _is_of_linops(error):
            raise
        _say(error)
        return 1


def _parsers():
    parser = argparse.ArgumentParser(
        prog="linops", description="Matrix-free operators from derivatives of JAX functions."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {importlib.metadata.version('linops')}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    command = commands.add_parser(
        "spectrum",
        help="the Hessian spectrum of a scalar JAX function",
        description="The Hessian spectrum of a scalar JAX function at a point: eigenvalues at both ends with their "
        "residuals; trace, Frobenius norm, share of negative curvature and density with standard errors. Without a "
        "target: a small network trained on scikit-learn's digits, in float64. For your own function in float64, set "
        "the environment variable JAX_ENABLE_X64=1. The exit status is 0 where all converged.",
    )
    command.add_argument("target", nargs="?", metavar="MODULE:FUNCTION", help="a scalar JAX function of a pytree")
    command.add_argument("--at", metavar="MODULE:POINT", help="the point: a pytree, or a function that returns it")
    command.add_argument("-k", type=int, default=5, help="how many eigenvalues at each end (default: %(default)s)")
    command.add_argument("--plot", metavar="FILE", help="draw the density into a file, such as spectrum.png")
    command.add_argument("--json", metavar="FILE", help="write the report to a file as well")
    command.add_argument(
        "--tol", type=float, default=TOL, help="residuals, relative to each eigenvalue (default: %(default)s)"
    )
    command.add_argument("--maxiter", type=int, help="how often the Lanczos basis may be filled")
    command.add_argument("--save", metavar="FILE", help="keep the run in a file, from which the same call goes on")
    command.add_argument("--seed", type=int, default=0, help="of what is random (default: %(default)s)")
    return parser, command


def _spectrum(options):
    """Find, show and write; the exit status."""
    _require_plots(options.plot)
    compilations = _listen_to_compilations()
    start = time.perf_counter()
    with contextlib.ExitStack() as stack, float64_if(not options.target), one_blas_thread():
        json_path, plot_path = (_written(stack, path) for path in (options.json, options.plot))
        title, f, x = _user_problem(options) if options.target else digits_problem()
        H = _hessian(f, x)
        if options.target:
            _require_value(H, title)
        try:
            key = jax.random.key(options.seed)
            asked = {"tol": options.tol, "maxiter": options.maxiter, "save": options.save}
            report = spectrum(H, options.k, key=key, progress=True, **asked)
        except SpectrumInterrupted as interrupt:
            _show(f"Hessian of {title}\n{interrupt.report}")
            ends = ["interrupted", *["no report was written"] * bool(options.json or options.plot)]
            if options.save and os.path.exists(options.save):
                ends.append(f"the same call goes on from {options.save}")
            _say("; ".join(ends))
            return INTERRUPTED
        cost = {
            "seconds": time.perf_counter() - start,
            "compilations": len(compilations),
            "seconds_compiling": sum(compilations),
        }
        _show(
            f"Hessian of {title}\n{report}\n\n  {cost['seconds']:.1f} s on {report.device}, "
            f"{cost['compilations']} compilations of {cost['seconds_compiling']:.1f} s in it"
        )
        if json_path:
            with open(json_path, "w") as file:
                json.dump({"title": title, **report.to_dict(), **cost}, file, indent=2, allow_nan=False)
                file.write("\n")
        if plot_path:
            report.plot(plot_path)
    return 0 if report.converged else 1


# What the user names.


def _user_problem(options):
    """The name, the function and the point that a user gives."""
    f, x = _load(options.target), _load(options.at)
    if not callable(f) or inspect.isclass(f):
        raise CallError(f"{options.target} is {'a class' if callable(f) else type(f).__name__}, expected a function")
    if len(needed := _needed(f)) > 1:
        raise CallError(
            f"{options.target} needs {', '.join(needed)}, expected a function of the point alone, which --at names: "
            "write one that hands over the data, def loss(x): return f(x, *data)"
        )
    if not callable(x):
        return options.target, f, x
    try:
        return options.target, f, x()
    except TypeError as error:
        if error.__traceback__.tb_next:  # raised in it
            raise
        raise CallError(f"{options.at}: {error}; expected a pytree, or a function of nothing that returns it") from None


def _needed(f):
    """The names of the arguments that a function cannot do without, as far as Python knows them."""
    with contextlib.suppress(ValueError):
        parameters = inspect.signature(f).parameters.values()
        return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return []


def _load(name):
    """The attribute that MODULE:ATTRIBUTE names; modules of the current folder are found too."""
    module, _, attribute = name.rpartition(":")
    as_module = (module or name).removesuffix(".py").replace(os.sep, ".").strip(".")
    if not module or not attribute or module.endswith(".py") or os.sep in module:
        is_path = all(map(str.isidentifier, as_module.split(".")))
        example = f"{as_module if is_path else 'model'}:{attribute if module and attribute else 'loss'}"
        raise CallError(f"got {name!r}, expected MODULE:ATTRIBUTE, as Python imports it, such as {example}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # one that the user's module imports
        raise CallError(f"{error}, looked for in {os.getcwd()} and where Python looks") from None
    try:
        return operator.attrgetter(attribute)(loaded)
    except AttributeError as error:
        raise CallError(error) from None


def _hessian(f, x):
    """The Hessian; float64 that is asked for and not had is said."""
    dtypes = {np.dtype(getattr(leaf, "dtype", type(leaf))) for leaf in jax.tree.leaves(x)}
    enabled, wide = jax.config.jax_enable_x64, any(dtype in (np.float64, np.complex128) for dtype in dtypes)
    if wide and not enabled:
        _say("the point is in float64, and float32 is what is computed in: set JAX_ENABLE_X64=1 for float64")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrecisionWarning)
            return Hessian(f, x)
    if enabled and not wide:
        _say("float64 is enabled, but the point is not in float64, and what is computed in is what the point is in")
    return Hessian(f, x)


def _require_value(H, title):
    """Refuse a point at which there is no Hessian, whatever products with it say."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(H.x)):
        raise CallError("the point has NaN or infinite entries, expected finite numbers")
    value = compute(_value, H)
    if not np.isfinite(value):
        raise CallError(f"{title} is {value} at the point, expected a finite number")


def _value(H):
    return H.map.function(H.x)


# Files.


def _require_plots(path):
    """Refuse a figure that could not be written in the end."""
    if path is None:
        return
    try:
        from linops.plot import FORMATS
    except ImportError:
        raise CallError("--plot needs Matplotlib, which is not installed: pip install 'linops[plot]'") from None
    if os.path.splitext(path)[1][1:].lower() not in FORMATS:
        raise CallError(f"got --plot {path}, expected a name that ends as one of .{', .'.join(FORMATS)}")


def _written(stack, path):
    """The name of a file that takes the place of `path` as a stack of contexts ends, if something is written to it."""
    if path is None or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
        return path  # or a device, or a pipe
    try:
        return stack.enter_context(replaced(path))
    except OSError as error:
        raise CallError(f"{path} cannot be written: {error.strerror}") from None


# What is said.


def _show(text):
    """Print to stdout, in silence where nobody reads it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes in the end goes there


def _say(text):
    print(f"linops: {text}", file=sys.stderr)


def _is_of_linops(error):
    """Whether linops raised it, and no code of the user's was on the way: then its message says all."""
    ours, theirs = (os.path.dirname(package.__file__) for package in (linops, jax))
    standard = sysconfig.get_path("stdlib")

    def is_no_user(file):
        return file.startswith((ours, theirs)) or (file.startswith(standard) and "site-packages" not in file)

    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return files[-1].startswith(ours) and all(map(is_no_user, files))


def _listen_to_compilations():
    """A list to which JAX adds the seconds of each XLA compilation from now on."""
    compilations = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return compilations


if __name__ == "__main__":
    script()
