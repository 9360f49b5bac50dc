"""What linops uses of JAX, SciPy and NumPy beside their public names, and what happens where it is gone."""

import sys

import jax
import numpy as np
from scipy.sparse.linalg import aslinearoperator

# What SciPy 1.18 sets in the `__init__` of operators, which ours do not run; before there was none, and none is missed.
ARRAY_NAMESPACE = getattr(aslinearoperator(np.eye(1)), "_xp", None)

# Modules of SciPy that look up routines of LAPACK or ARPACK by A.dtype, and say of a dtype that is not NumPy's own
# "did not understand one of the types; 'None' not accepted", as they would again if they had other names.
_OF_LAPACK = {"scipy.sparse.linalg._eigen.arpack.arpack", "scipy.sparse.linalg._eigen._svds"}


def backends_are_initialized():
    """Whether JAX computes in this process already. Where it does not tell, it is taken to: forks are refused then."""
    return getattr(jax._src.xla_bridge, "backends_are_initialized", lambda: True)()


def is_outermost():
    """Whether no jit, vmap or grad is in progress. Where JAX does not tell, it is taken not to be: that costs speed."""
    return getattr(jax._src.core, "trace_state_clean", lambda: False)()


def keep_weakly(*types):
    """Have JAX's caches of types hold parameters of these types weakly. Where it cannot, it keeps the last of them."""
    getattr(jax._src.util, "weakref_cache_key_types", set()).update(types)


def is_called_by_lapack():
    """Whether the caller's caller is a module of SciPy that takes the dtypes of LAPACK only."""
    return sys._getframe(2).f_globals.get("__name__") in _OF_LAPACK


def is_called_by_cloudpickle():
    """Whether the pickler at work takes any function, as that of joblib and dask; not, if it has another name."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").rpartition(".")[2] == "cloudpickle":
            return True
        frame = frame.f_back
    return False


def of_numpy(func, args, kwargs):
    """What NumPy answers by itself to a function that it handed to an operator; else an AttributeError."""
    return func._implementation(*args, **kwargs)
