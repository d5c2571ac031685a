"""lcc: fine-tune and compress language models from one YAML recipe."""
