"""The shelf of optimizers: how gradients change weights.

A card has `build(groups, lr)`, and `default_lr` where the method's rate, meant for AdamW, would not
do. It may have `state_bytes` (kept of a parameter; 8 unless said) and `shardable` (whether FSDP may
cut its state; yes unless said).
"""
