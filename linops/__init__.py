"""Matrix-free linear operators from JAX functions, for SciPy's solvers."""

from linops.precision import PrecisionWarning as PrecisionWarning
from linops.space import Space as Space
from linops.program.missing import MissingRule as MissingRule
from linops.node import static as static
from linops.budget import memory_limit as memory_limit

from linops.algebra.operator import Operator as Operator
from linops.algebra.blocks import BlockDiagonal as BlockDiagonal

from linops.matrix import Diagonal as Diagonal
from linops.matrix import Identity as Identity
from linops.matrix import LowRank as LowRank
from linops.matrix import Matrix as Matrix
from linops.derivatives.jacobian import Jacobian as Jacobian
from linops.derivatives.hessian import Hessian as Hessian
from linops.derivatives.mixed import MixedDerivative as MixedDerivative
from linops.derivatives.gauss_newton import GaussNewton as GaussNewton
from linops.derivatives.gauss_newton import JacobianGram as JacobianGram
from linops.derivatives.fisher import Fisher as Fisher
from linops import losses as losses

from linops.derivatives.batched import batch_hessian as batch_hessian
from linops.derivatives.batched import batch_jacobian as batch_jacobian
from linops.verify.report import check as check

from linops.monitoring import MatvecLimit as MatvecLimit
from linops.monitoring import monitor as monitor
from linops import linalg as linalg
from linops.linalg.inverses import inverse as inverse
from linops.sensitivity import Sensitivity as Sensitivity
from linops import estimate as estimate
from linops import optimize as optimize
from linops import precondition as precondition
from linops.analysis import spectrum as spectrum

__version__ = "0.1.0"
