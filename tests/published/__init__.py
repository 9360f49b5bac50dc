"""Test problems with published answers, for tests and benchmarks: `nist` for regression, `mgh` for minimization."""
