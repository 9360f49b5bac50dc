"""Operators made of derivatives of functions. Not public: its names are in `linops`."""
