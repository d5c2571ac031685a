"""What a run is made of: model, checkpoint, data, task, metrics, distribution."""
