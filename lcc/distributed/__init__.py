"""Distributed training: process groups, collectives, FSDP, gradients, sharded state."""
