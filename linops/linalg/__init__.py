"""`linops.linalg`: SciPy's sparse linear algebra on the device, on trees, under jit."""

from linops.linalg.definite import cg as cg
from linops.linalg.functions import expm_multiply as expm_multiply
from linops.linalg.functions import funm_multiply_krylov as funm_multiply_krylov
from linops.linalg.general import gmres as gmres
from linops.linalg.indefinite import minres as minres
from linops.linalg.inverses import inverse as inverse
from linops.linalg.least_squares import lsmr as lsmr
from linops.linalg.records import Interrupted as Interrupted
from linops.linalg.records import NoConvergence as NoConvergence
from linops.linalg.records import Record as Record
from linops.linalg.singular import svds as svds
from linops.linalg.symmetric import eigsh as eigsh
