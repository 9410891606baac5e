"""Serving pruned models: `vllm` is a plugin for vLLM."""
