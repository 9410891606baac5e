"""Serving pruned models: `vllm` is a plugin for vLLM, `ray` answers files of questions on Ray Data."""
