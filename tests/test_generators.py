"""The other generators: BigGAN-deep, text-to-image pipelines, One-Image, noise, DeepInversion."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dm_kd import models, synthesize
from dm_kd.generators import biggan, deepinversion, gan, noise, one_image, text_to_image
from dm_kd.rivals import terms
from dm_kd.run import UserError
from dm_kd.tasks import get_task

CPU = torch.device("cpu")


def built(module, task, *argv):
    """The generator of a module of generators/, from flags."""
    args = synthesize.parse(["--task", task, "--generator", module.__name__.split(".")[-1], "--out",
                             "unused", *map(str, argv)])
    return module.build(args, get_task(task), CPU)


def check_keyed(made, size: int):
    """An image depends on its seed and class and not on its batch."""
    together = made.sample(torch.tensor([3, 4, 4]), [10, 11, 12])
    alone = made.sample(torch.tensor([4]), [11])
    assert together.shape == (3, 3, size, size) and together.dtype == torch.uint8
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert (together[1].int() - together[2].int()).abs().max() > 1
    assert not torch.equal(made.sample(torch.tensor([99]), [11]), alone)


def test_noise_has_the_tasks_mean_and_deviation():
    made = built(noise, "cifar100")
    images = made.sample(torch.zeros(50), list(range(50)))
    assert torch.equal(images[3], made.sample(torch.zeros(1), [3])[0]) and not made.labels_known
    mean, std = (images / 255).mean((0, 2, 3)), (images / 255).std((0, 2, 3))
    assert torch.allclose(mean, torch.tensor(get_task("cifar100").mean), atol=0.02)
    assert torch.allclose(std, torch.tensor(get_task("cifar100").std), atol=0.03)


# --- BigGAN ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def biggan_folder(tmp_path_factory):
    package = pytest.importorskip("pytorch_pretrained_biggan")
    place = tmp_path_factory.mktemp("biggan")
    torch.manual_seed(0)
    config = package.BigGANConfig(
        output_dim=8, z_dim=8, class_embed_dim=8, channel_width=8, num_classes=1000,
        layers=[(True, 16, 8), (False, 8, 4), (False, 4, 2), (False, 2, 1)],
        attention_layer_position=1)
    model = package.BigGAN(config)
    for name, tensor in model.state_dict().items():
        if name.endswith(("generator.bn.weight", "generator.bn.bias")):
            tensor.normal_()  # the package leaves them uninitialised
    (place / "config.json").write_text(config.to_json_string())
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    return place


def test_biggan_is_the_packages_network_on_our_cut_noise(biggan_folder):
    import pytorch_pretrained_biggan as package

    config = package.BigGANConfig.from_json_file(biggan_folder / "config.json")
    model = package.BigGAN(config).eval()
    model.load_state_dict(torch.load(biggan_folder / "pytorch_model.bin", weights_only=True))
    with torch.no_grad():
        image = model(0.4 * gan.truncated_normal(9, 8)[None],
                      nn.functional.one_hot(torch.tensor([7]), 1000).float(), 0.4)
    expected = ((image + 1) / 2 * 255).round().clamp(0, 255)
    made = built(biggan, "imagenet", "--weights", biggan_folder, "--truncation", 0.4)
    assert (made.sample(torch.tensor([7]), [9]).float() - expected).abs().max() <= 1
    check_keyed(made, 8)


def test_biggan_has_the_statistics_of_its_own_truncation(biggan_folder):
    state = torch.load(biggan_folder / "pytorch_model.bin", weights_only=True)
    tables = {key: value.uniform_(1, 2) for key, value in state.items() if "running" in key}
    torch.save(state, biggan_folder / "pytorch_model.bin")
    for text, row in (("0.14", 7), ("0.58", 29), ("0.999", 50)):
        made = built(biggan, "imagenet", "--weights", biggan_folder, "--truncation", text)
        used = made.model.network.state_dict()
        assert all(torch.equal(used[key][-1], value[row]) for key, value in tables.items())


def test_biggan_gives_imagenet_100_imagenets_own_classes(biggan_folder):
    part, whole = (built(biggan, task, "--weights", biggan_folder)
                   for task in ("imagenet100", "imagenet"))
    assert torch.equal(part.sample(torch.tensor([99]), [4]), whole.sample(torch.tensor([994]), [4]))
    assert part.settings["generator_classes"][-1] == 994 and json.dumps(part.settings)
    with pytest.raises(UserError, match="1000 classes"):
        built(biggan, "digits", "--weights", biggan_folder)


# --- text to image --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A Stable Diffusion of 16 pixels with random weights, saved as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
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


def prompted(folder, *argv, task="cifar100") -> text_to_image.TextToImageGenerator:
    return built(text_to_image, task, "--weights", folder, "--steps", 2, *argv)


def test_a_pipeline_makes_what_it_makes_of_the_prompt_resized(pipeline):
    import diffusers

    made = prompted(pipeline)
    check_keyed(made, 32)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    image = theirs("a photo of a aquarium fish", num_inference_steps=2, output_type="pt",
                   generator=torch.Generator().manual_seed(7)).images
    expected = nn.functional.interpolate((image * 255).round(), (32, 32), mode="bilinear",
                                         antialias=True)
    images = made.sample(torch.tensor([1]), [7])
    assert (images.float() - expected).abs().max() <= 2
    assert prompted(pipeline, task="imagenet").resolution == 256


def test_flags_reach_the_pipeline_and_all_that_makes_the_bytes_is_recorded(pipeline, tmp_path):
    settings = prompted(pipeline).settings
    assert settings["licence"] == "openrail++" and settings["num_inference_steps"] == 2
    other = prompted(pipeline, "--guidance-scale", 1, "--render-size", 8, "--prompt",
                     "{} on a table")
    assert other.call["guidance_scale"] == 1 and other.call["height"] == 8
    assert other.prompts[0] == "apple on a table"
    file = shutil.copytree(pipeline, tmp_path / "copy") / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.013}))
    changed = prompted(tmp_path / "copy").settings
    assert {k for k, v in changed.items() if v != settings[k]} == {"pipeline_sha256"}


def test_what_could_run_code_is_refused(pipeline, tmp_path):
    copy = shutil.copytree(pipeline, tmp_path / "copy")
    (copy / "unet" / "diffusers.py").write_text("raise SystemExit('ran')")  # imported by diffusers
    with pytest.raises(UserError, match="diffusers.py"):
        prompted(copy)
    (copy / "unet" / "diffusers.py").unlink()
    file = next((copy / "unet").glob("*.safetensors"))
    torch.save({"a": torch.zeros(1)}, file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(OSError):  # pickled weights are not read
        prompted(copy)


# --- One-Image ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def picture():
    """Position is colour: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.arange(200), np.arange(120))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 50)], 2).astype(np.uint8))


def patches(picture, count, size=16):
    return one_image.OneImageGenerator(picture, size, {}).sample(torch.zeros(count),
                                                                 list(range(count)))


def test_patches_come_from_all_over_the_picture_and_from_within_half_of_it(picture, monkeypatch):
    monkeypatch.setattr(one_image, "JITTER_SHARE", 0.0)
    monkeypatch.setattr(one_image, "DEGREES", 0.0)
    images = patches(picture, 300).float()
    red, green = images[:, 0], images[:, 1]
    assert red.min() < 16 and red.max() > 184 and green.min() < 10 and green.max() > 105
    assert (red.amax((1, 2)) - red.amin((1, 2))).max() <= 46  # half of 120 pixels, 16 of 22


def test_the_default_picture_is_scikit_learns_or_a_file_of_ones_own(tmp_path, picture):
    made = built(one_image, "cifar100")
    assert made.picture.size == (640, 427) and "CC BY 2.0" in made.settings["licence"]
    assert torch.equal(made.sample(torch.zeros(4), [5, 6, 7, 8])[2],
                       made.sample(torch.zeros(1), [7])[0]) and not made.labels_known
    assert built(one_image, "digits").sample(torch.zeros(1), [1]).shape == (1, 1, 8, 8)
    picture.save(tmp_path / "own.png")
    own = built(one_image, "imagenet", "--picture", tmp_path / "own.png")
    assert own.picture.size == (200, 120) and own.resolution == 256


# --- DeepInversion --------------------------------------------------------------------------------

def inverted(teacher, *argv) -> deepinversion.DeepInversion:
    return built(deepinversion, "digits", "--teacher", teacher, "--iterations", 3, *argv)


def test_images_are_of_the_class_and_the_statistics_that_the_teacher_remembers(teacher_folder):
    distances, labels = [], torch.arange(10).repeat(3)
    for weight in (0, 10):
        made = inverted(teacher_folder, "--iterations", 60, "--bn-weight", weight, "--pixel-rate",
                        0.1)
        before = {k: v.clone() for k, v in made.teacher.state_dict().items()}
        images = made.sample(labels, list(range(30)))
        x = (images / 255 - made.mean) / made.std
        distances.append(terms.weighted({"bn": 1.0}, made.teacher, x)[0]["bn"].item())
        assert weight or (made.teacher(x).argmax(1) == labels).float().mean() > 0.5
        assert all(torch.equal(v, before[k]) for k, v in made.teacher.state_dict().items())
    assert distances[1] < 0.5 * distances[0]
    _, card = models.load_frozen(str(teacher_folder), get_task("digits"))
    assert made.settings["teacher_sha256"] == card["sha256"] and made.mixes_classes


def test_the_teacher_needs_batch_norms_and_computes_in_bfloat16_where_that_is_fast(monkeypatch):
    with pytest.raises(UserError, match="BatchNorm2d"):
        inverted("lenet5@none")
    monkeypatch.setattr(deepinversion, "multiplies_bf16", lambda device: True)
    made, seen = inverted("cnn_w4@none"), []
    next(m for m in made.teacher.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype))
    made.sample(torch.tensor([1, 2]), [1, 2])
    assert set(seen) == {torch.bfloat16} and made.settings["teacher_dtype"] == "bf16"
