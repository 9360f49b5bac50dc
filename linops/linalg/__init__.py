"""`linops.linalg`: SciPy's sparse linear algebra on the device, on trees, under jit."""

from linops.linalg.records import NoConvergence as NoConvergence
from linops.linalg.records import Record as Record
