"""Every test: one thread, no network, its own folder for runs."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs ask for every core. Where several test processes do so, threads that spin while they wait
# take the cores from those that work: two layers took 270 ms instead of 2.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
