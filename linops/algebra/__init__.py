"""The algebra of operators. Not public: its names are in `linops`."""
