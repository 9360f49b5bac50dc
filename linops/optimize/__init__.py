"""`linops.optimize`: SciPy's optimization of JAX functions of pytrees, and second-order methods on the device."""

from linops.optimize.fitting import least_squares as least_squares
from linops.optimize.marquardt import levenberg_marquardt as levenberg_marquardt
from linops.optimize.minimizing import minimize as minimize
from linops.optimize.objective import Objective as Objective
from linops.optimize.roots import root as root
from linops.optimize.trust_region import newton_cg as newton_cg
from linops.optimize.uncertainty import Fit as Fit
