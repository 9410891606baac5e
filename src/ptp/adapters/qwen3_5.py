"""Qwen3.5 and its mixture of experts, in the Hugging Face format."""

from .qwen_vl import QwenVLAdapter


class Qwen35Adapter(QwenVLAdapter):
    """Pictures as in Qwen3-VL, without DeepStack; a language model in which one layer of four attends.

    The other layers pass on a state (gated delta rule, behind a convolution over four tokens). A token that left is absent
    there from `prune_layer` on: it writes nothing into the state, does not make it fade, and its neighbours become each
    other's in the convolution. What the text attends to is read in the nearest layer below that attends.
    """

    family = "Qwen3.5"
    model_types = ("qwen3_5", "qwen3_5_moe")
    limits = (
        "with prune_layer above 0, the states of the layers below it have seen the dropped tokens and keep what they took "
        "from them. Methods that read attention need a layer above the first that attends (3): prune_layer=4 or later. Its KV "
        "caches cannot be cropped, nor can pictures that go on from one be pruned in a batch of rows of different length."
    )
