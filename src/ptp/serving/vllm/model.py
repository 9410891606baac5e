"""What a model of vLLM does otherwise where pictures are to be pruned."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...adapters import Adapter
from .encoding import Inputs, encode_and_choose
from .positions import Shown, split_shifts, text_positions
from .reuse import Reuse
from .settings import KEY, reuse_bytes


class PrunesPictures:
    """Stands before a model class of vLLM.

    A family says where its encoder is (`adapter`), and how to take some pictures out of several (`part`).

    Attributes:
        axes: Of the language model's positions: 1, or 3 (M-RoPE: time, height, width).
    """

    axes: ClassVar[int] = 1

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model_config = vllm_config.model_config
        kwargs = model_config.multimodal_config.mm_processor_kwargs or {}
        self.ptp_adapter, self.ptp_reuse = self.adapter(), Reuse(reuse_bytes(kwargs.get(KEY)))
        self.ptp_width = self.row_width(model_config)
        self.ptp_most = vllm_config.scheduler_config.max_num_encoder_input_tokens
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        # Two buffers that stay where they are: graphs that were captured look at these addresses.
        self.ptp_shift = torch.zeros(self.axes, tokens, dtype=torch.int64)
        self.ptp_positions = torch.zeros(self.axes, tokens + 1, dtype=torch.int64)
        self.ptp_shifted = False
        language: Any = self.get_language_model()  # type: ignore[attr-defined]
        reach = lengthen_rotary(language, model_config.max_model_len)
        self.ptp_last = reach - 1 if reach else None

    def adapter(self) -> Adapter:
        """Where the encoder's layers are."""
        raise NotImplementedError(f"{type(self).__name__} must define adapter().")

    def row_width(self, model_config: Any) -> int:
        """Numbers that the engine's own encoding gives for each visual token."""
        return model_config.get_inputs_embeds_size()

    def part(self, inputs: Inputs, numbers: Sequence[int]) -> Inputs:
        """The encoder's inputs of some of the pictures."""
        raise NotImplementedError(f"{type(self).__name__} must define part(inputs, numbers).")

    # -- vLLM's own steps --------------------------------------------------------------------------------------------

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """(K, D + 2 A) of each pruned picture, or the engine's own encoding."""
        run: Any = super().embed_multimodal  # type: ignore[misc]
        if "ptp_settings" not in kwargs:
            return run(**kwargs)
        embed: Any = self.get_language_model().embed_input_ids  # type: ignore[attr-defined]
        return encode_and_choose(self.ptp_adapter, self.ptp_reuse, kwargs, self.part, run, embed, self.ptp_most)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """The engine's own, less the numbers behind each token's features, which `forward` adds to the positions."""
        own: Any = super().embed_input_ids  # type: ignore[misc]
        if self.ptp_shifted:
            self.ptp_shift.zero_()
            self.ptp_shifted = False
        if multimodal_embeddings is None or not len(multimodal_embeddings) or is_multimodal is None:
            return own(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        parts = [split_shifts(rows, self.axes, self.ptp_width) for rows in multimodal_embeddings]
        if any(shift is not None for _, shift in parts):
            none = self.ptp_shift.new_zeros
            found = [none(len(rows), self.axes) if shift is None else shift for rows, shift in parts]
            mask = is_multimodal.to(self.ptp_shift.device)
            self.ptp_shift[:, : len(mask)].masked_scatter_(mask, torch.cat(found).T.to(self.ptp_shift.device))
            self.ptp_shifted = True
        return own(input_ids, [rows for rows, _ in parts], is_multimodal=is_multimodal)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt, behind pruned pictures those of the unpruned one."""
        pruned = [feature for feature in mm_features if feature.data is not None and "ptp_tokens" in feature.data]
        if self.axes > 1 and not pruned:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        positions, more = text_positions(len(input_tokens), [self.shown(feature) for feature in pruned])
        return positions.expand(3, -1).contiguous(), more

    def shown(self, feature: Any) -> Shown:
        """Where a pruned picture is in its prompt."""
        start, end = visual_range(feature)
        return Shown(start, end, int(feature.data["ptp_tokens"].data))

    def forward(
        self, input_ids: Any, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        return super().forward(  # type: ignore[misc]
            input_ids, self._shifted(positions), intermediate_tensors, inputs_embeds, **kwargs
        )

    def _shifted(self, positions: Tensor) -> Tensor:
        """(n,) or (3, n) positions, from the engine's; where there is one axis, the first of three rows, which are alike."""
        count = positions.shape[-1]
        told = positions if positions.dim() == 1 else positions[: self.axes]
        places = self.ptp_positions[:, :count]
        torch.add(told, self.ptp_shift[:, :count], out=places)
        if self.ptp_last is not None:
            places.clamp_(max=self.ptp_last)
        return places[0] if self.axes == 1 else places


def visual_range(feature: Any) -> tuple[int, int]:
    """Where the visual tokens of a picture begin and end in its prompt."""
    where = feature.mm_position
    embeds = range(where.length) if where.is_embed is None else where.is_embed.nonzero()[:, 0].tolist()
    return where.offset + embeds[0], where.offset + embeds[-1] + 1


def lengthen_rotary(model: Any, more: int) -> int | None:
    """Give rotary tables `more` rows: behind what was pruned positions go on from the unpruned length, and an answer may be as
    long as the engine's limit of tokens allows.

    Returns:
        How many rows the shortest has; None without one.
    """
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding, RotaryEmbeddingBase

    rows = []
    for module in model.modules():
        if not isinstance(module, RotaryEmbeddingBase) or not hasattr(module, "cos_sin_cache"):
            continue
        plain = type(module)._compute_cos_sin_cache is RotaryEmbeddingBase._compute_cos_sin_cache
        if plain and isinstance(module, RotaryEmbedding) and not hasattr(module, "ptp_rows"):
            old = module.cos_sin_cache
            module.ptp_rows = module.max_position_embeddings = module.max_position_embeddings + more
            module.cos_sin_cache = module._compute_cos_sin_cache().to(old)
        rows.append(len(module.cos_sin_cache))
    return min(rows, default=None)
