"""The loops, each written once: training, calibration, decoding, scoring."""
