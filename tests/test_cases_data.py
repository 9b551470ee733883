"""What people bring: folders, layouts and lists after public bug reports. Each image's colour is
its class, so that labels are checked against pixels; none is labelled wrongly without a word."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import datasets

from dm_kd import augment, evaluate, models, run, tasks
from dm_kd.data import load_real, load_source, load_validation
from dm_kd.generators import text_to_image
from dm_kd.run import UserError
from dm_kd.tasks import WNIDS, get_task

SOME = (0, 15, 45, 999)  # of ImageNet's classes


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(path, number=0, size=(4, 4)) -> Path:
    """An image whose colour is the number."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number >> 8, number & 255, 0)).save(path, "PNG")
    return path


def shown(images) -> list[int]:
    """The number that each picture shows."""
    return [int(images.images[i][0, 0, 0]) * 256 + int(images.images[i][1, 0, 0])
            for i in range(len(images.labels))]


def flags(*argv) -> argparse.Namespace:
    """The flags of a command that reads images, with `source`."""
    parser = run.Parser("test", "")
    run.add_data_arguments(parser)
    parser.add_argument("--source", default="real")
    parser.add_argument("--source-labels", default="task")
    return run.parse(parser, [*map(str, argv)])


def task_of(*argv) -> tuple[tasks.Task, argparse.Namespace]:
    args = flags(*argv)
    return get_task(args.task, args.data, args), args


def real(*argv, split="val"):
    task, args = task_of(*argv)
    return load_real(task, split, args.fold, args.val, args.data)


# --- class order ----------------------------------------------------------------------------------

TEXT_ORDER = ["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"]


@pytest.mark.parametrize("form", ["{}", "class{}", "{:02d}"])
def test_a_folders_classes_have_imagefolders_order_and_numbers_get_a_note(form):
    for split in ("train", "val"):
        for i in range(11):
            save(f"mine/{split}/{form.format(i)}/a.png", i)
    task, args = task_of("--task", "folder", "--data", "mine")
    theirs = datasets.ImageFolder("mine/train")
    assert list(task.class_names) == theirs.classes
    for images in (load_validation(task, args), load_source(args, task)):
        said = " ".join(images.notes)
        assert f"11 classes: {', '.join(theirs.classes)}" in said
        assert "--class-order" in said
    found = real("--task", "folder", "--data", "mine")
    assert found.labels.tolist() == theirs.targets
    assert shown(found) == [int(name.removeprefix("class")) for name in theirs.classes]


@pytest.mark.parametrize("order", ["0\n1\n2\n10\n", "\ufeff10\r\n2\r\n1\r\n0\r\n\r\n",
                                   "0\n1\n2\n3\n10"])
def test_a_class_order_is_that_of_a_file(order):
    names = order.replace("\ufeff", "").split()
    for name in ("0", "1", "2", "10"):
        save(f"mine/train/{name}/a.png", names.index(name))
    Path("order.txt").write_text(order, encoding="utf-8")
    task, args = task_of("--task", "folder", "--data", "mine", "--class-order", "order.txt",
                         "--val", "dev")
    assert list(task.class_names) == names  # a teacher may have more classes than the folders
    images = load_real(task, "train", 0, "none", args.data)
    assert images.labels.tolist() == shown(images) and not images.notes


@pytest.mark.parametrize("order", ["0\n1\n2", "0\n1\n2\n2\n10", "a\nb\nc\nd"])
def test_a_class_order_that_lacks_a_folder_is_refused(order):
    for name in ("0", "1", "2", "10"):
        save(f"mine/train/{name}/a.png")
    Path("order.txt").write_text(order)
    for task in (("folder", "--data", "mine"), ("cifar10",)):
        with pytest.raises(UserError, match=r"order\.txt"):
            task_of("--task", *task, "--class-order", "order.txt")


@pytest.mark.parametrize(("first", "given"), [(0, SOME), (1, SOME), (0, (0, 1)), (1, (0, 999))])
def test_numbered_folders_of_imagenet_are_class_indices_and_said(first, given):
    for c in given:
        save(f"mine/val/{c + first}/a.JPEG", c)
    images = real("--task", "imagenet", "--data", "mine")
    assert images.labels.tolist() == shown(images)
    assert f"{first} is 'tench', {first + 1} is 'goldfish'" in images.notes[0]


@pytest.mark.parametrize("names", [("1", "2"), ("17",), ("0", "1000"), ("1", "1001")])
def test_numbered_folders_that_may_mean_two_things_are_refused(names):
    for name in names:
        save(f"mine/val/{name}/a.JPEG")
    with pytest.raises(UserError, match="mine/val"):
        real("--task", "imagenet", "--data", "mine")


def test_a_class_order_tells_what_numbered_folders_mean():
    for c in range(10):
        save(f"mine/{9 - c}/a.png", c)
    Path("order.txt").write_text("\n".join(map(str, range(9, -1, -1))))
    task, args = task_of("--task", "cifar10", "--source", "mine", "--class-order", "order.txt")
    images = load_source(args, task)
    assert images.labels.tolist() == images.images[:, 1, 0, 0].tolist() == [*range(9, -1, -1)]


# --- splits ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("train", "val"), [
    ("Train", "Val"), ("training", "validation"), ("TRAIN", "Test"), ("training", "testing")])
def test_splits_are_known_by_their_usual_names(train, val):
    for split in (train, val):
        for i, name in enumerate(("ape", "bee")):
            save(f"mine/{split}/{name}/a.png", i)
    for task in (("folder",), ("cifar10", "--class-order", "order.txt")):
        Path("order.txt").write_text("ape\nbee\n" + "\n".join("abcdefgh"))
        for split in ("train", "val"):
            images = real("--task", *task, "--data", "mine", split=split)
            assert images.labels.tolist() == shown(images) == [0, 1]
            assert not images.notes  # as there are for numbers


@pytest.mark.parametrize("places", [
    ("train_set", "test_set"), ("Training Images", "Validation Images"), ("dev", "eval"),
    ("trainset", "testset"), ("train/train", "train/val"), ("", "flat"), ("train/one", "val/one")])
def test_folders_that_are_not_two_classes_are_refused(places):
    for place in places:
        save(f"mine/{place}/a.png")
    for data in (("--data", "mine"), ("--data", "nowhere"), ()):
        with pytest.raises(UserError, match="two class folders"):
            task_of("--task", "folder", *data)


def test_what_imagefolder_reads_is_read_and_what_is_skipped_is_counted():
    for end in ("webp", "bmp", "tif", "JPG"):
        save(f"mine/train/cat/deep/er/x.{end}")
    for name in ("dog/._a.png", "dog/.DS_Store", "dog/.hidden/x.png", "dog/x.gif", "dog/b.txt"):
        Path("mine/train", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine/train", name).write_bytes(b"no image")
    save("mine/train/dog/a.png"), save("mine/val/cat/a.png")
    images = real("--task", "folder", "--data", "mine", split="train")
    assert images.labels.tolist() == [0] * 4 + [1]
    assert "2 files" in images.notes[0] and "dog/b.txt" in images.notes[0]
    Path("mine/val/link").symlink_to(Path("mine/train/cat").absolute())
    with pytest.raises(UserError, match="link"):  # a class that training has not
        real("--task", "folder", "--data", "mine")


@pytest.mark.parametrize("task", ["folder", "imagenet", "cifar10"])
def test_class_folders_alone_are_evaluated_but_not_trained_on_too(task):
    names = WNIDS[:2] if task == "imagenet" else ("airplane", "automobile")
    for i, name in enumerate(names):
        for k in range(6):
            save(f"mine/{name}/{k}.png", i)
    images = real("--task", task, "--data", "mine")
    assert images.labels.tolist() == shown(images) == [0] * 6 + [1] * 6
    with pytest.raises(UserError, match="--val dev"):
        real("--task", task, "--data", "mine", split="train")
    parts = [real("--task", task, "--data", "mine", "--val", "dev", split=split)
             for split in ("train", "val")]
    assert [len(part.labels) for part in parts] == [10, 2]
    assert not {*parts[0].images.paths} & {*parts[1].images.paths}


@pytest.mark.parametrize(("source", "said"), [
    ("mine/val", "2 of 2"), ("mine/train", "1 of 3"), ("list.txt", "1 of 2")])
def test_training_on_validation_images_is_said(source, said):
    for name in ("ape", "bee"):
        save(f"mine/val/{name}/a.png"), save(f"mine/train/{name}/b.png")
    Path("mine/train/ape/c.png").symlink_to(Path("mine/val/ape/a.png").absolute())
    Path("list.txt").write_text("mine/val/ape/a.png 0\nmine/train/ape/b.png 0\n")
    task, args = task_of("--task", "folder", "--data", "mine", "--source", source)
    assert f"{said} images of {source} are validation images" in load_source(args, task).notes[-1]


# --- ImageNet as it is delivered ------------------------------------------------------------------

NAMED, FLAT = "mine/val/ILSVRC2012_val_{c:08d}_{w}.JPEG", "ILSVRC2012_val_{c:08d}.JPEG"
KAGGLE = "ILSVRC/Data/CLS-LOC"


@pytest.mark.parametrize(("path", "data"), [
    (f"{KAGGLE}/val/{FLAT}", "."), (f"{KAGGLE}/val/{FLAT}", f"{KAGGLE}/val"), (NAMED, "mine"),
    ("mine/val/{w}_{c}_{w}.JPEG", "mine"), ("mine/val/{w}/deep/{c}.JPEG", "mine"),
    ("mine/val/{w}/{c}.JPEG", "mine/val"), ("true_dataset/imagenet/val/{w}/{c}.JPEG", None),
    ("mine/val/{c}.JPEG", "mine")])
def test_imagenet_is_read_as_it_is_delivered(path, data):
    """Kaggle's, the hub's, WordNet folders, a list."""
    named, listed = [(c, path.format(c=c, w=WNIDS[c])) for c in SOME], path == "mine/val/{c}.JPEG"
    for c, name in named:
        save(name, c)
        Path(name).with_name(f"._{Path(name).name}").write_bytes(b"of macOS")
    if FLAT in path:
        rows = [f"ILSVRC2012_val_{c:08d},{WNIDS[c]} 1 2 3 4 {WNIDS[c]} 5 6 7 8 " for c in SOME]
        Path("LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows, ""]))
    if listed:
        Path("mine/imagenet_val.txt").write_text("".join(f"val/{c}.JPEG {c}\n" for c in SOME)
                                                 + "val/._0.JPEG 0\n")
    argv = ("--data", data) if data else ()
    images, part = (real("--task", name, *argv) for name in ("imagenet", "imagenet100"))
    assert images.labels.tolist() == shown(images) == [*SOME]
    assert part.labels.tolist() == [0, 1] and shown(part) == [15, 45]
    assert listed or "2 val images are left out" in part.notes[-1]


@pytest.mark.parametrize("name", ["ILSVRC2012_validation_ground_truth.txt", "imagenet_val.txt"])
def test_a_flat_folder_or_a_list_without_labels_is_refused(name):
    save("mine/val/ILSVRC2012_val_00000001.JPEG")
    Path("mine", name).write_text(  # the ground truth counts classes in another order
        "val/ILSVRC2012_val_00000001.JPEG\n" if name == "imagenet_val.txt" else "490\n")
    with pytest.raises(UserError, match="no val image of a class"):
        real("--task", "imagenet", "--data", "mine")


@pytest.mark.parametrize("task", ["folder", "imagenet"])
@pytest.mark.parametrize("converted", [False, True])
def test_tiny_imagenet_has_its_own_order_and_annotations(task, converted):
    chosen, rows = (45, 0, 999), []
    for c in chosen:
        save(f"tiny/train/{WNIDS[c]}/images/{WNIDS[c]}_0.JPEG", c, (64, 64))
        Path(f"tiny/train/{WNIDS[c]}/{WNIDS[c]}_boxes.txt").write_text("boxes")
        save(f"tiny/val/{WNIDS[c] if converted else ''}/images/val_{c}.JPEG", c, (64, 64))
        rows.append(f"val_{c}.JPEG\t{WNIDS[c]}\t0\t32\t44\t62\n")
    Path("tiny/val/val_annotations.txt").write_text("".join(rows))
    save("tiny/test/images/test_0.JPEG")
    order = sorted(chosen) if task == "folder" else range(1000)
    for split in ("train", "val"):
        images = real("--task", task, "--data", "tiny", split=split)
        assert [order[label] for label in images.labels] == shown(images)
    assert get_task("folder", Path("tiny")).imagenet_classes == (0, 45, 999)
    loaded = load_validation(*task_of("--task", task, "--data", "tiny"))
    assert "enlarged to 224" in loaded.notes[-1]


# --- folders of one's own size --------------------------------------------------------------------

@pytest.mark.parametrize(("argv", "shape", "large"), [
    (("--resolution", 32), (3, 32, 32), False), (("--resolution", 128), (3, 128, 128), True),
    (("--resolution", 28, "--channels", 1, "--mean", "0.28", "--std", "0.35"), (1, 28, 28), False),
    ((), (3, 224, 224), True)])
def test_a_folder_has_its_own_size_channels_and_statistics(argv, shape, large):
    for split in ("train", "val"):
        for i, name in enumerate(("ape", "bee")):
            save(f"mine/{split}/{name}/a.png", 200 * i, (28, 28))
    task, args = task_of("--task", "folder", "--data", "mine", *argv)
    assert task.large is large and tasks.is_large("folder", str(task.resolution)) is large
    images = load_validation(task, args)
    assert images.images.shape == (2, *shape)
    assert any("enlarged" in note for note in images.notes) == large
    if task.channels == 1:
        assert (task.mean, task.std) == ((0.28,), (0.35,))
    assert augment.plain_view(task).apply(images.images, None, {})[0].shape == (2, *shape)


@pytest.mark.parametrize("argv", [
    ("folder", "--channels", 1), ("folder", "--mean", "0.5"), ("cifar10", "--resolution", 64),
    ("folder", "--mean", "127,127,127"), ("folder", "--std", "0,0,0"), ("digits", "--mean", "0.5"),
    ("imagenet", "--channels", 1)])
def test_sizes_and_statistics_that_do_not_fit_are_refused(argv):
    save("mine/train/ape/a.png"), save("mine/train/bee/a.png")
    with pytest.raises(UserError):
        task_of("--task", *argv, *(("--data", "mine") if argv[0] == "folder" else ()))


# --- lists and folders to train on ----------------------------------------------------------------

def source(task, path, *argv):
    task, args = task_of("--task", task, "--source", path, *argv)
    return load_source(args, task)


@pytest.mark.parametrize("start", [
    "sub", "deep/sub", "lists/deep/sub", "./", "/another/machine/deep/sub"])
@pytest.mark.parametrize("text", [
    "{0}\n{1}\n", "\ufeff{0} 3\r\n{1} 7\r\n\r\n", "{0}\t3\n{1}   7"])
def test_lists_in_the_originals_and_other_forms(text, start):
    names = [f"class_{c}_seed_0 num_0.png" for c in (3, 7)]
    for c, name in zip((3, 7), names, strict=True):
        save(f"lists/deep/sub/{name}", c)
    place, path = ("--data", "lists/deep/sub"), Path("lists/deep/list.txt")
    path.write_text(text.format(*(f"{start}/{name}" for name in names)), encoding="utf-8")
    images = source("digits", path, *place)
    assert images.labels.tolist() == [3, 7] and images.images.shape == (2, 1, 8, 8)
    assert source("digits", path, *place, "--source-labels", "none").labels.tolist() == [-1, -1]


@pytest.mark.parametrize(("text", "shown"), [
    ("a.png 1\n\nb.png 2", "line 3"), ("x/a.png 1\ny/a.png 2", "line 2"),
    ("a.png 1\na.png", "1 with a label"), ("a.png 12", "12"), ("", "0 lines")])
def test_bad_lists_name_the_line(text, shown):
    save("a.png")
    Path("list.txt").write_text(text)
    with pytest.raises(UserError, match=rf"list\.txt.*{shown}"):
        source("digits", "list.txt")


@pytest.mark.parametrize(("names", "labels"), [
    (("class_3_seed_0_num_0.png", "sub/class_1_seed_0_num_1.png"), [3, 1]),
    (("Trouser/a.png", "Ankle boot/deep/b.png"), [9, 1]), (("0000/a.png", "9/b.png"), [0, 9]),
    (("Bag/class_3_seed_0_num_0.png", "Coat/class_1_seed_0_num_0.png"), [8, 4]),
    (("a.png", "b.png"), [-1, -1])])
def test_a_folders_labels_come_from_class_folders_or_names(names, labels):
    for name in names:
        save(f"set/{name}")
    images = source("fashion_mnist", "set")
    assert images.labels.tolist() == labels and images.images.shape == (2, 1, 28, 28)


@pytest.mark.parametrize(("names", "shown"), [
    (("gloves/a.png",), "gloves"), (("10/a.png",), "10"), (("class_10_x.png",), "10"),
    (("train/0/a.png", "val/0/a.png"), "set/train"), (("0/a.txt",), "no images"),
    (("Bag/a.png", "b.png"), r"b\.png")])
def test_folders_of_other_classes_are_refused_and_named(names, shown):
    for name in names:
        save(f"set/{name}")
    with pytest.raises(UserError, match=shown):
        source("fashion_mnist", "set")


# --- names ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("names", "prompts"), [
    (("Cardigan", "cardigan", "ape"), ["Cardigan, class 0", "cardigan, class 1", "ape"]),
    (("sea_lion", "Sea lion"), ["sea lion, class 0", "Sea lion, class 1"])])
def test_two_classes_of_one_name_have_two_prompts(names, prompts, capsys):
    assert text_to_image.distinct(names) == prompts
    assert capsys.readouterr().err.count("note: ") == 2


def test_evaluate_takes_a_folder_as_the_validation_images(capsys):
    for i, name in enumerate(("ape", "bee")):
        save(f"mine/{name}/a.png", i)
    code = evaluate.main([
        "--task", "folder", "--data", "mine", "--resolution", "32", "--model", "cnn_w4@none",
        "--device", "cpu", "--threads", "1"])
    assert code == 0 and json.loads(capsys.readouterr().out)["images"] == 2


def test_a_run_keeps_its_own_class_order():
    """Trained with --class-order, evaluated without it: class names that are numbers are names."""
    for i in range(11):
        save(f"mine/train/{i}/a.png")
    Path("order.txt").write_text("\n".join(map(str, range(11))))
    common = ("--task", "folder", "--data", "mine", "--resolution", "32")
    ordered, sorted_as_text = task_of(*common, "--class-order", "order.txt")[0], task_of(*common)[0]
    state = models.build("cnn_w4", ordered).state_dict()
    run.write_with_card(Path("run"), "model", state, models.card("cnn_w4", ordered))
    x = torch.randn(2, 3, 32, 32)
    logits, other = (models.load_frozen("run", task)[0](x) for task in (ordered, sorted_as_text))
    assert torch.equal(other, logits[:, [*map(int, TEXT_ORDER)]])
