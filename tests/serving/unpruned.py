"""Log-probabilities of vLLM without the plugin, for test_engine.py, which compares them with those of its own engine."""

import os

os.environ.update(VLLM_PLUGINS="", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1")

from vllm import LLM

from ptp.tiny import WEIGHTS

from .asking import ask, log_probabilities, questions, request

if __name__ == "__main__":
    llm = LLM(
        str(WEIGHTS), dtype="float32", max_model_len=1024, block_size=32, max_num_batched_tokens=96, max_num_seqs=64,
        enforce_eager=True, limit_mm_per_prompt={"image": 3}, seed=0,
    )  # fmt: skip
    found = ask(llm, [request(llm, [[name, asked]], None) for name, asked in questions()])
    print([log_probabilities(output) for output in found])
