"""How operators are copied."""

import copy
import pickle

import numpy as np


def ones(A):
    return np.ones(A.shape[1], A.dtype)


WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda A: pickle.loads(pickle.dumps(A))}
