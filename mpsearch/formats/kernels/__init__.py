"""Rounding kernels in torch; imported only when a format is used."""
