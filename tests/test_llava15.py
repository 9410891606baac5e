"""Checkpoints of type `llava` come with three encoders, and Mistral 3 with two language models: exact, or refused by name."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, QUESTION, SMALL, encode, model_of, photo, processor_of, pruner, tokenizer
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PixtralVisionConfig,
    SiglipVisionConfig,
    ViTConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import ptp
from ptp.adapters import adapter_for
from ptp.adapters.pixtral import PixtralAdapter
from ptp.loader import load_processor, processor_class
from ptp.testing import check_adapter, small_model, token_id

CLIP = CLIPVisionConfig(**SMALL.vision(), image_size=56, patch_size=14)
SIGLIP = SiglipVisionConfig(**SMALL.vision(), image_size=56, patch_size=14, vision_use_head=False)
PIXTRAL = PixtralVisionConfig(**SMALL.vision(), image_size=112, patch_size=14)
LLAVA, MISTRAL = FAMILIES["llava-1.5"], FAMILIES["mistral3"]


def llava(vision, **settings) -> LlavaConfig:
    image = "[IMG]" if vision is PIXTRAL else "<image>"
    return LlavaConfig(
        vision_config=vision, text_config=SMALL.language("mistral", sliding_window=None),
        image_token_index=token_id(image), tie_word_embeddings=False, **settings,
    )  # fmt: skip


def made(family, name, config):
    return small_model(replace(family, name=name, model_class=LlavaForConditionalGeneration, config=lambda scale: config))


def test_pixtral_12b_is_laid_out_as_mistral_3():
    model = made(MISTRAL, "pixtral", llava(PIXTRAL, vision_feature_layer=-1, vision_feature_select_strategy="full"))
    pictures = MISTRAL.processor(SMALL).image_processor.__class__(size={"longest_edge": 112}, patch_size=14)
    processor = processor_class("PixtralProcessor")(pictures, tokenizer(), patch_size=14, spatial_merge_size=1)
    processor.chat_template = MISTRAL.chat_template
    assert isinstance(adapter_for(model), PixtralAdapter)
    report = check_adapter(model, processor, pruners=[pruner(alpha=0), pruner(relevance="attention", prune_layer=2)])
    assert "boxes          2 checked, exact" in str(report)


def test_siglip_has_no_cls_to_cut_off():
    model = made(LLAVA, "siglip", llava(SIGLIP, vision_feature_layer=-1, vision_feature_select_strategy="full"))
    processor = LLAVA.processor(SMALL)
    processor.image_processor = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0
    processor.chat_template = LLAVA.chat_template
    report = check_adapter(model, processor, pruners=[pruner(alpha=0), pruner(relevance="attention", prune_layer=2)])
    assert "boxes          2 checked, exact" in str(report) and not adapter_for(model).has_cls


def test_mistral_3_with_mistral():
    def config(scale):
        made = MISTRAL.config(scale).to_dict()
        return MISTRAL.config(scale).__class__(**made | {"text_config": scale.language("mistral", sliding_window=None)})

    model = small_model(replace(MISTRAL, name="mistral3-mistral", config=config))
    assert model.config.text_config.model_type == "mistral"
    check_adapter(model, processor_of(MISTRAL), pruners=[pruner(relevance="attention", prune_layer=2)])


@pytest.mark.parametrize(
    ("vision", "settings", "message"),
    [
        (
            CLIP,
            {"vision_feature_select_strategy": "full"},
            r"strategy 'full' does not fit 'clip_vision_model'.*\[CLS\] would be",
        ),
        (SIGLIP, {"vision_feature_select_strategy": "default"}, "strategy 'default' does not fit 'siglip_vision_model'"),
        (PIXTRAL, {"vision_feature_select_strategy": "default"}, "strategy must be 'full' with Pixtral"),
        (ViTConfig(**SMALL.vision(), image_size=56, patch_size=14), {}, r"LLaVA 1\.5 with vision model 'vit' is not supported"),
    ],
)
def test_what_would_not_be_exact_is_refused(vision, settings, message):
    model = LlavaForConditionalGeneration._from_config(llava(vision, **settings))
    with pytest.raises(ptp.UnsupportedModelError, match=message):
        ptp.attach(model, ptp.PyramidPruner(), tokenizer())


def test_another_layer_than_the_models_own_is_refused():
    model, inputs = model_of(LLAVA), encode(LLAVA, ([photo(1, (60, 60))], QUESTION))
    with torch.no_grad(), pruner()(model, tokenizer()):
        with pytest.raises(ValueError, match=r"vision_feature_layer must be the model's own, -2, .*got -1"):
            model(**inputs, vision_feature_layer=-1)
        model(**inputs, vision_feature_layer=-2)


def test_pictures_that_do_not_fill_their_tokens_are_refused():
    model, inputs = model_of(MISTRAL), encode(MISTRAL, ([photo(1, (112, 112))], QUESTION))
    inputs["image_sizes"] = torch.tensor([[98, 98]])
    with (
        torch.no_grad(), pruner()(model, tokenizer()),
        pytest.raises(ValueError, match=r"multiples of 28 pixels.*got 98 x 98"),
    ):  # fmt: skip
        model(**inputs)


def test_the_processor_of_mistral_3_is_loaded_without_torchvision(tmp_path):
    made = processor_of(MISTRAL)
    made.save_pretrained(tmp_path)
    MISTRAL.config(SMALL).save_pretrained(tmp_path)
    loaded, shown = load_processor(str(tmp_path)), [photo(1, (200, 120))]
    assert type(loaded).__name__ == "PixtralProcessor"
    one, other = (each(text=["[IMG]What?"], images=shown, return_tensors="pt") for each in (made, loaded))
    assert one["input_ids"].tolist() == other["input_ids"].tolist()
    torch.testing.assert_close(one["pixel_values"], other["pixel_values"])
