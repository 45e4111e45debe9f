"""GroundingDINO and SAM with random weights of a few thousand numbers: forms, files, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
)

from diffusemble.evaluation.coco_mig.detectors import SURE, LocalDetectors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "red", "bird", "dining", "table"]
IMAGE = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def tiny_finder() -> Any:
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=4, out_indices=[2, 3]
    )
    text = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 6, "num_feature_levels": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_text_len": 16}
    wide = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = GroundingDinoConfig(
        backbone_config=swin.to_dict(),
        text_config=text.to_dict(),
        **sizes,
        **heads,
        **wide,
        disable_custom_kernels=True,
    )
    return GroundingDinoForObjectDetection(config)


def tiny_segmenter() -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    grid = {"image_size": 64, "patch_size": 16}
    vision = SamVisionConfig(**sizes, **grid, window_size=2, global_attn_indexes=[1], mlp_dim=16, num_pos_feats=8)
    prompts = SamPromptEncoderConfig(hidden_size=16, **grid, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16, num_hidden_layers=1
    )
    parts = {"prompt_encoder_config": prompts.to_dict(), "mask_decoder_config": decoder.to_dict()}
    return SamModel(SamConfig(vision_config=vision.to_dict(), **parts))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, as folders of the published names."""
    root = tmp_path_factory.mktemp("weights")
    dino, sam = root / "grounding-dino-tiny", root / "sam-vit-huge"
    tiny_finder().save_pretrained(dino)
    (root / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(root / "vocab.txt")).save_pretrained(dino)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(dino)
    tiny_segmenter().save_pretrained(sam)
    SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}).save_pretrained(sam)
    return root


def test_finds_are_boxes_with_scores(weights: Path) -> None:
    detectors = LocalDetectors.load(weights)
    found = detectors.find(IMAGE, "Dining table.")
    assert found == detectors.find(IMAGE, "dining table")
    for box, score in found:
        assert len(box) == 4
        assert box[0] <= box[2]
        assert box[1] <= box[3]
        assert SURE < score <= 1


def test_masks_have_the_size_of_the_picture(weights: Path) -> None:
    detectors = LocalDetectors.load(weights)
    first = detectors.segment(IMAGE, (0.0, 0.0, 0.5, 0.5))
    assert first.shape == IMAGE.shape[:2]
    assert first.dtype == bool
    detectors.segment(np.ascontiguousarray(IMAGE[:, ::-1]), (0.0, 0.0, 1.0, 1.0))
    assert (detectors.segment(IMAGE, (0.0, 0.0, 0.5, 0.5)) == first).all()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="needs the weights grounding-dino-tiny, which are not there"):
        LocalDetectors.load(tmp_path)
