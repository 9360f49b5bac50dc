"""`linops.check`: whether an operator is what it claims to be. Not public: the function is in `linops`."""
