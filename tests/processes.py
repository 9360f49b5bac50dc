"""Scripts in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jax

import linops


def in_subprocess(*arguments, **environment):
    """Run Python with these arguments and environment variables; its warnings are errors."""
    with started(*arguments, **environment) as process:
        printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-4000:]
    return printed


def started(*arguments, **environment):
    """The process, which goes on."""
    path = os.pathsep.join([str(Path(linops.__file__).parents[1]), str(Path(__file__).parent)])
    quick = str(jax.config.read("jax_disable_most_optimizations"))
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), environment.pop("XLA_FLAGS", "")])
    environment = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": quick, **environment}
    environment["XLA_FLAGS"] = flags
    return subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
