"""A plugin for vLLM: visual tokens are dropped where the engine makes its prompts, before the language model.

Installed beside vLLM (`pip install 'pyramid-token-pruning[vllm]'`) it is found by itself, in every process of the engine. A
prompt goes through it in this order:

- `settings`: what the engine and the request ask for, as one `Pruner`, or None where nothing is to be pruned; refusals.
- `processor`: writes as many placeholders as tokens will stay, says in the picture's hash what they depend on.
- `model`, `encoding`: the encoder runs as the engine runs it, listened to; the method chooses; `reuse` remembers.
- `positions`: every token keeps the position it would have had.
- `families`: where things are in each model.
"""

from .plugin import register

__all__ = ["register"]
