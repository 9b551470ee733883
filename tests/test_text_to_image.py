"""Text-to-image pipelines: diffusers' own classes with tiny random parts in the real folder format.
"""

import argparse
import json
import shutil
import sys

import pytest
import torch

from dm_kd import synthesize
from dm_kd.errors import DamagedError, UserError
from dm_kd.generators import text_to_image
from dm_kd.tasks import get_task

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Stable Diffusion of 16 pixels with random weights, saved as diffusers saves it."""
    place = tmp_path_factory.mktemp("pipeline")
    letters = [chr(c) for c in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    (place / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4,
                                    down_block_types=("DownEncoderBlock2D",) * 2,
                                    up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
            pad_token_id=1)),
        tokenizer=transformers.CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"),
                                             model_max_length=16),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(place / "tiny")
    (place / "tiny" / "README.md").write_text("---\nlicense: openrail++\n---\n# tiny\n")
    return place / "tiny"


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def built(folder, *argv, task="cifar100") -> text_to_image.TextToImageGenerator:
    args = synthesize.parse(["--task", task, "--generator", "text_to_image", "--weights",
                             str(folder), "--steps", "2", "--out", "unused", *argv])
    return text_to_image.build(args, get_task(task), torch.device("cpu"))


@pytest.fixture(scope="module")
def generator(folder):
    return built(folder)


def test_an_image_hangs_on_its_seed_and_class_and_not_on_its_batch(generator):
    together = generator.sample(torch.tensor([3, 4, 3]), [10, 11, 12])
    alone = generator.sample(torch.tensor([4]), [11])
    assert together.shape == (3, 3, 32, 32) and together.dtype == torch.uint8
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert (together[0].int() - together[2].int()).abs().max() > 1
    other = generator.sample(torch.tensor([99]), [11])
    assert not torch.equal(other, alone)


def test_it_is_what_the_pipeline_makes_of_the_prompt_resized(folder, generator):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a aquarium fish", num_inference_steps=2, output_type="pt",
                     generator=torch.Generator().manual_seed(7)).images
    expected = torch.nn.functional.interpolate((image * 255).round(), (32, 32), mode="bilinear",
                                               antialias=True)
    found = generator.sample(torch.tensor([1]), [7])
    assert (found.float() - expected).abs().max() <= 2


def test_the_manifest_names_pipeline_licence_prompts_and_defaults(generator):
    settings = generator.settings
    assert settings["pipeline"] == "StableDiffusionPipeline" and settings["licence"] == "openrail++"
    assert len(settings["prompts"]) == 100
    assert settings["prompts"][1] == "a photo of a aquarium fish"
    assert settings["num_inference_steps"] == 2 and settings["guidance_scale"] == 7.5
    assert len(settings["weights_sha256"]) == 64 and json.dumps(settings)
    assert {"diffusers", "transformers"} <= settings.keys()


def test_another_scheduler_is_another_setting(copied, generator):
    file = copied / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.013}))
    changed = {k for k, v in built(copied).settings.items() if v != generator.settings[k]}
    assert changed == {"configs_sha256"}


def test_flags_reach_the_pipeline(folder, generator):
    other = built(folder, "--guidance-scale", "1", "--render-size", "8", "--resolution", "20",
                  "--prompt", "{} on a table")
    assert other.call["guidance_scale"] == 1 and other.call["height"] == 8
    images = other.sample(torch.tensor([0]), [1])
    assert images.shape == (1, 3, 20, 20) and other.prompts[0] == "apple on a table"


def test_grey_tasks_get_the_luminance(folder, generator):
    grey = built(folder, "--resolution", "32", "--prompt", "a photo of a {}", task="digits")
    grey.prompts = generator.prompts
    colour = generator.sample(torch.tensor([5]), [3]).float()
    expected = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    found = grey.sample(torch.tensor([5]), [3])
    assert found.shape == (1, 1, 32, 32) and (found.float() - expected).abs().max() <= 2


def test_large_tasks_get_256_pixels_and_the_command_makes_a_set(folder, tmp_path):
    assert built(folder, task="imagenet").resolution == 256
    out = tmp_path / "set"
    assert synthesize.main([
        "--task", "digits", "--generator", "text_to_image", "--weights", str(folder), "--steps",
        "1", "--images-per-class", "1", "--batch-size", "5", "--device", "cpu", "--threads", "1",
        "--out", str(out)]) == 0
    assert len((out / "index.csv").read_text().splitlines()) == 11


@pytest.mark.parametrize("text", ["no class", "{} and {}", "{name} {}"])
def test_a_prompt_needs_one_place_for_the_name(text):
    with pytest.raises(argparse.ArgumentTypeError):
        text_to_image.prompt(text)


def test_a_part_with_code_of_its_own_is_refused_unread(copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "unet" / "evil.py").write_text("raise SystemExit('ran')")
    index["unet"] = ["evil", "Evil"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="'unet' is not of diffusers"):
        built(copied)


def test_pickled_weights_are_not_read(copied):
    weights = next((copied / "unet").glob("*.safetensors"))
    torch.save(diffusers.UNet2DConditionModel.load_config(copied / "unet"),
               weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(DamagedError, match="cannot be loaded"):
        built(copied)


def test_a_truncated_file_is_damage(copied):
    weights = next((copied / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedError, match="cannot be loaded"):
        built(copied)


def test_other_folders_and_pipelines_are_refused(copied, tmp_path):
    with pytest.raises(UserError, match="no model_index.json"):
        built(tmp_path)
    index = json.loads((copied / "model_index.json").read_text())
    for name in ("DDPMPipeline", "NoSuchPipeline", "StableDiffusionImg2ImgPipeline"):
        (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
        with pytest.raises(UserError, match=f"{name} is no text-to-image"):
            built(copied)


def test_a_missing_package_is_named_with_its_pip_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install diffusers transformers"):
        built(folder)
