"""Text-to-image pipelines: diffusers' own classes with tiny random parts in the real folder format.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

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


LETTERS = [chr(c) for c in range(97, 123)]


def clip_parts(place):
    """(tokenizer, configuration) of a CLIP text encoder of 16 channels."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    (place / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=24
    ), transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, bos_token_id=0, eos_token_id=1,
        pad_token_id=1, projection_dim=16)


def sdxl(place):
    """Stable Diffusion XL, as SDXL-Turbo: two text encoders, one step, no guidance."""
    tokenizer, config = clip_parts(place)
    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=transformers.CLIPTextModel(config), tokenizer=tokenizer,
        text_encoder_2=transformers.CLIPTextModelWithProjection(config), tokenizer_2=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=32, attention_head_dim=4, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"))


def sana_sprint(place):
    """Sana-Sprint: Gemma's text encoder, a decoder that enlarges 32 times, two steps. Its pipeline
    knows no pictures smaller than 1024 pixels."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = transformers.GemmaTokenizer(merges=[], vocab={
        word: i for i, word in enumerate([*special, *LETTERS, "\u2581"])})
    plain, none = ("ResBlock",) * 6, ((),) * 6
    return diffusers.SanaSprintPipeline(
        tokenizer=tokenizer, scheduler=diffusers.SCMScheduler(),
        text_encoder=transformers.Gemma2Model(transformers.Gemma2Config(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8)),
        vae=diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=2, encoder_block_types=plain,
            decoder_block_types=plain, encoder_block_out_channels=(4,) * 6,
            decoder_block_out_channels=(4,) * 6, encoder_qkv_multiscales=none,
            decoder_qkv_multiscales=none, encoder_layers_per_block=(1,) * 6,
            decoder_layers_per_block=(1,) * 6),
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
            attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
            cross_attention_dim=8, caption_channels=16, sample_size=32,
            qk_norm="rms_norm_across_heads", guidance_embeds=True))


def flux2_klein(place):
    """FLUX.2 klein: Qwen3's hidden states (of layers 9, 18, 27), prompts in a chat template."""
    tokenizer = transformers.Qwen2Tokenizer(merges=[], vocab={
        word: i for i, word in enumerate(["<|endoftext|>", *LETTERS, "\u0120"])})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return diffusers.Flux2KleinPipeline(
        tokenizer=tokenizer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
            vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=28,
            num_attention_heads=2, num_key_value_heads=1, head_dim=4)),
        vae=diffusers.AutoencoderKLFlux2(
            sample_size=32, down_block_types=("DownEncoderBlock2D",), block_out_channels=(4,),
            up_block_types=("UpDecoderBlock2D",), layers_per_block=1, latent_channels=1,
            norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False),
        transformer=diffusers.Flux2Transformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False), is_distilled=True)


FEW_STEPS = {  # pipeline -> how its authors use it
    sdxl: ("--steps", "1", "--guidance-scale", "0"), sana_sprint: (),
    flux2_klein: ("--render-size", "16")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """f(pipeline) -> its folder, as diffusers saves it, made once."""
    made = {}

    def save(pipeline):
        if pipeline not in made:
            place = tmp_path_factory.mktemp(pipeline.__name__)
            torch.manual_seed(0)
            pipeline(place).save_pretrained(place / "tiny")
            made[pipeline] = place / "tiny"
        return made[pipeline]

    return save


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


@pytest.mark.parametrize("pipeline", FEW_STEPS)
def test_pipelines_of_few_steps_make_images_that_hang_on_seed_and_class(saved, pipeline):
    made = built(saved(pipeline), *FEW_STEPS[pipeline])
    together, alone = made.sample(torch.tensor([3, 4]), [10, 11]), made.sample(
        torch.tensor([4]), [11])
    assert together.shape == (2, 3, 32, 32) and together.float().std() > 1
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 1
    other = made.sample(torch.tensor([99]), [11])
    assert not torch.equal(other, alone)


def from_hub(folder, monkeypatch, tmp_path):
    """Let huggingface_hub serve the folder: what its own filter lets through is copied."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    def download(repository, allow_patterns, ignore_patterns):
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns,
                                        ignore_patterns=ignore_patterns):
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, tmp_path / "hub" / name)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path / "hub"


def test_a_downloaded_pipeline_has_its_chat_template_whose_digest_is_recorded(
        saved, monkeypatch, tmp_path):
    whole = Path(shutil.copytree(saved(flux2_klein), tmp_path / "whole"))
    (whole / "unused.safetensors").write_bytes(b"the same weights as one file")
    (whole / "code.py").write_text("raise SystemExit")
    hub = from_hub(whole, monkeypatch, tmp_path)
    first = built("someone/tiny", *FEW_STEPS[flux2_klein])
    missed = {p.name for p in whole.rglob("*.*")} - {p.name for p in hub.rglob("*.*")}
    assert missed == {"unused.safetensors", "code.py"}
    assert first.settings["weights_hub_id"] == "someone/tiny"
    (whole / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    second = built("someone/tiny", *FEW_STEPS[flux2_klein])
    changed = {k for k, v in second.settings.items() if v != first.settings[k]}
    assert changed == {"configs_sha256"}


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
