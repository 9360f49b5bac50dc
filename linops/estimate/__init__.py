"""Estimates with standard errors, from products with random vectors."""

from linops.estimate.densities import Density as Density
from linops.estimate.densities import spectral_density as spectral_density
from linops.estimate.determinants import logdet as logdet
from linops.estimate.diagonals import diagonal as diagonal
from linops.estimate.norms import frobenius_norm as frobenius_norm
from linops.estimate.quadratic import Bracketed as Bracketed
from linops.estimate.quadratic import quadratic_form as quadratic_form
from linops.estimate.result import Estimate as Estimate
from linops.estimate.traces import trace as trace
