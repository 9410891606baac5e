"""Where things are in the models of vLLM."""
