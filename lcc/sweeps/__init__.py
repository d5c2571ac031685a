"""Sweeps: many points of one recipe, driven, launched and raced."""
