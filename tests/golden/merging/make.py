"""Merges tiny checkpoints with sd-mecha, another implementation; see the README."""

from pathlib import Path

import sd_mecha
import torch
from safetensors.torch import save_file
from sd_mecha.extensions.merge_methods import resolve

HERE = Path(__file__).parent
SHAPES = {
    "model.diffusion_model.input_blocks.0.0.weight": (6, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 10),
    "model.diffusion_model.middle_block.0.in_layers.0.bias": (8,),
    "model.diffusion_model.output_blocks.11.0.out_layers.3.weight": (4, 6, 3, 3),
    "model.diffusion_model.time_embed.0.weight": (12, 5),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (9, 7),
    "first_stage_model.decoder.conv_out.weight": (3, 4, 3, 3),
}


def model(seed: int, near: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Random weights; with ``near``, a model fine-tuned from it."""
    generator = torch.Generator().manual_seed(seed)
    noise = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    return noise if near is None else {key: near[key] + 0.3 * change for key, change in noise.items()}


def main() -> None:
    """Write the inputs a, b, base and what sd-mecha makes of them."""
    base = model(0)
    for name, weights in {"base": base, "a": model(1, base), "b": model(2, base)}.items():
        save_file(weights, HERE / f"{name}.safetensors")
    a, b, c = (sd_mecha.model(str(HERE / f"{name}.safetensors"), "sd1-ldm") for name in ("a", "b", "base"))
    mask = sd_mecha.train_difference_mask(a, b, c, alpha=0.7)
    add = resolve("add_difference")
    recipes = {
        "weighted": sd_mecha.weighted_sum(a, b, alpha=0.3),
        "soup": sd_mecha.n_average(a, b, c),
        "slerp": sd_mecha.slerp(a, b, alpha=0.3),
        "add-difference": a + (b - c) * 0.7,
        "train-difference": add(a, b - c, mask),
        "ties": add(c, sd_mecha.ties_sum(a - c, b - c, k=1.0, vote_sgn=True), 0.8),
    }
    for name, recipe in recipes.items():
        merged = sd_mecha.merge(recipe, merge_dtype=torch.float64, output_dtype=torch.float64, threads=0)
        made = {key: merged[key].float().contiguous() for key in SHAPES}
        save_file(made, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    main()
