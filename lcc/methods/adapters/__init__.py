"""The shelf of adapters: which weights a training changes.

A card has `produces` (the checkpoint form it leaves), `merges` (whether its adapter can become part
of the weights), `over_packed` (whether packed weights may stand below it), `default_lr`, and
`apply(bundle, *, device, dtype, seed)`, which leaves the module to train in `bundle.module`. It may
have `lr_ratios` (part of a parameter's name → its share of the learning rate) and
`allocator(model)` (see engine/rank_allocation).
"""
