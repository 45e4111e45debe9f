"""Names of methods and where they live, so that listing them imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One row of a table: ``target`` is ``"module:Class"``; ``title`` and ``paper`` are for people."""

    target: str
    title: str
    paper: str = ""

    def load(self) -> Any:
        """Import the class."""
        module, name = self.target.split(":")
        return getattr(import_module(module), name)


AGGREGATORS: Mapping[str, Entry] = {
    "sabw": Entry(
        "diffusemble.aggregators.sabw:SABW", "Spatial-aware block-wise feature aggregation", "AFA, ICLR 2025"
    ),
    "mean": Entry("diffusemble.aggregators.mean:Mean", "Block-wise mean of the features", "AFA, ICLR 2025, table 3"),
    "magicfusion": Entry(
        "diffusemble.aggregators.magicfusion:MagicFusion", "The most salient expert of every place", "arXiv 2303.13126"
    ),
    "mixture-blocks": Entry(
        "diffusemble.aggregators.mixture:BlockMixture", "One expert per block, chosen by its input", "AFA, appendix E"
    ),
    "mixture-denoisers": Entry(
        "diffusemble.aggregators.mixture:DenoiserMixture", "One expert per step, chosen by its input", "AFA, appendix E"
    ),
    "timestep-switch": Entry(
        "diffusemble.aggregators.timestep_switch:TimestepSwitch", "One expert after the other", "arXiv 2211.01324"
    ),
}

BLOCKS: Mapping[str, Entry] = {
    "UNet2DConditionModel": Entry("diffusemble.blocks.unet:UNetBlocks", "SD 1.x, SD 2.x, SDXL"),
    "FluxTransformer2DModel": Entry("diffusemble.blocks.flux:FluxBlocks", "FLUX.1"),
    "Flux2Transformer2DModel": Entry("diffusemble.blocks.flux2:Flux2Blocks", "FLUX.2"),
    "ChromaTransformer2DModel": Entry("diffusemble.blocks.chroma:ChromaBlocks", "Chroma1"),
    "QwenImageTransformer2DModel": Entry("diffusemble.blocks.qwen:QwenBlocks", "Qwen-Image"),
    "SD3Transformer2DModel": Entry("diffusemble.blocks.sd3:SD3Blocks", "SD 3, SD 3.5"),
    "ZImageTransformer2DModel": Entry("diffusemble.blocks.z_image:ZImageBlocks", "Z-Image"),
}

FEEDS: Mapping[str, Entry] = {
    "UNet2DConditionModel": Entry("diffusemble.training.feeds.unet:UNetFeed", "SD 1.x, SD 2.x, SDXL"),
    "SD3Transformer2DModel": Entry("diffusemble.training.feeds.sd3:SD3Feed", "SD 3, SD 3.5"),
    "FluxTransformer2DModel": Entry("diffusemble.training.feeds.flux:FluxFeed", "FLUX.1"),
    "Flux2Transformer2DModel": Entry("diffusemble.training.feeds.flux2:Flux2Feed", "FLUX.2"),
    "ChromaTransformer2DModel": Entry("diffusemble.training.feeds.chroma:ChromaFeed", "Chroma"),
    "QwenImageTransformer2DModel": Entry("diffusemble.training.feeds.qwen:QwenFeed", "Qwen-Image"),
    "ZImageTransformer2DModel": Entry("diffusemble.training.feeds.z_image:ZImageFeed", "Z-Image"),
}

FAMILIES: Mapping[str, Entry] = {
    "UNet2DConditionModel": Entry("diffusemble.families.unet:UNetFamily", "SD 1.x, SD 2.x, SDXL"),
    "PixArtTransformer2DModel": Entry("diffusemble.families.pixart:PixArtFamily", "PixArt-α, PixArt-Σ"),
    "AuraFlowTransformer2DModel": Entry("diffusemble.families.auraflow:AuraFlowFamily", "AuraFlow, Pony v7"),
    "SD3Transformer2DModel": Entry("diffusemble.families.sd3:SD3Family", "SD 3, SD 3.5"),
    "FluxTransformer2DModel": Entry("diffusemble.families.flux:FluxFamily", "FLUX.1"),
    "ChromaTransformer2DModel": Entry("diffusemble.families.chroma:ChromaFamily", "Chroma1"),
    "ZImageTransformer2DModel": Entry("diffusemble.families.z_image:ZImageFamily", "Z-Image"),
}

SCHEDULERS: Mapping[str, Entry] = {
    "ddim": Entry("diffusers:DDIMScheduler", "DDIM", "arXiv 2010.02502"),
    "pndm": Entry("diffusers:PNDMScheduler", "PNDM", "arXiv 2202.09778"),
    "dpm++": Entry("diffusers:DPMSolverMultistepScheduler", "DPM-Solver++ (2M)", "arXiv 2211.01095"),
    "euler": Entry("diffusers:EulerDiscreteScheduler", "Euler", "arXiv 2206.00364"),
    "lcm": Entry("diffusers:LCMScheduler", "LCM, for what `distill` made", "arXiv 2310.04378"),
}

COMBINES: Mapping[str, Entry] = {
    name: Entry(f"diffusemble.latent.combine.{target}", title, paper)
    for name, target, title, paper in (
        ("amdm", "amdm:AMDM", "Latents on one sphere, then drawn to where each model would go", "arXiv 2410.01262"),
        ("linear", "averages:Linear", "Weighted average of the latents", ""),
        ("masks", "averages:Masks", "Every model's latents in its own region", "MultiDiffusion, arXiv 2302.08113"),
        ("composable", "composable:Composable", "Guidance of all models added up; AND and NOT", "arXiv 2206.01714"),
        ("magicfusion", "magicfusion:MagicFusion", "The most salient model of every place", "arXiv 2303.13126"),
        ("superdiff-or", "superdiff:Either", "The likelier model leads", "SuperDiff, arXiv 2412.17762"),
        ("superdiff-and", "superdiff:Both", "Equally likely under all models", "SuperDiff, arXiv 2412.17762"),
        ("none", "averages:Alone", "Nothing is exchanged: each model alone", ""),
    )
}

METRICS: Mapping[str, Entry] = {
    "fid": Entry(
        "diffusemble.evaluation.metrics.sets:FID", "Fréchet distance of Inception features", "arXiv 1706.08500"
    ),
    "is": Entry("diffusemble.evaluation.metrics.inception_score:InceptionScore", "Inception score", "arXiv 1606.03498"),
    "kid": Entry(
        "diffusemble.evaluation.metrics.sets:KID", "Kernel distance of Inception features", "arXiv 1801.01401"
    ),
    "cmmd": Entry(
        "diffusemble.evaluation.metrics.sets:CMMD",
        "Maximum mean discrepancy of CLIP features, × 1000",
        "arXiv 2401.09603",
    ),
    "fd-dinov2": Entry(
        "diffusemble.evaluation.metrics.sets:FDDinov2", "Fréchet distance of DINOv2 features", "arXiv 2306.04675"
    ),
    "clip-i": Entry(
        "diffusemble.evaluation.metrics.clip:ClipI",
        "Cosine of CLIP features of picture and real picture",
        "arXiv 2103.00020",
    ),
    "clip-t": Entry(
        "diffusemble.evaluation.metrics.clip:ClipT", "Cosine of CLIP features of picture and prompt", "arXiv 2103.00020"
    ),
    "aes": Entry("diffusemble.evaluation.metrics.aesthetic:Aesthetic", "LAION aesthetic score", "arXiv 2210.08402"),
    "pickscore": Entry("diffusemble.evaluation.metrics.preference:PickScore", "PickScore", "arXiv 2305.01569"),
    "hpsv2": Entry("diffusemble.evaluation.metrics.preference:HPSv2", "Human preference score v2", "arXiv 2306.09341"),
    "hpsv2.1": Entry(
        "diffusemble.evaluation.metrics.preference:HPSv21", "Human preference score v2.1", "arXiv 2306.09341"
    ),
    "imagereward": Entry("diffusemble.evaluation.metrics.image_reward:ImageReward", "ImageReward", "arXiv 2304.05977"),
    "fid-mobilenet": Entry(
        "diffusemble.evaluation.metrics.sets:FIDMobileNet",
        "Fréchet distance of MobileNetV2 features",
        "arXiv 1706.08500",
    ),
    "fid-efficientnet": Entry(
        "diffusemble.evaluation.metrics.sets:FIDEfficientNet",
        "Fréchet distance of EfficientNet-Lite0 features",
        "arXiv 1706.08500",
    ),
    "kid-mobilenet": Entry(
        "diffusemble.evaluation.metrics.sets:KIDMobileNet",
        "Kernel distance of MobileNetV2 features",
        "arXiv 1801.01401",
    ),
    "kid-efficientnet": Entry(
        "diffusemble.evaluation.metrics.sets:KIDEfficientNet",
        "Kernel distance of EfficientNet-Lite0 features",
        "arXiv 1801.01401",
    ),
    "style-probe": Entry(
        "diffusemble.evaluation.metrics.style_probe:StyleProbeScore", "Probability of the caption's style (zoo)"
    ),
    "prompt-match": Entry("diffusemble.evaluation.metrics.prompt_match:PromptMatchScore", "Prompt match (zoo)"),
}


MERGES: Mapping[str, Entry] = {
    name: Entry(f"diffusemble.merging.methods.{target}", title, paper)
    for name, target, title, paper in (
        ("weighted", "weighted:Weighted", "Weighted mean of n models", "AFA, ICLR 2025, table 1"),
        ("soup", "soup:Soup", "Uniform mean of n models", "arXiv 2203.05482"),
        ("slerp", "slerp:Slerp", "Spherical interpolation of two models", "Shoemake, SIGGRAPH 1985"),
        ("cosine", "cosine:Cosine", "Similarity-dependent blend of two models", ""),
        ("add-difference", "add_difference:AddDifference", "A + a (B - C)", "arXiv 2212.04089"),
        ("train-difference", "train_difference:TrainDifference", "A trained towards B, from C", ""),
        ("ties", "ties:Ties", "Trim, elect signs, merge what agrees", "arXiv 2306.01708"),
        ("dare", "dare:Dare", "Drop at random and rescale", "arXiv 2311.03099"),
    )
}


OBJECTIVES: Mapping[str, Entry] = {
    "held-out-loss": Entry("diffusemble.evaluation.objective:HeldOutLoss", "Error of the predicted noise"),
}


STUDIES: Mapping[str, Entry] = {
    name: Entry(f"diffusemble.evaluation.studies.{name}:run", title, paper)
    for name, title, paper in (
        ("experts", "More experts, fewer steps", "AFA, rebuttal: N = 2 to 6, and 50 to 10 steps"),
        ("steps", "Every way to combine at fewer steps", "AFA, rebuttal: weighted merging falls from .41 to -.63"),
        ("ablations", "What each part of the aggregator is worth", "AFA, ICLR 2025, table 3"),
        ("mixtures", "Only one expert runs", "AFA, ICLR 2025, appendix E"),
        ("copies", "One good expert with copies of a poor one", "AFA, rebuttal: .4746 to .4593, alone .4238"),
        ("quality", "Clean and damaged training pictures", "AFA, rebuttal: the training set matters little"),
        ("training", "Other ways to train the same aggregator", "AFA, section 3.3"),
        ("winners", "Which expert errs least, where and when", ""),
        ("attention", "Whom the aggregator listens to", "AFA, ICLR 2025, figure 5"),
        ("granularity", "How often to aggregate", ""),
        ("prompts", "Gains by kind of prompt, and where the ensemble loses", ""),
        (
            "cost",
            "Parameters, operations, seconds and memory",
            "AFA, rebuttal: 218.74 TFLOP for N = 3, one model 70.24",
        ),
        ("distilled", "Very few steps", "AFA, rebuttal: LCM with frozen experts fails (-.58 at 4 steps)"),
    )
}


def lookup(table: Mapping[str, Entry], name: str, what: str) -> Any:
    """Class behind ``name``.

    Raises:
        ValueError: the table has no such name; the message lists those it has.
    """
    if name not in table:
        raise ValueError(f"Unknown {what} {name!r}. Choose one of: {', '.join(table)}.")
    return table[name].load()
