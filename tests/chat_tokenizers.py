"""Tokenizers that cut words as published ones do."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Which sign is older, the red one or this one? What does it say? Be brief and polite. The user is a careful reader.",
    "system user assistant model User: Assistant: USER: ASSISTANT: [INST] [/INST] Frame1: Picture 1: Look at this picture.",
] * 40


@cache
def byte_level(*special: str, plain: tuple[str, ...] = (), bos: str | None = None) -> PreTrainedTokenizerFast:
    """As of GPT-2, Qwen and Llama 3: any byte is a token, words keep the space before them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return _finished(made, special, plain, bos)


@cache
def sentencepiece(*special: str, prefix: bool = True, bos: str = "<s>") -> PreTrainedTokenizerFast:
    """As of Llama 2 and Mistral (with `prefix`) and Gemma: ▁ for spaces, unknown characters as bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    pieces = json.loads(trained.to_str())["model"]
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces["vocab"], *(() if prefix else ("\n", "\n\n"))]
    merges = [tuple(pair) for pair in pieces["merges"]] + ([] if prefix else [("\n", "\n")])
    numbers = {piece: n for n, piece in enumerate(dict.fromkeys(vocabulary))}
    made = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _finished(made, special, (), bos)


def _finished(made: Tokenizer, special: tuple[str, ...], plain: tuple[str, ...], bos: str | None) -> PreTrainedTokenizerFast:
    all_special = [*special, *([bos] if bos and bos not in special else []), "<pad>"]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in all_special])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    if bos:
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token=bos)
