"""Which weights a training changes, one way per file.

A card has `produces` (the checkpoint form it leaves), `default_lr`, and
`apply(bundle, *, device, dtype, seed)`, which leaves the module to train in `bundle.module`.
"""
