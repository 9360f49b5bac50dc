"""A user's function as data; not a public namespace: what users call is in `linops`."""
