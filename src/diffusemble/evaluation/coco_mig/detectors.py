"""GroundingDINO finds things by name, SAM what stands in a box; both from local weights, without torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusemble.evaluation.coco_mig.bench import Box
from diffusemble.evaluation.coco_mig.measures import Picture
from diffusemble.evaluation.metrics.weights import Published

DINO = Published("grounding-dino-tiny", "IDEA-Research/grounding-dino-tiny")
SAM = Published("sam-vit-huge", "facebook/sam-vit-huge")
SURE = 0.25  # least score of a find
Device = torch.device | str


class LocalDetectors:
    """The detectors of COCO-MIG: GroundingDINO with a Swin-T backbone, SAM with ViT-H.

    Args:
        finder: ``GroundingDinoForObjectDetection``.
        tokenizer: of the finder.
        segmenter: ``SamModel``.
        pixels: image processors of both.
        device: where they run.
    """

    def __init__(
        self, finder: Any, tokenizer: Any, segmenter: Any, pixels: tuple[Any, Any], device: Device = "cpu"
    ) -> None:
        self.finder, self.segmenter = finder.eval().to(device), segmenter.eval().to(device)
        self.tokenizer, self.pixels, self.device = tokenizer, pixels, device
        self._seen: tuple[Picture, Any, Tensor] | None = None

    @classmethod
    def load(cls, weights: Path | None = None, device: Device = "cpu") -> LocalDetectors:
        """Read both from a folder with ``grounding-dino-tiny`` and ``sam-vit-huge``, or from the hub's cache.

        Raises:
            FileNotFoundError: they are in neither; the message says what to download.
        """
        dino, sam = DINO.find(weights), SAM.find(weights)
        names = (("GroundingDinoImageProcessor", dino), ("SamImageProcessor", sam))
        pixels = [processor(name).from_pretrained(folder) for name, folder in names]
        finder = transformers.GroundingDinoForObjectDetection.from_pretrained(dino)
        segmenter = transformers.SamModel.from_pretrained(sam)
        tokenizer = transformers.AutoTokenizer.from_pretrained(dino)
        return cls(finder, tokenizer, segmenter, (pixels[0], pixels[1]), device)

    @torch.no_grad()
    def find(self, image: Picture, thing: str) -> list[tuple[Box, float]]:
        """Boxes as shares of the picture ``[h w 3]``, with scores above 0.25."""
        text = self.tokenizer(f"{thing.lower().strip('. ')}.", return_tensors="pt").to(self.device)
        seen = self.pixels[0](images=Image.fromarray(image), return_tensors="pt").to(self.device)
        output = self.finder(**seen, **text)
        scores = output.logits[0].sigmoid().amax(dim=-1)
        found = []
        for (x, y, width, height), score in zip(output.pred_boxes[0].tolist(), scores.tolist(), strict=True):
            if score > SURE:
                found.append(((x - width / 2, y - height / 2, x + width / 2, y + height / 2), score))
        return found

    @torch.no_grad()
    def segment(self, image: Picture, box: Box) -> NDArray[np.bool_]:
        """Of SAM's three masks ``[h w]`` for a box, the one that it rates highest."""
        seen, embedding = self._embedded(image)
        height, width = (int(side) for side in seen["reshaped_input_sizes"][0])
        corners = torch.tensor([[[box[0] * width, box[1] * height, box[2] * width, box[3] * height]]])
        output = self.segmenter(image_embeddings=embedding, input_boxes=corners.to(self.device))
        masks = self.pixels[1].post_process_masks(
            output.pred_masks.cpu(), seen["original_sizes"], seen["reshaped_input_sizes"]
        )
        best = int(output.iou_scores[0, 0].argmax())
        chosen: NDArray[np.bool_] = masks[0][0, best].numpy()
        return chosen

    def _embedded(self, image: Picture) -> tuple[Any, Tensor]:
        """A picture as SAM sees it; several boxes of one picture are asked for one after the other."""
        if self._seen is None or self._seen[0] is not image:
            seen = self.pixels[1](images=Image.fromarray(image), return_tensors="pt")
            embedding = self.segmenter.get_image_embeddings(seen["pixel_values"].to(self.device))
            self._seen = image, seen, embedding
        return self._seen[1:]


def processor(name: str) -> Any:
    """Transformers' image processor of this name that needs no torchvision."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
