"""Matrix-free linear operators from JAX functions, for SciPy's solvers."""

from linops.precision import PrecisionWarning as PrecisionWarning
from linops.space import Space as Space
from linops.program.missing import MissingRule as MissingRule
from linops.products import static as static

from linops.algebra import Operator as Operator

from linops.matrix import Diagonal as Diagonal
from linops.matrix import Identity as Identity
from linops.matrix import Matrix as Matrix
from linops.jacobian import Jacobian as Jacobian
from linops.hessian import Hessian as Hessian
from linops.gauss_newton import GaussNewton as GaussNewton
from linops.gauss_newton import JacobianGram as JacobianGram

from linops.dense import batch_hessian as batch_hessian
from linops.dense import batch_jacobian as batch_jacobian
from linops.check import check as check

__version__ = "0.1.0"
