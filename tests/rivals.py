"""Models with tiles of 16 and of 576 visual tokens, and their prefill layer by layer: for loops from the rivals' rules."""

from dataclasses import dataclass
from functools import cache

import torch
from conftest import embeddings, picture, prompt, tokenizer
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from ptp.loader import pictures_only
from ptp.testing import sharpen
from ptp.tiny.model import IMAGE_TOKEN

LAYERS = 8


@dataclass(frozen=True)
class Case:
    """A picture of `grid` tiles, each of `side` pixels."""

    side: int
    grid: tuple[int, int]

    @property
    def size(self) -> int:
        """Visual tokens of a tile."""
        return (self.side // 28) ** 2

    @property
    def tiles(self) -> int:
        """With the thumbnail."""
        columns, rows = self.grid
        return columns * rows + (columns * rows > 1)

    @property
    def tokens(self) -> int:
        return self.tiles * self.size


CASES = {
    "one tile of 16": Case(112, (1, 1)), "seven of 16": Case(112, (3, 2)),
    "one of 576": Case(672, (1, 1)), "three of 576": Case(672, (2, 1)),
}  # fmt: skip


@cache
def model_of(case: Case, attention: str = "sdpa") -> InternVLForConditionalGeneration:
    """A random InternVL of 8 layers; the same weights under every attention."""
    eos, pad, image = tokenizer().convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", IMAGE_TOKEN])
    config = InternVLConfig(
        vision_config=dict(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, attention_bias=True,
            image_size=[case.side] * 2, patch_size=[14, 14], layer_scale_init_value=1.0,
        ),
        text_config=dict(
            model_type="qwen2", hidden_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
            head_dim=12, intermediate_size=96, vocab_size=len(tokenizer()), max_position_embeddings=4096,
            eos_token_id=eos, pad_token_id=pad, bos_token_id=None,
        ),
        image_token_id=image, image_seq_length=case.size, tie_word_embeddings=False, attn_implementation=attention,
    )  # fmt: skip
    return sharpen(InternVLForConditionalGeneration(config).eval())


@cache
def inputs_of(case: Case) -> dict[str, torch.Tensor]:
    tiles = GotOcr2ImageProcessorPil(
        size={"height": case.side, "width": case.side}, crop_to_patches=True, min_patches=1, max_patches=6
    )
    columns, rows = case.grid
    image = picture(5, case.grid).resize((columns * case.side, rows * case.side))
    processor = pictures_only(InternVLProcessor)(
        tiles, tokenizer(), None, image_seq_length=case.size, chat_template=tokenizer().chat_template
    )
    talk = [{"role": "system", "content": "Be brief."}, *prompt(image)]
    made = processor.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"}
    )
    assert len(made["pixel_values"]) == case.tiles
    return dict(made)


@cache
def vision_maps(case: Case) -> tuple[torch.Tensor, ...]:
    """(T, H, 1 + P, 1 + P) attention of every vision layer."""
    with torch.no_grad():
        tower = model_of(case, "eager").model.vision_tower
        return tower(inputs_of(case)["pixel_values"], output_attentions=True).attentions


def on_tokens(case: Case, patches: torch.Tensor) -> list[float]:
    """(T, P) patch scores -> a score for each visual token: the mean of the 2 x 2 patches that are joined."""
    side = case.side // 28
    return [
        float(tile.view(2 * side, 2 * side)[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean())
        for tile in patches
        for y in range(side)
        for x in range(side)
    ]


def best(scores, tokens, count: int) -> list[int]:
    """The `count` of the tokens with the largest scores; of equal ones the earlier."""
    return sorted(sorted(tokens, key=lambda j: (-float(scores[j]), j))[:count])


class Prefill:
    """The eager language model, a layer at a time, on the whole sequence: tokens that left are hidden, none is removed."""

    def __init__(self, case: Case) -> None:
        self.model = model_of(case, "eager")
        ids = inputs_of(case)["input_ids"][0].tolist()
        image = self.model.config.image_token_id
        self.first, self.end, self.tokens = ids.index(image), len(ids), case.tokens
        self.behind = list(range(self.first + case.tokens, self.end))
        self.text = [*range(self.first), *self.behind]
        with torch.no_grad():
            self.states = embeddings(self.model, inputs_of(case))[0]
        self.alive, self.layer = list(range(case.tokens)), 0
        self.allowed = torch.ones(self.end, self.end).tril().bool()

    @torch.no_grad()
    def look(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the layer to come puts out, and its attention (H, S, S)."""
        language, seen = self.model.model.language_model, []
        block = language.layers[self.layer]
        positions = torch.arange(self.end)[None]
        allowed = self.allowed | torch.eye(self.end).bool()
        mask = torch.zeros(self.end, self.end).masked_fill(~allowed, -1e30)[None, None]
        hook = block.self_attn.register_forward_hook(lambda module, args, output: seen.append(output[1][0]))
        rotary = language.rotary_emb(self.states, positions)
        states = block(self.states[None], attention_mask=mask, position_embeddings=rotary, position_ids=positions)
        hook.remove()
        return states[0], seen[0]

    def run_to(self, layer: int) -> torch.Tensor:
        """Go on to the input of `layer`; attention (S, S) of the one below, averaged over heads."""
        while self.layer < layer:
            self.states, maps = self.look()
            self.layer += 1
        return maps.mean(dim=0)

    def visual(self, row: torch.Tensor) -> torch.Tensor:
        """Of a row (S, ...) what concerns the visual tokens (N, ...)."""
        return row[self.first : self.first + self.tokens]

    def leave(self, kept: list[int]) -> None:
        """Hide the visual tokens that are not kept."""
        for token in set(self.alive) - set(kept):
            self.allowed[:, self.first + token] = False
        self.alive = sorted(kept)
