"""Calibration: a walk over the blocks of a model that collects statistics of layer inputs."""
