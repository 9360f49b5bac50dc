"""Scripts in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jax

import linops


def in_subprocess(*arguments, **environment):
    """Run Python with these arguments and environment variables; its warnings are errors."""
    path = os.pathsep.join([str(Path(linops.__file__).parents[1]), str(Path(__file__).parent)])
    quick = str(jax.config.read("jax_disable_most_optimizations"))
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), environment.pop("XLA_FLAGS", "")])
    environment = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": quick, **environment}
    environment["XLA_FLAGS"] = flags
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
