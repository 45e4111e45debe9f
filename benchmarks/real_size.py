"""Draw once at the real size of Stable Diffusion 1.5: random weights, diffusers' own pipeline, a memory plan.

    python benchmarks/real_size.py --experts 3 --steps 2 --resident 0

The picture means nothing; that it comes, what it takes and how long is the point. On a CPU the weights rest in the same
memory as they compute in, so the plan saves nothing there, but does all that it does elsewhere.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from architectures import ARCHITECTURES
from diffusers import DDIMScheduler, StableDiffusionPipeline
from forward import DTYPES, processor

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes
from diffusemble.experts.expert import Expert
from diffusemble.memory.keep import Drawing, choose_plan
from diffusemble.memory.place import Placement


def build(n: int, dtype: torch.dtype) -> EnsembleDenoiser:
    """``n`` different experts and SABW at its published size, filled in place."""
    with torch.device("meta"):
        experts = ARCHITECTURES["sd15"].experts(n, dtype)
        aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts]).to(dtype)
    ensemble = EnsembleDenoiser([Expert(one.name, one.denoiser, {"vae": one.components["vae"]}) for one in experts])
    ensemble.aggregator = aggregator
    for number, module in enumerate((ensemble, experts[0].components["vae"])):
        _fill(module.to_empty(device="cpu"), number)
    return ensemble.eval()


def _fill(module: torch.nn.Module, seed: int) -> None:
    """Random kernels that keep the size of what passes, norms of one, biases of zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(float(name.endswith("weight")))


def draw(ensemble: EnsembleDenoiser, steps: int, device: str) -> Any:
    """One picture with guidance, by diffusers' own pipeline."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**schedule, clip_sample=False, steps_offset=1)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline(
        vae=ensemble.experts[0].components["vae"],
        unet=ensemble,
        scheduler=scheduler,
        requires_safety_checker=False,
        **parts,
    )
    generator = torch.Generator().manual_seed(0)
    shape = (1, 77 * len(ensemble.experts), 768)
    texts = [torch.randn(shape, generator=generator).to(device, ensemble.dtype) for _ in range(2)]
    return pipeline(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        num_inference_steps=steps,
        generator=generator,
        output_type="pt",
    ).images


def main(
    experts: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=1)] = 2,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda")] = "cpu",
    resident: Annotated[float, typer.Option(min=0, help="denoisers that stay on the device")] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="write what was found here")] = None,
) -> None:
    """Build, place, draw; print what it took."""
    started = time.perf_counter()
    ensemble = build(experts, DTYPES[dtype])
    built = time.perf_counter()
    plan = choose_plan(ensemble, None, Drawing(batch=1), MemoryConfig(resident=resident, parts="visit"))
    with Placement(ensemble, plan, device) as placed:
        placed_at = time.perf_counter()
        image = draw(ensemble, steps, device)
        done = time.perf_counter()
        peak = placed.residence.peak
    found = {
        "what": f"{experts} experts of SD 1.5's size, SABW paper, 512 px, {steps} steps with guidance, {dtype}",
        "where": f"{processor(device)}, torch {torch.__version__}",
        "plan": str(plan),
        "seconds to build": round(built - started, 1),
        "seconds to plan and place": round(placed_at - built, 1),
        "seconds to draw": round(done - placed_at, 1),
        "weights on the device at most": format_bytes(peak),
        "peak memory of the process": format_bytes(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
        "picture": f"{tuple(image.shape)}, finite: {bool(image.isfinite().all())}, spread {image.float().std():.3f}",
    }
    typer.echo(json.dumps(found, indent=2))
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
