"""Classes, record schema and input pipeline: from files to batches, nothing of the model."""
