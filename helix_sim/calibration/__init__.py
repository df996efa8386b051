"""Calibrated clocks: shapes fitted to measured kernels, from public tables or from this machine's own GPU."""
