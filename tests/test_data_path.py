"""From files on the user's disk to a student: what the loop reads, and the commands themselves.

Images here are the real digits, enlarged; large tasks get a few pictures of different sizes.
"""

import dataclasses
import importlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from processes import contents
from torch.nn.functional import one_hot

from dm_kd import augment, engine, evaluate, files, image_files, real_data
from dm_kd.errors import DamagedError
from dm_kd.image_files import ImageFiles
from dm_kd.sources import stored
from dm_kd.sources.stored import StoredSource, gathered
from dm_kd.tasks import get_task, load_real

CACHE = Path("cache")
DIGITS, IMAGENET = get_task("digits"), get_task("imagenet")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_digits(folder: Path, per_class=2, side=28) -> list[str]:
    """Real digits, enlarged, as the original names its images; their names, sorted."""
    real, names = load_real(DIGITS, "train"), []
    folder.mkdir(parents=True)
    for c in range(10):
        for k, image in enumerate(real.images[real.labels == c][:per_class]):
            large = Image.fromarray(image[0].numpy()).resize((side, side), Image.Resampling.BICUBIC)
            names.append(f"class_{c}_seed_0_num_{k}.png")
            (folder / names[-1]).write_bytes(png(np.array(large)))
    return sorted(names)


SIZES = ((40, 60), (60, 40), (300, 250), (256, 256), (50, 50), (33, 70), (80, 80), (256, 341))


def write_pictures(folder: Path, sizes=SIZES, labels=None) -> list[str]:
    """Colour noise; labels default to 7, 107, 207, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, names = np.random.default_rng(0), []
    for i, size in enumerate(sizes):
        label = labels[i] if labels else 7 + 100 * i
        names.append(f"class_{label}_seed_0_num_{i}.png")
        (folder / names[-1]).write_bytes(png(draw.integers(0, 256, (*size, 3), dtype=np.uint8)))
    return names


def found_in(folder, task) -> ImageFiles:
    return image_files.find(Path(folder), task.class_names, task.channels)


# --- what the loop reads --------------------------------------------------------------------------

def never(*args):
    raise AssertionError("no image file should be read")


def test_tensors_are_taken_as_they_are():
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    assert gathered(images, DIGITS, CACHE, False) == (images, None) and not CACHE.exists()


def test_images_of_one_size_become_one_map_of_their_bytes():
    write_pictures(Path("set"), [(40, 60)] * 5)
    found = found_in("set", IMAGENET)
    images, digest = gathered(found, IMAGENET, CACHE, False)
    expected = torch.stack(found[torch.arange(5)])
    assert isinstance(images, torch.Tensor) and torch.equal(images, expected)
    assert digest == files.sha256(expected.numpy().tobytes())
    assert next(CACHE.glob("*.u8")).read_bytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("task", [DIGITS, IMAGENET])
def test_a_second_time_no_image_is_decoded(monkeypatch, task, judged):
    write_pictures(Path("set"), [(40, 60)] * 3, labels=[1, 2, 3])
    found = found_in("set", task)
    first, digest = gathered(found, task, CACHE, judged)
    monkeypatch.setattr(ImageFiles, "decode", never)
    monkeypatch.setattr(ImageFiles, "sizes", never)
    again = gathered(found_in("set", task), task, CACHE, judged)
    assert torch.equal(again[0], first) and again[1] == digest


@pytest.mark.parametrize("change", [
    lambda path: os.utime(path, ns=(1, 1)), lambda path: path.write_bytes(path.read_bytes() + b"x"),
    lambda path: path.rename("set/class_9_seed_0_num_9.png")])
def test_a_file_that_changed_makes_a_new_map(change):
    names = write_digits(Path("set"))
    gathered(found_in("set", DIGITS), DIGITS, CACHE, False)
    change(Path("set") / names[0])
    found = found_in("set", DIGITS)
    images, _ = gathered(found, DIGITS, CACHE, False)
    assert len(list(CACHE.glob("*.u8"))) == 2
    for image, file in zip(images, found[torch.arange(20)], strict=True):
        assert torch.equal(image, augment.resize(file[None], 8, 8)[0])


def test_images_of_different_sizes_stay_files():
    write_pictures(Path("set"))
    found = found_in("set", IMAGENET)
    for _ in range(2):
        images, digest = gathered(found, IMAGENET, CACHE, False)
        assert images is found and digest == found.identity
    assert not list(CACHE.glob("*.u8"))


def test_files_are_looked_through_for_their_sizes_once(monkeypatch):
    write_pictures(Path("set"))
    found = found_in("set", IMAGENET)
    gathered(found, IMAGENET, CACHE, False)
    monkeypatch.setattr(image_files.Folder, "read", never)
    assert gathered(found, IMAGENET, CACHE, False)[0] is found


@pytest.mark.parametrize("place", ["folder", "zip"])
def test_sizes_are_read_from_the_first_bytes_of_files(monkeypatch, place):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Path("set").mkdir()
    for label, suffix in enumerate(("png", "jpg")):
        Image.fromarray(noise).save(f"set/class_{label}_seed_0_num_0.{suffix}")
        assert os.path.getsize(f"set/class_{label}_seed_0_num_0.{suffix}") > image_files.HEAD_BYTES
    found = found_in("set" if place == "folder" else zipped("set.zip", "set"), IMAGENET)
    asked, real = [], type(found.place).read
    monkeypatch.setattr(type(found.place), "read", lambda self, name, limit=None: (
        asked.append(limit), real(self, name, limit))[1])
    assert found.sizes() == [(300, 400)] * 2 and asked == [image_files.HEAD_BYTES] * 2
    assert len(real(found.place, found.names[0], 10)) == 10


def test_a_header_longer_than_the_first_bytes_is_read_with_the_rest():
    Path("set").mkdir()
    Image.new("RGB", (30, 20)).save("set/class_1_seed_0_num_0.jpg", icc_profile=bytes(100_000))
    assert found_in("set", IMAGENET).sizes() == [(20, 30)]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"size": [41, 60]}', '{"size": 3}',
                                  '{"size": "40"}', '{"size": [[40, 60]]}'])
def test_a_damaged_note_of_the_size_is_made_again(text):
    write_pictures(Path("set"), [(40, 60)] * 3)
    found = found_in("set", IMAGENET)
    first = gathered(found, IMAGENET, CACHE, False)[1]
    note = next(CACHE.glob("*.size.json"))
    whole = note.read_text()
    note.write_text(text)
    images, digest = gathered(found, IMAGENET, CACHE, False)
    assert images.shape == (3, 3, 40, 60) and digest == first and note.read_text() == whole


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("sizes", [[(28, 28)] * 3, [(8, 8), (9, 30), (64, 64)]])
def test_a_small_tasks_images_are_resized_to_it(sizes, judged):
    write_pictures(Path("set"), sizes, labels=[1, 2, 3])
    found = found_in("set", DIGITS)
    images, _ = gathered(found, DIGITS, CACHE, judged)
    assert images.shape == (3, 1, 8, 8)
    for image, file in zip(images, found[torch.arange(3)], strict=True):
        assert torch.equal(image, augment.resize(file[None], 8, 8)[0])


def test_what_is_judged_is_kept_as_centre_crops():
    write_pictures(Path("set"))
    found = found_in("set", IMAGENET)
    images, _ = gathered(found, IMAGENET, CACHE, True)
    assert images.shape == (8, 3, 224, 224)
    assert torch.equal(images, augment.centre_crops(found[torch.arange(8)], 224))


def test_what_is_judged_is_cut_once():
    write_pictures(Path("set"))
    found = found_in("set", IMAGENET)
    kept, _ = gathered(found, IMAGENET, CACHE, True)
    view = engine.plain_view(IMAGENET)
    assert torch.equal(view.plain(kept), view.plain(found[torch.arange(8)]))
    assert torch.equal(view.plain(kept), augment.standardize(kept, IMAGENET.mean, IMAGENET.std))


def test_maps_for_training_and_for_judging_are_told_apart():
    write_pictures(Path("set"), [(224, 224)] * 2)
    found = found_in("set", IMAGENET)
    train, judged = (gathered(found, IMAGENET, CACHE, which)[0] for which in (False, True))
    assert torch.equal(train, torch.stack(found[torch.arange(2)]))
    assert torch.equal(judged, augment.centre_crops(found[torch.arange(2)], 224))
    assert not torch.equal(train, judged)


def test_maps_of_grey_and_of_colour_are_told_apart():
    write_digits(Path("set"))
    colour = dataclasses.replace(DIGITS, channels=3)
    for task in (DIGITS, colour):
        images = gathered(found_in("set", task), task, CACHE, False)[0]
        assert images.shape == (20, task.channels, 8, 8)
        assert torch.equal(images[:, 0], images[:, -1])


@pytest.mark.parametrize("place", ["folder", "zip"])
def test_a_damaged_image_stops_and_leaves_no_map(place):
    name = write_pictures(Path("set"), [(40, 60)] * 5)[3]
    path = Path("set") / name
    path.write_bytes(path.read_bytes()[:-2000])  # its header, and so its size, is whole
    source = Path("set")
    if place == "zip":
        source = zipped("set.zip", "set")
    with pytest.raises(DamagedError, match=name):
        gathered(found_in(source, IMAGENET), IMAGENET, CACHE, False)
    assert [p.name for p in CACHE.iterdir() if not p.name.endswith(".size.json")] == []
    with pytest.raises(DamagedError, match=name):
        gathered(found_in(source, IMAGENET), IMAGENET, CACHE, True)


def test_a_damaged_image_among_different_sizes_is_found_before_training():
    name = write_pictures(Path("set"))[5]
    (Path("set") / name).write_bytes(b"")
    with pytest.raises(DamagedError, match=name):
        gathered(found_in("set", IMAGENET), IMAGENET, CACHE, False)
    assert not CACHE.exists() or list(CACHE.iterdir()) == []


def test_a_flipped_byte_of_a_map_makes_it_anew():
    write_digits(Path("set"))
    found = found_in("set", DIGITS)
    first = gathered(found, DIGITS, CACHE, False)[0].clone()
    path = next(CACHE.glob("*.u8"))
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    assert torch.equal(gathered(found, DIGITS, CACHE, False)[0], first)


def test_many_images_are_decoded_in_chunks(monkeypatch):
    write_digits(Path("set"))
    monkeypatch.setattr(stored, "CHUNK", 7)
    found = found_in("set", DIGITS)
    images, _ = gathered(found, DIGITS, CACHE, False)
    expected = [augment.resize(image[None], 8, 8)[0] for image in found[torch.arange(20)]]
    assert torch.equal(images, torch.stack(expected))


def test_batches_of_files_are_those_of_their_images():
    write_pictures(Path("set"))
    found = found_in("set", IMAGENET)
    source = StoredSource(found, found.labels, 4, seed=3)
    seen = []
    for images, labels, ids in source.batches(0):
        assert isinstance(images, list) and len(images) == 4
        for image, label, i in zip(images, labels.tolist(), ids.tolist(), strict=True):
            assert torch.equal(image, found.decode(i)) and label == int(found.labels[i])
            seen.append(i)
    assert sorted(seen) == list(range(8))
    later = [ids.tolist() for _, _, ids in source.batches(0, first_step=1)]
    assert later == [seen[4:]]


# --- where images lie, for a device that is not there ---------------------------------------------

ELSEWHERE = torch.device("meta")  # stands for a GPU: tensors can go there


@pytest.mark.parametrize(("free", "goes"), [(2, False), (4, False), (4.1, True), (1e6, True)])
def test_images_lie_on_the_device_where_they_take_less_than_half_of_what_is_free(monkeypatch, free,
                                                                               goes):
    images, labels = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * 320), 10 ** 9))
    found = stored.resident(images, labels, ELSEWHERE)
    assert [v.device.type for v in found] == [ELSEWHERE.type if goes else "cpu"] * 2
    assert found[0].shape == images.shape and found[0].dtype == torch.uint8


def test_files_and_what_a_cpu_uses_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 ** 12, 10 ** 12))
    write_pictures(Path("set"))
    files_found, tensor = found_in("set", IMAGENET), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(2)
    assert stored.resident(files_found, labels, ELSEWHERE) == (files_found, labels)
    assert stored.resident(tensor, labels, torch.device("cpu")) == (tensor, labels)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_a_gpu_waits_only_for_images_that_are_not_on_it():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    here, there = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8).as_subclass(OnGpu)
    write_pictures(Path("set"))
    assert stored.far_from(cuda, here) and stored.far_from(cuda, found_in("set", IMAGENET))
    assert not stored.far_from(cuda, there)
    assert not stored.far_from(cpu, here) and not stored.far_from(cpu, found_in("set", IMAGENET))


# --- commands -------------------------------------------------------------------------------------

def call(entry, *argv):
    return importlib.import_module(f"dm_kd.{entry}").main([str(a) for a in argv])


def zipped(path, folder) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(Path(folder).iterdir()):
            archive.write(file, file.name)
    return Path(path)


def listed(path, names, folder="set") -> Path:
    """The original's list: ./FOLDER/NAME lines."""
    Path(path).write_text("".join(f"./{folder}/{name}\r\n" for name in names))
    return Path(path)


COMMON = ("--device", "cpu", "--threads", 1, "--cache", "cache")


def distill(source, teacher, *more, task="digits"):
    return call("distill", "--task", task, "--source", source, "--teacher", teacher, "--student",
                "cnn_w4", "--epochs", 1, "--batch-size", 8, "--amp", "none", "--out", "out",
                *COMMON, *more)


def record(name) -> dict:
    return json.loads((Path("out") / name).read_text())


@pytest.fixture
def refused(capsys):
    """f(code, function, *argv) -> the message, after checking the exit code and form."""

    def check(code, function, *argv):
        capsys.readouterr()
        found = function(*argv)
        out, err = capsys.readouterr()
        assert found == code, f"exit {found}\n{out}\n{err}"
        lines = err.splitlines()
        assert 2 <= len(lines) <= 6 and lines[0].startswith("error: "), err
        assert "Traceback" not in err + out
        return err

    return check


@pytest.mark.parametrize("side", [8, 28, 256])
def test_a_student_learns_the_same_from_a_list_a_folder_and_an_archive(teacher_folder, side,
                                                                       capsys):
    names = write_digits(Path("set"), side=side)
    sources = (listed("s2_st100_200k.txt", names), Path("set"), zipped("set.zip", "set"))
    before, ends = contents(Path("set")), []
    for source in sources:
        assert distill(source, teacher_folder, "--out", source.name + "_out") == 0
        folder = Path(source.name + "_out")
        inputs = json.loads((folder / "inputs.json").read_text())
        assert inputs["source_images"] == 20
        ends.append((inputs["source_sha256"], files.sha256_file(folder / "student.safetensors")))
    assert ends[0] == ends[1] == ends[2] and contents(Path("set")) == before
    assert "labels of" in capsys.readouterr().out  # the teacher was compared with the file names


def test_images_of_other_classes_teach_without_labels(teacher_folder, refused):
    names = write_pictures(Path("set"), [(20, 20)] * 8)
    path = listed("list.txt", names)
    assert "--source-labels none" in refused(2, distill, path, teacher_folder)
    assert not Path("out").exists()
    assert distill(path, teacher_folder, "--source-labels", "none") == 0
    assert "validation images" in Path("out/log.txt").read_text()  # whose labels are known


def test_the_first_images_of_each_class_of_a_list_are_used(teacher_folder):
    names = write_digits(Path("set"), per_class=3)
    assert distill(listed("list.txt", names[::-1]), teacher_folder, "--images-per-class", 2) == 0
    first = [f"class_{c}_seed_0_num_{k}.png" for c in range(10) for k in (2, 1)]
    assert distill(listed("few.txt", first), teacher_folder, "--out", "few") == 0
    assert record("inputs.json") == json.loads(Path("few/inputs.json").read_text())
    assert record("inputs.json")["source_images"] == 20


@pytest.mark.parametrize("form", ["list", "folder", "zip"])
def test_images_of_different_sizes_teach_a_large_task(form):
    names = write_pictures(Path("set"))
    source = {"list": lambda: listed("s2_st100_200k.txt", names), "folder": lambda: Path("set"),
              "zip": lambda: zipped("set.zip", "set")}[form]()
    Path("val.txt").write_text("".join(f"set/{n} {7 + 100 * i}\n" for i, n in enumerate(names)))
    assert distill(source, "cnn_w4@none", "--no-label-check", "--data", "val.txt",
                   task="imagenet") == 0
    result = record("result.json")
    assert result["val_images"] == 8 and result["images_seen"] == 8


def test_images_of_one_size_teach_a_large_task_as_their_files_do():
    """Images of one size are a map, others are files; the loop must see the same in both."""
    names = write_pictures(Path("set"), [(50, 60)] * 8)
    flags = ("--no-label-check", "--val", "none", "--source-labels", "none")
    weights = []
    for out in ("map", "files"):
        assert distill("set", "cnn_w4@none", *flags, "--out", out, task="imagenet") == 0
        weights.append(files.sha256_file(Path(out) / "student.safetensors"))
        for note in CACHE.glob("*.size.json"):
            note.write_text('{"size": null}')  # as if they differed
    assert weights[0] == weights[1] and len(names) == 8


def test_a_stopped_run_knows_when_its_images_changed(refused):
    write_pictures(Path("set"))
    flags = ("--no-label-check", "--val", "none")
    assert distill("set", "cnn_w4@none", *flags, task="imagenet") == 0
    write_pictures(Path("set"), SIZES[:3] + ((77, 77),) + SIZES[4:])
    message = refused(2, lambda: distill("set", "cnn_w4@none", *flags, task="imagenet"))
    assert "source_sha256" in message


def judge(*argv):
    return call("evaluate", *argv, *COMMON)


def test_a_model_is_judged_on_the_originals_validation_list(capsys, tmp_path):
    """Paths with spaces, labels after them; each image is counted once."""
    labels = [3, 3, 999, 0, 3, 17]
    names = write_pictures(Path("true_dataset/val images"), SIZES[:6], labels)
    Path("true_dataset/imagenet_val.txt").write_text("".join(
        f"true_dataset/val images/{n} {label}\n" for n, label in zip(names, labels, strict=True)))
    records = []
    for data in ((), ("--data", "true_dataset/imagenet_val.txt")):
        torch.manual_seed(0)
        assert judge("--task", "imagenet", "--model", "cnn_w4@none", *data) == 0
        out = capsys.readouterr().out
        records.append(json.loads(out))
        assert len(out.splitlines()) == 1 and records[-1]["images"] == 6
    assert records[0] == records[1]


@pytest.mark.parametrize("shift, acc1", [(0, 100.0), (1, 0.0)])
def test_the_accuracy_on_a_list_is_that_of_its_labels(capsys, monkeypatch, shift, acc1):
    """A model that sees the red level, which is the label, judged through files and cache."""
    class Red(torch.nn.Module):
        def forward(self, x):
            level = x[:, 0].mean((1, 2)) * IMAGENET.std[0] + IMAGENET.mean[0]
            return one_hot((level * 255).round().long(), 1000).float()

    card = {"fold": None, "val": None}
    monkeypatch.setattr(evaluate.models, "load_frozen", lambda *a: (Red(), card))
    Path("set").mkdir()
    lines = []
    for i, level in enumerate((0, 5, 128, 254, 200)):
        Path(f"set/{i}.png").write_bytes(png(np.full((*SIZES[i], 3), level, np.uint8)))
        lines.append(f"set/{i}.png {level + shift}")
    Path("val.txt").write_text("\n".join(lines))
    assert judge("--task", "imagenet", "--model", "red", "--data", "val.txt") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["acc1"] == acc1 and found["images"] == 5


def test_a_teacher_of_any_folder_is_trained_and_judged(capsys):
    for part, count in (("train", 4), ("val", 2)):
        for name in ("10", "9"):
            for i, size in enumerate(SIZES[:count]):
                path = Path("data") / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(np.full((*size, 3), int(name), np.uint8)))
    folder = ("--task", "folder", "--data", "data")
    assert call("train_teacher", *folder, "--model", "cnn_w4", "--epochs", 1, "--batch-size", 4,
                "--amp", "none", "--out", "out", *COMMON) == 0
    assert record("model.json")["class_names"] == ["9", "10"]
    capsys.readouterr()
    assert judge(*folder, "--model", "out") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4


def test_a_dry_run_of_a_folder_task_writes_nothing(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "data/train" / name).mkdir(parents=True)
    before = contents(tmp_path)
    assert call("train_teacher", "--task", "folder", "--data", "data", "--model", "cnn_w4",
                "--out", "out", "--dry-run") == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_source_of_a_few_images_is_enough(count):
    write_pictures(Path("set"), SIZES[:count])
    assert distill("set", "cnn_w4@none", "--no-label-check", "--val", "none", task="imagenet") == 0


# --- what can be wrong ----------------------------------------------------------------------------

def broken(what, names) -> Path:
    """A source that is wrong in one way."""
    path = Path("set") / names[3]
    if what == "truncated image":
        path.write_bytes(path.read_bytes()[:60])
    elif what == "empty image":
        path.write_bytes(b"")
    elif what == "text image":
        path.write_text("hello")
    elif what == "truncated archive":
        data = zipped("set.zip", "set").read_bytes()
        Path("set.zip").write_bytes(data[:len(data) // 2])
        return Path("set.zip")
    elif what == "damaged archive":
        data = bytearray(zipped("set.zip", "set").read_bytes())
        data[len(data) // 3] ^= 255
        Path("set.zip").write_bytes(data)
        return Path("set.zip")
    elif what == "missing image":
        path.unlink()
        return listed("list.txt", names)
    elif what == "line without label":
        path.rename("set/unnamed.png")
        return listed("list.txt", [*names[:3], "unnamed.png"])
    elif what == "binary list":
        Path("list.txt").write_bytes(bytes(range(256)))
        return Path("list.txt")
    elif what == "empty list":
        Path("list.txt").write_text("\n")
        return Path("list.txt")
    elif what == "label":
        path.rename("set/class_10_x.png")
    elif what == "folders":
        Path("set/cats").mkdir()
        for name in names:
            (Path("set") / name).rename(f"set/cats/{name[6:]}")
    elif what == "empty folder":
        Path("empty").mkdir()
        return Path("empty")
    return Path("set")


@pytest.mark.parametrize("what, code, shown", [
    ("truncated image", 5, "num_1.png"), ("empty image", 5, "num_1.png"),
    ("text image", 5, "num_1.png"), ("truncated archive", 5, "set.zip"),
    ("damaged archive", 5, "set.zip"), ("missing image", 2, "line 4"),
    ("line without label", 5, "line 4"), ("binary list", 5, "list.txt"),
    ("empty list", 2, "list.txt"), ("label", 2, "class_10_x.png"), ("folders", 2, "cats"),
    ("empty folder", 2, "empty")])
def test_a_bad_source_is_refused_before_anything_is_written(refused, teacher_folder, what, code,
                                                            shown):
    names = write_digits(Path("set"))
    source = broken(what, names)
    before = contents(Path.cwd())
    assert shown in refused(code, distill, source, teacher_folder)
    after = {k: v for k, v in contents(Path.cwd()).items() if k != "cache"}
    assert after == before  # an empty folder for the cache may stay


@pytest.mark.parametrize("argv, code, shown", [
    (("--task", "imagenet", "--data", "nowhere"), 2, "nowhere"),
    (("--task", "imagenet", "--data", "bare.txt"), 5, "line 1 has no label"),
    (("--task", "imagenet", "--data", "range.txt"), 2, "1000"),
    (("--task", "imagenet", "--data", "missing.txt"), 2, "not there"),
    (("--task", "imagenet", "--data", "damaged.txt"), 5, "damaged.png"),
    (("--task", "imagenet", "--data", "set"), 2, "n01440764"),
    (("--task", "imagenet"), 2, "true_dataset"),
    (("--task", "imagenet100", "--data", "none_of_them.txt"), 2, "15"),
    (("--task", "cifar100", "--data", "set"), 2, "cifar-100-python"),
    (("--task", "fashion_mnist", "--data", "set"), 2, "train-images-idx3-ubyte"),
    (("--task", "flowers102", "--data", "set"), 2, "imagelabels.mat"),
    (("--task", "folder"), 2, "--data"), (("--task", "folder", "--data", "set"), 2, "set"),
    (("--task", "digits", "--data", "set"), 2, "--data")])
def test_bad_real_data_are_refused(refused, argv, code, shown):
    write_pictures(Path("set"), [(20, 20)], [1])
    Path("set/damaged.png").write_bytes(b"hello")
    for name, line in (("bare", "set/x.png"), ("range", "set/class_1_seed_0_num_0.png 1000"),
                       ("missing", "set/y.png 3"), ("damaged", "set/damaged.png 3"),
                       ("none_of_them", "set/class_1_seed_0_num_0.png 0")):
        Path(name + ".txt").write_text(line + "\n")
    message = refused(code, lambda: judge(*argv, "--model", "cnn_w4@none"))
    assert shown in message


def test_training_on_the_validation_list_is_refused(refused):
    names = write_pictures(Path("set"))
    Path("val.txt").write_text("".join(f"set/{n} {i}\n" for i, n in enumerate(names)))
    message = refused(2, lambda: call(
        "train_teacher", "--task", "imagenet", "--data", "val.txt", "--model", "cnn_w4",
        "--out", "out", *COMMON))
    assert "--val dev" in message and not Path("out").exists()


def test_without_a_network_nothing_hangs_and_the_place_is_named(refused, monkeypatch):
    def download(self, root, download, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "__init__", download)
    monkeypatch.setattr(real_data, "ROOT", Path("true_dataset"))
    message = refused(2, lambda: judge("--task", "cifar100", "--model", "cnn_w4@none"))
    assert "true_dataset/" in message and "no route" in message
