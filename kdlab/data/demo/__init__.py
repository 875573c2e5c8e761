"""Embedded tasks: small data sets made on the spot, so that a first run needs no network."""
