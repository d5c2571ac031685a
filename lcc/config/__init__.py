"""Configuration: bounded YAML, composition by Hydra, strict decoding into cards."""
