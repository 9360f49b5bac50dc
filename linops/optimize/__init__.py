"""`linops.optimize`: SciPy's optimization of JAX functions of pytrees, and second-order methods on the device."""

from linops.optimize.marquardt import levenberg_marquardt as levenberg_marquardt
from linops.optimize.trust_region import newton_cg as newton_cg
