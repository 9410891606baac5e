"""One engine for all tests of a session; where vLLM is not installed they say so and are skipped."""

import importlib.util
import os

import pytest

HAS_VLLM = importlib.util.find_spec("vllm") is not None
if HAS_VLLM:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # tests look into the model


@pytest.fixture(scope="session")
def vllm():
    return pytest.importorskip(
        "vllm", reason="vLLM is not installed here: `make test-vllm` runs these in an environment of its own"
    )


@pytest.fixture(scope="session")
def engine(vllm):
    """The embedded model; steps of 96 tokens cut its pictures of 208 visual tokens."""
    from ptp.tiny import WEIGHTS

    return vllm.LLM(
        str(WEIGHTS), dtype="float32", max_model_len=1024, block_size=32, max_num_batched_tokens=96, max_num_seqs=64,
        enforce_eager=True, limit_mm_per_prompt={"image": 3}, enable_mm_embeds=True, seed=0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def model_of(engine):
    """The model inside the engine."""
    found = []
    engine.apply_model(found.append)
    return found[0]


@pytest.fixture
def fresh(engine):
    """The engine without anything that it remembers of earlier requests."""
    engine.reset_prefix_cache()
    engine.reset_mm_cache()
    engine.llm_engine.reset_encoder_cache()
    return engine


@pytest.fixture(scope="session")
def reference(vllm):
    """The same model in transformers."""
    import ptp

    return ptp.load()
