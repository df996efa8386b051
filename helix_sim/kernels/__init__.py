"""The reference GPU kernel and its NumPy twin; imported by calibration and the tests alone."""
