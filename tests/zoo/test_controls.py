from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusemble import zoo
from diffusemble.controls.image_prompt import ImagePrompt, image_prompt_condition
from diffusemble.controls.interaction import Interaction
from diffusemble.controls.migc import Migc
from diffusemble.controls.pipelines import pipeline_with
from diffusemble.evaluation.scenes.conditions import interaction_of, migc_of
from diffusemble.evaluation.scenes.held import FOLDER, held_scenes, references
from diffusemble.evaluation.scenes.probe import SceneProbe, published_accuracy
from diffusemble.zoo.experts import WEIGHTS
from recipes.zoo.data import STYLES
from recipes.zoo.scenes.compose import options, split_of_scene

MIB = 2**20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(zoo.folder("scenes", tmp_path_factory.mktemp("cache")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_base_of_scenes_belongs_to_no_ensemble():
    assert "scenes" not in zoo.names()
    assert not any("scenes" in group for group in zoo.groups().values())


def drawn(pipe, **told):
    generator = torch.Generator().manual_seed(0)
    return pipe("cat, tree", num_inference_steps=2, generator=generator, output_type="pt", **told).images


def test_every_control_changes_what_the_base_draws(base):
    scene = held_scenes(2)[0]
    encoder = CLIPVisionModelWithProjection.from_pretrained(zoo.image_encoder_folder()).eval()
    processor = CLIPImageProcessorPil.from_pretrained(zoo.image_encoder_folder())
    told = {
        Interaction: interaction_of(base, scene),
        Migc: migc_of(base, scene, 96),
        ImagePrompt: image_prompt_condition(references("noto")[0], encoder, processor),
    }
    plain = drawn(base)
    assert plain.shape == (1, 3, 96, 96)
    for kind, condition in told.items():
        control = kind.from_pretrained(zoo.control_file(kind.key))
        picture = drawn(pipeline_with(base, [control]), cross_attention_kwargs={kind.key: condition})
        assert torch.isfinite(picture).all()
        assert (picture - plain).abs().mean() > 1e-3
    assert torch.equal(drawn(base), plain)


def test_an_image_prompt_without_torchvision_knows_styles_apart():
    encoder = CLIPVisionModelWithProjection.from_pretrained(zoo.image_encoder_folder()).eval()
    processor = CLIPImageProcessorPil.from_pretrained(zoo.image_encoder_folder())
    embeds = torch.cat([image_prompt_condition(references(s), encoder, processor).embeds for s in STYLES])
    alike = torch.nn.functional.normalize(embeds, dim=1) @ torch.nn.functional.normalize(embeds, dim=1).T
    style = torch.arange(len(STYLES)).repeat_interleave(4)
    same = style[:, None] == style
    assert alike[same].mean() > alike[~same].mean() + 0.2


def test_what_ships_is_small():
    files = [path for path in (WEIGHTS / "controls").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6 * MIB
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 0.3 * MIB


def test_held_out_scenes_are_held_out():
    every = held_scenes()
    assert {split_of_scene(scene) for scene in every} == {"things", "colours"}
    assert all(thing.colour for scene in every for thing in scene.things)
    assert held_scenes(10) == [every[i * len(every) // 10] for i in range(10)]
    with pytest.raises(ValueError, match=f"There are {len(every)} held-out scenes; 0 were asked for"):
        held_scenes(0)


def test_every_style_has_references():
    assert all(picture.size == (64, 64) for style in STYLES for picture in references(style))
    with pytest.raises(ValueError, match="no reference pictures in the style 'oil'"):
        references("oil")


def test_the_probe_knows_the_things_of_scenes():
    probe, report = SceneProbe.load(), published_accuracy()
    assert list(probe.names) == options()["things"]
    assert probe.styles == tuple(STYLES)
    assert report["held-out scenes"]["thing"] > 0.95


def test_unknown_controls_are_refused():
    with pytest.raises(ValueError, match="controls interaction, migc, image_prompt; it has no 'depth'"):
        zoo.control_file("depth")


def test_files_lie_in_the_package():
    assert Path(zoo.control_file("migc")).parent == WEIGHTS / "controls"
