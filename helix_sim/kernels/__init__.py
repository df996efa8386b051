"""The reference GPU kernel, its NumPy twin, and the layer that really runs; for calibration and the tests alone."""
