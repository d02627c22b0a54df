"""Completions from the policy's own parameters, on a paged KV cache in the trainer's process."""
