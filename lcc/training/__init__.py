"""Training: one loop for pretraining, fine-tuning, healing and distillation."""
