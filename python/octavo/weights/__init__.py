"""Checkpoints: the safetensors reader, a folder of shards, and their tensors' way into a model."""
