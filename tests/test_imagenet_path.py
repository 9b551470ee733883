"""The ImageNet path: generated files in the real formats through the real commands."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from dm_kd import distill, image_files, models, real_data
from dm_kd.bench import imagenet_path
from dm_kd.errors import UserError
from dm_kd.tasks import get_task

IMAGENET = get_task("imagenet")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small(monkeypatch):
    """A DiT of one block that makes 8 x 8 images, and a small pair; commands in this process."""
    pytest.importorskip("diffusers")
    monkeypatch.setattr(imagenet_path, "DIT", imagenet_path.DIT | {
        "input_size": 4, "width": 64, "depth": 1, "heads": 1})
    monkeypatch.setattr(imagenet_path, "SD_VAE", imagenet_path.SD_VAE | {
        "norm_num_groups": 4, "block_out_channels": (8, 8), "sample_size": 8, "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2})
    monkeypatch.setattr(imagenet_path, "PAIR", "cnn_w4")
    monkeypatch.setattr(imagenet_path, "alone", lambda function, *args: function(*args))
    monkeypatch.setattr(imagenet_path, "commands", lambda real=imagenet_path.commands: {
        name: argv for name, argv in real().items() if not name.startswith("evaluate")})

    def here(root, name, argv):
        with monkeypatch.context() as patch:
            patch.chdir(root)
            assert importlib.import_module(f"dm_kd.{argv[0]}").main(argv[1:]) == 0, name
        return {"command": name, "seconds": 1.0, "peak_rss_mb": 1}

    monkeypatch.setattr(imagenet_path, "measured", here)


def test_the_record_says_what_both_layouts_and_both_sources_gave(small, tmp_path):
    assert imagenet_path.main(["--out", "results", "--work", "work", "--device", "cpu",
                               "--threads", "1"]) == 0
    record = json.loads(Path("results/imagenet_path.json").read_text())
    assert record["synthesis"]["same_files_from_both_layouts"] is True
    images = record["synthesis"]["images"]
    assert [i["file"] for i in images] == ["class_207_seed_0_num_0.png",
                                           "class_388_seed_0_num_0.png"]
    assert all((i["size"], i["mode"], i["format"]) == ([8, 8], "RGB", "PNG") for i in images)
    assert [row["images_seen"] for row in record["distillation"]] == [16, 2]
    assert [row["val_images"] for row in record["distillation"]] == [16, 0]
    assert {"date", "commit", "command", "versions", "hardware"} <= record.keys()
    assert len(record["commands"]) == 4 and not list(Path("work").iterdir())


def test_the_generated_files_are_in_the_users_formats():
    imagenet_path.write_images(Path.cwd())
    found = image_files.find(imagenet_path.LIST, IMAGENET.class_names, 3)
    assert len(found) == 16 and {0, 999} <= set(found.labels.tolist())
    judged = real_data.imagenet("val", "val", 0, None)  # true_dataset/imagenet_val.txt
    assert judged.labels.tolist() == found.labels.tolist()
    by_id = real_data.imagenet("val", "val", 0, imagenet_path.WORDNET.parent)
    assert by_id.labels.tolist() == list(range(1000))
    for real in (found, judged.images, by_id.images):
        colour = real.decode(1).float().mean((1, 2)).round().tolist()
        label = int(real.labels[1])
        expected = [label // 4, label * 37 % 256, label * 101 % 256]
        assert max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= 3  # JPEG rounds


def test_the_sizes_are_those_of_the_published_networks():
    pytest.importorskip("diffusers")
    assert imagenet_path.parameters() == {
        "DiT": 675_129_632, "VAE": 83_653_863, "torchvision:resnet18": 11_689_512}


def test_a_command_is_timed_and_one_that_fails_is_named():
    row = imagenet_path.measured(Path.cwd(), "nothing to do", ["errors", "--flag"])
    assert row["command"] == "python -m dm_kd.errors --flag"
    assert row["seconds"] > 0 < row["cpu_seconds"] and row["peak_rss_mb"] > 3
    with pytest.raises(UserError, match="'bad' ended with exit code 1") as error:
        imagenet_path.measured(Path.cwd(), "bad", ["no_such_entry"])
    assert "no_such_entry" in str(error.value)


@pytest.mark.slow
def test_resnet_18_teaches_resnet_18_at_224_pixels_of_a_thousand_classes():
    imagenet_path.write_images(Path.cwd())
    imagenet_path.write_teacher(Path.cwd(), IMAGENET, 0)
    assert distill.main([*imagenet_path.commands()["distill, original-style list"][1:], "--device",
                         "cpu", "--threads", "1"]) == 0
    folder = Path("save/student_model/list")
    result = json.loads((folder / "result.json").read_text())
    assert result["images_seen"] == result["val_images"] == 16
    card = json.loads((folder / "student.json").read_text())
    assert card["model"] == "torchvision:resnet18" and card["num_classes"] == 1000
    assert card["resolution"] == 224 and card["teacher"]["name"] == "torchvision:resnet18"
    student, _ = models.load_frozen(str(folder), IMAGENET)
    assert student(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
