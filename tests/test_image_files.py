"""Images as users have them: lists, folders and zip archives of every kind, whole and damaged.

Whatever the bytes are, the result is images or a short message; nothing is written anywhere.
"""

import contextlib
import io
import os
import random
import shutil
import struct
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import contents

from dm_kd import image_files
from dm_kd.class_names import CIFAR100, IMAGENET100
from dm_kd.errors import DamagedError, UserError
from dm_kd.image_files import ImageFiles
from dm_kd.real_data import imagenet_names

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijkl")  # twelve classes whose names are no numbers


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(level=0, side=4) -> bytes:
    """A PNG of one grey level."""
    return encoded(Image.new("L", (side, side), level))


def save(path: Path, level=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(grey(level))
    return path


def write_list(path: Path, *lines: str, end="\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def write_zip(path: Path, members: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def find(path, names=DIGITS, channels=1, **options) -> ImageFiles:
    return image_files.find(Path(path), names, channels, **options)


def levels(found: ImageFiles) -> list[int]:
    """The grey level of each image, which tells the images of these tests apart."""
    return [int(image.float().mean()) for image in found[torch.arange(len(found))]]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- lists ----------------------------------------------------------------------------------------

ORIGINAL = "syn_dataset/s2_st100/class_{}_seed_{}_num_{}.png"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n \t\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_the_originals_list_is_read_as_it_is(end, mark, prefix, separator):
    names = [ORIGINAL.format(c, 10 * c, c) for c in (3, 0, 9)]
    for name, level in zip(names, (30, 0, 90), strict=True):
        save(Path(name), level)
    lines = [(prefix + name).replace("/", separator) for name in names]
    path = write_list(Path("syn_dataset/s2_st100_200k.txt"), mark + lines[0], *lines[1:], end=end)
    found = find(path)
    assert found.labels.tolist() == [3, 0, 9] and levels(found) == [30, 0, 90]


@pytest.mark.parametrize("place, root", [
    ("here", None), ("lists/mine", None), ("lists", None), ("data", "../data"),
    ("lists/mine/deep/down", None), ("data/deep/down", "../data")])
def test_relative_paths_are_found(tmp_path, monkeypatch, place, root):
    """From the working directory, the list's folder, its parent, --data, or by base name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(tmp_path / place / "set/class_7_seed_1_num_0.png", 70)
    path = write_list(tmp_path / "lists/mine/list.txt", "set/class_7_seed_1_num_0.png")
    found = find(path, root=Path(root) if root else None)
    assert levels(found) == [70] and found.labels.tolist() == [7]


def test_absolute_paths_are_taken_as_they_are(tmp_path):
    image = save(tmp_path / "far away" / "class_2_seed_0_num_0.png", 20)
    assert levels(find(write_list(Path("lists/list.txt"), str(image)))) == [20]


def test_a_path_of_another_machine_is_found_by_its_base_name(tmp_path):
    save(tmp_path / "set/images/class_2_seed_0_num_0.png", 20)
    path = write_list(tmp_path / "set/list.txt", r"D:\results\class_2_seed_0_num_0.png")
    assert levels(find(path)) == [20]


def test_equal_base_names_are_told_apart_by_their_folders(tmp_path):
    for i, folder in enumerate(("cat", "dog")):
        save(tmp_path / "set" / folder / "1.png", 10 + i)
    path = write_list(tmp_path / "set/list.txt", "/old/dog/1.png 1", "/old/cat/1.png 0")
    assert levels(find(path)) == [11, 10]


def test_a_place_given_twice_is_one_place(tmp_path):
    save(tmp_path / "set/deep/1.png", 10)
    path = write_list(tmp_path / "set/list.txt", "/old/1.png 1")
    assert levels(find(path, root=Path("set/../set"))) == [10]


def test_an_image_that_could_be_either_of_two_is_refused(tmp_path):
    for folder in ("cat", "dog"):
        save(tmp_path / "set" / folder / "1.png")
    path = write_list(tmp_path / "set/list.txt", "/old/1.png 1")
    with pytest.raises(UserError, match=r"line 1[\s\S]*1\.png"):
        find(path)


def test_a_missing_image_is_named_with_its_line_and_the_places_tried(tmp_path):
    save(Path("class_1_seed_0_num_0.png"))
    path = write_list(Path("lists/list.txt"), "class_1_seed_0_num_0.png", "",
                      "class_1_seed_0_num_1.png")
    with pytest.raises(UserError, match="line 3") as error:
        find(path, root=tmp_path / "data")
    assert error.value.exit_code == 2
    for shown in ("class_1_seed_0_num_1.png", str(tmp_path), str(tmp_path / "lists"), "--data"):
        assert shown in str(error.value)


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "x/" * 3000 + "a.png", "loop.png",
                                  "folder.png", "a_file/a.png"])
def test_a_path_that_cannot_be_a_file_is_named_like_one_that_is_missing(name):
    Path("loop.png").symlink_to("loop.png")
    Path("folder.png").mkdir()
    Path("a_file").write_text("mine")
    with pytest.raises(UserError, match="line 1: the image is not there"):
        find(write_list(Path("list.txt"), name + " 3"))


@pytest.mark.parametrize("line, label", [
    ("a.png 3", 3), ("a.png  3", 3), ("a.png\t3", 3), ("a.png \t 3 ", 3), ("a b.png 3", 3),
    ("a  b.png 3", 3), ("a  b.png  3", 3), ("a b.png\t3", 3), ("my set/a b.png\t3", 3),
    ("  a.png 0", 0), ("./a.png 9", 9), ("a b\\a.png 4", 4), ("class_5_x.png 4", 4), ("7.png 4", 4),
    ("a 7.png 4", 4), ("a.png 003", 3), ("a.PNG 3", 3), ("a.JPEG 3", 3), ("ä 猫.png 3", 3)])
def test_a_line_may_end_in_a_label(line, label):
    name = line.strip().rsplit(None, 1)[0].replace("\\", "/")
    save(Path(name), 42)
    found = find(write_list(Path("imagenet_val.txt"), line))
    assert found.labels.tolist() == [label] and levels(found) == [42]


def test_lines_without_any_label_are_unlabelled():
    save(Path("cat 1.png"), 1), save(Path("2.png"), 2)
    found = find(write_list(Path("list.txt"), "cat 1.png", "2.png"))
    assert found.labels.tolist() == [-1, -1] and levels(found) == [1, 2]


@pytest.mark.parametrize("lines, bad", [
    (["a.png 1", "a.png"], 2), (["a.png", "a.png 1"], 1), (["a.png 1", "", "a.png", "a.png 2"], 3),
    (["class_1_a.png", "a.png", "a.png"], 2), (["a.png", "class_1_a.png"], 1)])
def test_a_line_without_a_label_among_labelled_ones_is_damage(lines, bad):
    save(Path("a.png")), save(Path("class_1_a.png"))
    with pytest.raises(DamagedError, match=f"line {bad} has no label") as error:
        find(write_list(Path("list.txt"), *lines))
    assert error.value.exit_code == 5


def test_labels_can_be_required():
    save(Path("a.png")), save(Path("class_4_a.png"))
    with pytest.raises(DamagedError, match="line 1 has no label"):
        image_files.read_list(write_list(Path("list.txt"), "a.png", "a.png"), DIGITS, 1,
                              need_labels=True)
    path = write_list(Path("list.txt"), "class_4_a.png")
    assert image_files.read_list(path, DIGITS, 1, need_labels=True).labels.tolist() == [4]


@pytest.mark.parametrize("line", ["a.png 10", "a.png -1", "class_10_x.png", "a.png " + "9" * 5000,
                                  f"a.png {2 ** 63}", f"a.png {2 ** 64 + 1}", "a.png 999"])
def test_a_label_out_of_range_is_refused_and_its_image_named(line):
    name = line.split(" ")[0]
    save(Path(name))
    with pytest.raises(UserError, match="out of range") as error:
        find(write_list(Path("list.txt"), line))
    assert error.value.exit_code == 2 and name in str(error.value) and "10" in str(error.value)


def hint_for(labels, count, need_labels):
    names = [f"{i}.png" for i in range(len(labels))]
    with pytest.raises(UserError, match="out of range") as error:
        image_files.in_range(labels, tuple(map(str, range(count))), Path("val.txt"), names,
                             need_labels)
    return str(error.value)


@pytest.mark.parametrize(("labels", "count", "shown"), [
    ([1, 2, 3], 3, "these begin with 1"), ([0, 1, 3], 3, "right --task"),
    ([2, 3], 3, "right --task"), ([1, 4], 3, "right --task"),
    (range(1, 1001), 1000, "devkit's ids")])
def test_labels_that_begin_with_1_are_told_from_others_out_of_range(labels, count, shown):
    assert shown in hint_for(list(labels), count, True)
    assert ("devkit" in hint_for(list(labels), count, True)) == (count == 1000)


def test_to_go_without_labels_is_advised_where_they_are_not_needed_only():
    assert "--source-labels none" in hint_for([7], 3, False)
    assert "--source-labels" not in hint_for([7], 3, True)
    save(Path("a.png"))
    with pytest.raises(UserError, match="out of range") as error:
        image_files.read_list(write_list(Path("list.txt"), "a.png 12"), DIGITS, 1, need_labels=True)
    assert "--source-labels" not in str(error.value)


@pytest.mark.parametrize("lines", [["class_207_seed_0_num_0.png"], ["a.png 12345"]])
def test_labels_of_another_label_space_are_left_out_on_demand(lines):
    save(Path(lines[0].split(" ")[0]), 5)
    found = find(write_list(Path("list.txt"), *lines), labelled=False)
    assert found.labels.tolist() == [-1] and levels(found) == [5]


@pytest.mark.parametrize(("places", "labels"), [
    (["c", "a"], [2, 0]), (["9", "10"], [9, 10]), (["c", "shard7"], [-1, -1]),
    ([".", "."], [-1, -1])])
def test_a_list_without_labels_takes_those_of_its_images_folders(places, labels):
    names = [f"{place}/{i}.png" for i, place in enumerate(places)]
    for name in names:
        save(Path(name))
    assert find(write_list(Path("list.txt"), *names), LETTERS).labels.tolist() == labels


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", " \r\n\t\r\n"])
def test_an_empty_list_is_refused(text):
    Path("list.txt").write_text(text)
    with pytest.raises(UserError, match="empty"):
        find("list.txt")


@pytest.mark.parametrize("data", [
    bytes(range(256)), b"\xff\xfea\0.\0p\0n\0g\0", b"a.png\0 3\n", b"\0" * 50, b"a\0b.png 3\n",
    b"\x89PNG\r\n\x1a\n", b"notes.txt 3\n", b"hello\n", b"a.gif 3\n", b"3\n", b"a.png,3\n",
    b".png\n", b"<html>404</html>\n", b"/\n", b"..\n", b"a.png 3 x\n", b"{}\n"])
def test_a_list_that_holds_no_image_names_is_damage(data):
    save(Path("a.png"))
    Path("list.txt").write_bytes(data)
    with pytest.raises(DamagedError, match=r"list\.txt") as error:
        find("list.txt")
    assert error.value.exit_code == 5 and len(str(error.value).splitlines()) <= 6


def test_the_bad_line_is_numbered():
    save(Path("a.png"))
    with pytest.raises(DamagedError, match="line 4 names no PNG or JPEG"):
        find(write_list(Path("list.txt"), "a.png 1", "", "a.png 2", "a.tiff 3"))


FRAGMENTS = st.sampled_from([
    "a.png", "b c.jpg", "class_3_seed_0_num_1.png", "class_77_x.png", "x.gif", "./", "../", "/",
    "\\", " ", "  ", "\t", "\r", "\n", "\n", "0", "3", "12", "-1", "\ufeff", "\0", "é", "²", "٣",
    "n" * 300, "\u2028", "\x85", "~", "*", "C:"])


@settings(max_examples=300)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode),
                         st.lists(FRAGMENTS, max_size=12).map(lambda p: "".join(p).encode())))
def test_any_list_gives_images_or_a_short_message_and_writes_nothing(tmp_path, content):
    work = tmp_path / "work"
    for name in ("a.png", "b c.jpg", "class_3_seed_0_num_1.png", "class_77_x.png"):
        save(work / name)
    (work / "list.txt").write_bytes(content)
    before = contents(tmp_path)
    try:
        found = find(work / "list.txt")
        assert isinstance(found, ImageFiles) and len(found) == len(found.labels) > 0
        assert found.sizes() == [(4, 4)] * len(found)
    except UserError as error:
        assert error.exit_code in (2, 5) and len(str(error).splitlines()) <= 6
    assert contents(tmp_path) == before


def test_the_mutations_reach_both_refusal_and_images(tmp_path):
    save(Path("a.png"))
    assert len(find(write_list(Path("list.txt"), "a.png", "./a.png"))) == 2


# --- folders --------------------------------------------------------------------------------------

def test_a_set_as_folder_list_and_zip_is_the_same(tmp_path):
    names = [f"images/{c:04d}/class_{c}_seed_0_num_{k}.png" for k in range(3) for c in (10, 2, 1)]
    for i, name in enumerate(names):
        save(tmp_path / "set" / name, 20 * i)
    write_list(tmp_path / "set/s2_st100_200k.txt", *names)
    write_zip(tmp_path / "set.zip", {n: (tmp_path / "set" / n).read_bytes() for n in names})
    seen = []
    for path in ("set", "set/s2_st100_200k.txt", "set.zip"):
        found = find(path, LETTERS, 3)
        images = found[torch.arange(len(found))]
        assert all(image.shape == (3, 4, 4) for image in images)
        seen.append(sorted((Path(name).name, int(label), image.numpy().tobytes()) for
                           name, label, image in zip(found.names, found.labels, images,
                                                     strict=True)))
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 9


def folders(names, base="set"):
    """An image in each folder, of the grey level that is its position."""
    for i, name in enumerate(names):
        save(Path(base) / name / "1.png", i)
    return Path(base)


def by_level(found) -> list[int]:
    return [label for _, label in sorted(zip(levels(found), found.labels.tolist(), strict=True))]


def test_folders_named_by_index_are_numbers_and_no_text():
    assert by_level(find(folders(["1", "10", "2", "0011"]), LETTERS)) == [1, 10, 2, 11]


@pytest.mark.parametrize("names, found", [
    (("T-shirt/top", "Ankle boot", "Bag"), ["Ankle boot", "bag", "t-shirt_top"]),
    (("T-shirt/top", "Ankle boot", "Bag"), ["ankle_boot", "BAG", "TShirtTop"])])
def test_folders_named_by_class_are_matched_without_case_and_punctuation(names, found):
    assert by_level(find(folders(found), names)) == [1, 2, 0]


def test_classes_that_are_named_by_numbers_go_by_name():
    assert by_level(find(folders(["1", "2", "10"]), ("1", "2", "10"))) == [0, 1, 2]
    assert by_level(find(Path("set"), ("10", "1", "2"))) == [1, 2, 0]


def test_classes_whose_names_differ_in_case_only_are_told_apart():
    names = imagenet_names()
    assert by_level(find(folders(["Cardigan", "cardigan"]), names)) == [264, 474]


def test_some_of_the_classes_are_enough_where_names_tell_them():
    assert by_level(find(folders(["c", "a"]), LETTERS)) == [2, 0]
    assert by_level(find(folders(["11", "3"], "numbered"), LETTERS)) == [11, 3]


def test_wordnet_folders_of_imagenet100_have_its_labels():
    names = tuple(imagenet_names()[i] for i in IMAGENET100.values())
    wnids = tuple(IMAGENET100)
    assert by_level(find(folders(wnids), names, wnids=wnids)) == list(range(100))


def test_wordnet_folders_beside_the_classes_of_imagenet100_are_unlabelled():
    wnids = tuple(IMAGENET100)
    found = find(folders(["n00000001", *wnids]), tuple(map(str, range(100))), wnids=wnids)
    assert by_level(found) == [-1, *range(100)]


@pytest.mark.parametrize("count, shown", [(99, "1 classes are missing"), (98, "2 classes are mi")])
def test_wordnet_folders_are_refused_where_one_of_the_classes_is_missing(count, shown):
    wnids = tuple(IMAGENET100)
    with pytest.raises(UserError, match=shown) as error:
        find(folders(wnids[:count]), tuple(map(str, range(100))), wnids=wnids)
    assert wnids[count] in str(error.value)


def test_wordnet_folders_that_are_class_names_go_by_name():
    assert by_level(find(folders(["n00000002", "n00000001"]),
                         ("n00000000", "n00000001", "n00000002"))) == [2, 1]


@pytest.mark.parametrize("names, wnids", [
    (DIGITS, [f"n{i:08d}" for i in range(10)]), (CIFAR100, list(IMAGENET100)),
    (LETTERS, ["n00000001"])])
def test_wordnet_folders_say_nothing_to_a_task_without_wordnet_classes(names, wnids):
    with pytest.raises(UserError, match="n0"):
        find(folders(wnids), names)


@pytest.mark.parametrize("found", [["0", "12"], ["cat", "dog"], ["a", "b", "cat"], ["0", "a"],
                                   ["-1"], ["0.5"], ["²"], ["images"], ["9" * 200]])
def test_folders_of_other_classes_are_refused_with_what_is_expected(found):
    with pytest.raises(UserError, match="no class of the task") as error:
        find(folders(found), LETTERS)
    assert error.value.exit_code == 2
    assert "expected a, b, c, d" in str(error.value) and found[0] in str(error.value)
    assert find(Path("set"), LETTERS, labelled=False).labels.tolist() == [-1] * len(found)


def test_images_beside_the_folders_of_classes_are_refused():
    folders(["a", "b"])
    save(Path("set/stray.png"), 1)
    with pytest.raises(UserError, match="beside the folders of the classes"):
        find("set", LETTERS)
    assert find("set", LETTERS, labelled=False).labels.tolist() == [-1] * 3


@pytest.mark.parametrize("labelled", [True, False])
def test_a_folder_of_both_training_and_validation_images_is_refused(labelled):
    for part in ("train", "val"):
        save(Path(f"set/{part}/a/1.png"), 1)
    with pytest.raises(UserError, match="images to learn from and to be judged on"):
        find("set", LETTERS, labelled=labelled)
    assert len(find("set/train", LETTERS).labels) == 1
    save(Path("classes/train/1.png"), 1), save(Path("classes/val/1.png"), 1)  # two classes
    assert find("classes", ("train", "val")).labels.tolist() == [0, 1]


def test_a_flat_folder_of_unnamed_images_is_unlabelled():
    save(Path("set/1.png"), 1), save(Path("set/2.jpg"), 2)
    Path("set/notes.txt").write_text("hello")
    found = find("set", LETTERS)
    assert found.labels.tolist() == [-1, -1] and levels(found) == [1, 2]


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "JPG", "jpeg", "JPEG"])
def test_image_suffixes_are_taken_in_any_case(suffix):
    save(Path(f"set/1.{suffix}"), 3)
    assert levels(find("set")) == [3]


def test_folders_and_links_named_like_images_are_passed_over():
    save(Path("set/1.png"), 1)
    Path("set/2.png").mkdir()
    Path("set/3.png").symlink_to("nowhere")
    assert levels(find("set")) == [1]


@pytest.mark.parametrize("where", ["__MACOSX/set", ".thumbnails", "set"])
def test_a_systems_hidden_files_are_no_images(where):
    """Finder writes ._NAME beside NAME."""
    save(Path("folder/set/1.png"), 1)
    hidden = save(Path("folder") / where / "._1.png")
    hidden.write_bytes(b"\0\5\x16\7")
    assert levels(find("folder", labelled=False)) == [1]
    with zipfile.ZipFile("archive.zip", "w") as archive:
        archive.write("folder/set/1.png", "set/1.png")
        archive.write(hidden, f"{where}/._1.png")
    assert levels(find("archive.zip", labelled=False)) == [1]


@pytest.mark.parametrize("make", [
    lambda: Path("set").mkdir(), lambda: save(Path("set/1.png")).rename("set/1.gif"),
    lambda: write_zip(Path("set"), {}), lambda: write_zip(Path("set"), {"readme.txt": b"hello"})])
def test_a_place_without_images_is_refused(make):
    make()
    with pytest.raises(UserError, match="no PNG or JPEG images"):
        find("set")


@pytest.mark.parametrize("name", ["picture.png", "data.npz.bin", "set"])
def test_a_file_of_another_kind_is_refused(name):
    Path(name).write_bytes(grey())
    with pytest.raises(UserError, match="not a folder, a .txt list or a zip"):
        find(name)


def test_a_place_that_is_not_there_is_named():
    with pytest.raises(UserError, match="nowhere"):
        find("nowhere")


def test_an_image_that_went_away_is_named():
    save(Path("set/class_1_a.png")), save(Path("set/class_2_b.png"))
    found = find("set")
    Path("set/class_2_b.png").unlink()
    for use in (lambda: found[torch.tensor([1])], found.sizes, lambda: found.fingerprint):
        with pytest.raises(UserError, match="class_2_b.png"):
            use()


def test_a_huge_file_is_refused_before_it_is_read():
    save(Path("set/1.png"))
    os.truncate("set/1.png", image_files.MAX_BYTES + 1)  # takes no space on the disk
    with pytest.raises(DamagedError, match="256 MB"):
        find("set")[torch.tensor([0])]


# --- what is asked of the images ------------------------------------------------------------------

def test_images_are_given_in_the_order_asked_for():
    folders(LETTERS)
    found, index = find("set", LETTERS), torch.tensor([7, 0, 7, 11])
    assert [int(image[0, 0, 0]) for image in found[index]] == [7, 0, 7, 11]
    chosen = found.chosen(index)
    assert levels(chosen) == [7, 0, 7, 11] == chosen.labels.tolist()
    assert found.chosen(index, torch.tensor([4, 3, 2, 1])).labels.tolist() == [4, 3, 2, 1]


def test_sizes_are_height_and_width():
    Path("set").mkdir()
    for i, (height, width) in enumerate(((3, 5), (7, 2))):
        Image.new("RGB", (width, height)).save(f"set/{i}.jpg")
    found = find("set")
    assert found.sizes() == [(3, 5), (7, 2)]
    assert [image.shape for image in found[torch.arange(2)]] == [(1, 3, 5), (1, 7, 2)]


def test_linked_class_folders_are_entered_and_no_link_back(tmp_path):
    for c in (1, 2):
        save(tmp_path / f"whole/{c}/a.png", c)
    Path("part").mkdir()
    for c in (1, 2):
        Path(f"part/{c}").symlink_to(tmp_path / f"whole/{c}", target_is_directory=True)
    Path("part/2/round").symlink_to(Path("part").absolute(), target_is_directory=True)
    assert image_files.images_below(Path("part")) == ["1/a.png", "2/a.png"]
    assert levels(find("part")) == [1, 2]


@pytest.mark.parametrize(("size", "good"), [((200, 2), True), ((202, 2), False), ((1, 101), False)])
def test_an_image_as_thin_as_a_line_is_refused(size, good):
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    if good:
        assert image_files.read_image(buffer.getvalue(), "x").shape == (1, *size[::-1])
        return
    with pytest.raises(DamagedError, match="100 times the other"):
        image_files.read_image(buffer.getvalue(), "x")


def test_a_fingerprint_is_that_of_names_labels_sizes_and_times():
    names = [save(Path(f"set/class_{c}_a.png"), c) for c in (1, 2)]
    marks = {find("set").fingerprint}
    assert find("set").fingerprint in marks
    for change in (lambda: os.utime(names[0], ns=(1, 1)), lambda: os.truncate(names[0], 70),
                   lambda: names[0].rename("set/class_1_b.png"), lambda: save(names[0])):
        change()
        marks.add(find("set").fingerprint)
    marks.add(find("set", labelled=False).fingerprint)
    assert len(marks) == 6


def test_an_identity_stays_when_images_move_and_changes_with_names_labels_and_sizes(tmp_path):
    names = [save(Path(f"set/class_{c}_a.png"), c) for c in (1, 2)]
    marks = {find("set").identity}
    shutil.copytree("set", tmp_path / "elsewhere/deep")  # with times of its own
    Path("list.txt").write_text("set/class_1_a.png\nset/class_2_a.png\n")
    (tmp_path / "elsewhere/list.txt").write_text("deep/class_1_a.png\ndeep/class_2_a.png\n")
    listed = [find(path).identity for path in ("list.txt", tmp_path / "elsewhere/list.txt")]
    assert find(tmp_path / "elsewhere/deep").identity in marks and listed[0] == listed[1]
    for change in (lambda: os.truncate(names[0], 70), lambda: names[0].rename("set/class_1_b.png"),
                   lambda: save(names[0])):
        change()
        marks.add(find("set").identity)
    marks.add(find("set", labelled=False).identity)
    assert len(marks) == 5


def test_an_archives_identity_is_that_of_its_members_wherever_it_lies(archive, tmp_path):
    path = archive()
    shutil.copy(path, tmp_path / "moved.zip")
    other = archive(name="other.zip", change=lambda info: setattr(info, "CRC", 1))
    assert find(path).identity == find(tmp_path / "moved.zip").identity != find(other).identity


# --- zip archives ---------------------------------------------------------------------------------

@pytest.fixture
def archive(tmp_path):
    """f(change of the ZipInfo of class_1_a.png's, or None) -> an archive of two images."""

    def make(change=None, name="set.zip") -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("class_1_a.png", grey(1))
            file.writestr("class_2_b.png", grey(2))
            if change:
                change(file.getinfo("class_1_a.png"))
        return tmp_path / name

    return make


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_read_where_it_is(tmp_path, packing):
    path = write_zip(tmp_path / "set.zip", {f"s/class_{c}_a.png": grey(c) for c in (1, 2)},
                     compression=packing)
    before = contents(tmp_path)
    found = find(path)
    assert found.labels.tolist() == [1, 2] == levels(found) and found.sizes() == [(4, 4)] * 2
    assert contents(tmp_path) == before


def test_an_archive_needs_no_suffix(archive):
    assert levels(find(archive(name="set"))) == [1, 2]


def test_names_that_lead_out_of_an_archive_write_nothing(tmp_path):
    work = tmp_path / "deep/down"
    work.mkdir(parents=True)
    names = ["../evil.png", "../../evil.png", f"{tmp_path}/absolute.png", "/absolute.png",
             "C:\\evil.png", "~/evil.png", "a/../../evil.png", "a\\..\\evil.png", "./a.png"]
    write_zip(work / "set.zip", {"folder/": b"", "folder.png/": b"", "__MACOSX/._a.png": b"x",
                                 **{name: grey(i) for i, name in enumerate(names)}})
    before = contents(tmp_path)
    found = find(work / "set.zip", labelled=False)
    assert sorted(levels(found)) == list(range(len(names)))
    found.sizes(), found.fingerprint
    assert contents(tmp_path) == before and not Path("/absolute.png").exists()


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    info = zipfile.ZipInfo("class_1_a.png")
    info.external_attr = 0o120777 << 16
    save(tmp_path / "secret.png", 77)
    with zipfile.ZipFile("set.zip", "w") as file:
        file.writestr(info, str(tmp_path / "secret.png"))
    with pytest.raises(DamagedError, match="class_1_a.png"):
        find("set.zip")[torch.tensor([0])]


def test_a_member_that_stands_twice_is_one_image():
    with zipfile.ZipFile("set.zip", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("class_1_a.png", grey(1))
        file.writestr("class_1_a.png", grey(2))
    assert levels(find("set.zip")) == [2]


def test_folders_in_an_archive_give_labels():
    write_zip(Path("set.zip"), {f"train/{name}/1.png": grey(i) for i, name in
                                enumerate(("10", "2", "1"))})
    assert by_level(find("set.zip", LETTERS)) == [10, 2, 1]


@pytest.mark.parametrize("name", [f"class_{'9' * 5000}_a.png", f"{'9' * 5000}/a.png"])
def test_a_number_of_5000_digits_is_no_label(name):
    with pytest.raises(UserError, match="class"):
        find(write_zip(Path("set.zip"), {name: grey()}))


@pytest.mark.parametrize("change, shown", [
    (lambda info: setattr(info, "file_size", 1 << 30), "1074 MB"),
    (lambda info: setattr(info, "CRC", info.CRC ^ 1), "CRC"),
    (lambda info: setattr(info, "compress_type", 97), "class_1_a.png"),
    (lambda info: setattr(info, "file_size", 10), "class_1_a.png"),
    (lambda info: setattr(info, "compress_size", 5), "class_1_a.png"),
    (lambda info: setattr(info, "header_offset", 7), "class_1_a.png")])
def test_a_damaged_member_is_named_and_the_others_are_read(archive, change, shown):
    found = find(archive(change))
    for use in (lambda: found[torch.tensor([0])], found.sizes):
        with pytest.raises(DamagedError, match="class_1_a.png") as error:
            use()
        assert shown in str(error.value) and error.value.exit_code == 5
    assert levels(found.chosen(torch.tensor([1]))) == [2]


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(packing):
    with zipfile.ZipFile("set.zip", "w", packing) as file:
        file.writestr("a.png", bytes(16_000_000))
        file.getinfo("a.png").file_size = 1000
    assert Path("set.zip").stat().st_size < 100_000
    found = find("set.zip")
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match="a.png"):
            found[torch.tensor([0])]
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_an_encrypted_archive_asks_to_be_unpacked(archive):
    found = find(archive(lambda info: setattr(info, "flag_bits", info.flag_bits | 1)))
    with pytest.raises(UserError, match="encrypted") as error:
        found[torch.tensor([0])]
    assert error.value.exit_code == 2


def test_an_archive_made_by_a_newer_version_of_zip_is_refused(archive):
    with pytest.raises(DamagedError, match="set.zip"):
        find(archive(lambda info: setattr(info, "extract_version", 200)))


@pytest.mark.parametrize("data", [b"", b"hello\n" * 40, bytes(1000), b"PK\3\4" + bytes(100)])
def test_a_file_named_zip_that_is_none_is_damage(data):
    Path("set.zip").write_bytes(data)
    with pytest.raises(DamagedError, match="set.zip"):
        find("set.zip")


def test_a_truncated_archive_is_damage(archive):
    path = archive()
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError, match="set.zip") as error:
            find(path)
        assert error.value.exit_code == 5


def test_flipped_bytes_of_an_archive_never_raise_anything_but_a_users_error(archive, tmp_path):
    path, draw, ended = archive(), random.Random(0), set()
    data = path.read_bytes()
    for _ in range(400):
        flipped = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            flipped[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(flipped)
        try:
            found = find(path, labelled=draw.random() < 0.5)
            found.fingerprint, found.sizes(), found[torch.arange(len(found))]
            ended.add(0)
        except UserError as error:
            ended.add(error.exit_code)
            assert len(str(error).splitlines()) <= 6
        assert [p.name for p in tmp_path.rglob("*")] == ["set.zip"]
    assert {0, 5} <= ended


# --- one image ------------------------------------------------------------------------------------

def png(depth: int, kind: int, rows: bytes, size=(4, 4), extra=b"") -> bytes:
    """A PNG by hand, for what Pillow cannot write. rows: each begins with its filter, 0."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def as_rows(array) -> bytes:
    """PNG rows of a uint16 or uint8 array [H, W, C]."""
    big = array.astype(">u2") if array.dtype == np.uint16 else array
    return b"".join(b"\0" + row.tobytes() for row in big)


def random_levels(channels, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (4, 4, channels), dtype,
                                             endpoint=True)


def decoded(data, channels=None):
    return image_files.read_image(data, "x.png", channels).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_keeps_its_upper_8_bits(channels):
    image = random_levels(1)
    found = decoded(png(16, 0, as_rows(image)), channels)
    assert np.array_equal(found, np.repeat(image >> 8, channels, 2))


@pytest.mark.parametrize("kind, channels", [(2, 3), (6, 4)])
def test_16_bit_colour_keeps_its_upper_8_bits(kind, channels):
    image = random_levels(channels)
    assert np.array_equal(decoded(png(16, kind, as_rows(image)), 3), (image >> 8)[:, :, :3])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_the_colours_stay(mode):
    image = random_levels(len(mode), np.uint8)
    found = decoded(encoded(Image.fromarray(image, mode)), 3)
    assert np.array_equal(found, image[:, :, :3] if mode == "RGBA" else
                          np.repeat(image[:, :, :1], 3, 2))


@pytest.mark.parametrize("transparent", [None, 3, bytes(range(256))])
def test_a_palette_is_its_colours_whatever_its_transparency(transparent):
    image = Image.fromarray(random_levels(1, np.uint8)[:, :, 0], "P")
    image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    options = {} if transparent is None else {"transparency": transparent}
    index = np.array(image)
    assert np.array_equal(decoded(encoded(image, **options), 3),
                          np.stack([index, 255 - index, np.full_like(index, 7)], 2))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_one_bit_is_black_and_white(channels):
    bits = random_levels(1, np.uint8)[:, :, 0] > 127
    found = decoded(encoded(Image.fromarray(bits)), channels)
    assert found.shape[2] == (channels or 1)
    assert np.array_equal(found[:, :, -1], bits * np.uint8(255))


@pytest.mark.parametrize("cmyk, rgb", [
    ((255, 0, 0, 0), (0, 255, 255)), ((0, 255, 0, 0), (255, 0, 255)),
    ((0, 0, 255, 0), (255, 255, 0)), ((0, 0, 0, 0), (255, 255, 255)),
    ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 128), (127, 127, 127)),
    ((255, 255, 0, 0), (0, 0, 255))])
def test_a_cmyk_jpeg_has_its_colours(cmyk, rgb):
    data = encoded(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=95)
    assert np.abs(decoded(data, 3).astype(int) - rgb).max() <= 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_progressive_jpeg_is_what_pillow_makes_of_it(mode, channels):
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise).convert(mode), "JPEG", progressive=True)
    expected = np.array(Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB"))
    assert np.array_equal(decoded(data, channels).squeeze(), expected)


def test_the_bytes_say_what_an_image_is_and_not_its_name():
    Path("set").mkdir()
    Path("set/1.png").write_bytes(encoded(Image.new("L", (4, 4), 50), "JPEG"))
    Path("set/2.JPEG").write_bytes(grey(60))
    assert levels(find("set")) == [50, 60]


WHOLE = encoded(Image.fromarray(random_levels(3, np.uint8)))
BOMB = png(8, 2, b"", (60_000, 60_000))
BAD_IMAGES = {"empty": b"", "truncated": WHOLE[:-40], "header": WHOLE[:20], "text": b"hello\n" * 9,
              "html": b"<!DOCTYPE html>", "gif": encoded(Image.new("L", (4, 4)), "GIF"),
              "bmp": encoded(Image.new("L", (4, 4)), "BMP"), "bomb": BOMB,
              "just too large": png(8, 0, b"", (8001, 8000)),
              "warned of": png(8, 0, b"", (10_000, 10_000)), "no pixels": png(8, 0, b"", (0, 4)),
              "no data": png(8, 2, b""), "half of the data": png(8, 0, b"\0" * 9),
              "strange filter": png(8, 0, b"\x77" * 20), "strange depth": png(5, 0, b"\0" * 20),
              "damaged text": png(8, 0, b"\0" * 20, extra=b"\0\0\0\x04zTXtabcd" + bytes(4))}


@pytest.mark.parametrize("place", ["folder", "list", "zip"])
@pytest.mark.parametrize("what", BAD_IMAGES)
def test_a_bad_image_is_damage_and_named(what, place):
    data = BAD_IMAGES[what]
    Path("set").mkdir()
    Path("set/class_1_bad.png").write_bytes(data)
    save(Path("set/class_2_good.png"))
    write_list(Path("list"), "set/class_1_bad.png", "set/class_2_good.png").rename("list.txt")
    write_zip(Path("zip"), {"class_1_bad.png": data, "class_2_good.png": grey()})
    found = find({"folder": "set", "list": "list.txt", "zip": "zip"}[place])
    with pytest.raises(DamagedError, match="class_1_bad.png") as error:
        found[torch.tensor([1, 0])]
    assert error.value.exit_code == 5 and len(str(error.value).splitlines()) <= 6


@pytest.mark.parametrize("what", ["bomb", "just too large", "warned of"])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(what, recwarn):
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            image_files.read_image(BAD_IMAGES[what], "x.png")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert not recwarn.list  # a warning would be lines beside the message


# --- packed copies --------------------------------------------------------------------------------

def constants(count=3):
    return [torch.full((1, 2, 2), i, dtype=torch.uint8) for i in range(count)]


def pack(key="k" * 64, images=constants, shape=(3, 1, 2, 2)):
    return image_files.packed(Path("cache"), key, shape, images, "test")


def test_a_packed_copy_is_the_images_and_their_digest():
    found, digest = pack()
    assert torch.equal(found, torch.stack(constants()))
    assert digest == image_files.files.sha256(bytes([0] * 4 + [1] * 4 + [2] * 4))


def test_a_packed_copy_is_made_once_and_writing_into_it_does_not_change_it():
    pack()[0].zero_()

    def never():
        raise AssertionError("it is there")

    assert torch.equal(pack(images=never)[0], torch.stack(constants()))


def test_a_packed_copy_that_is_there_is_read_by_all_at_once():
    pack()
    found = []
    with image_files.files.locked(Path("cache") / f"{'k' * 24}.lock", "a reader"):
        reader = threading.Thread(target=lambda: found.append(pack()), daemon=True)
        reader.start()
        reader.join(20)
        assert found
    assert torch.equal(found[0][0], torch.stack(constants()))


def test_a_packed_copy_that_another_made_while_this_one_waited_is_not_made_again():
    lock, found = Path("cache") / f"{'k' * 24}.lock", []
    with image_files.files.locked(lock, "another"):
        waits = threading.Thread(target=lambda: found.append(pack(images=list)), daemon=True)
        waits.start()
        waits.join(0.3)
        assert not found
        with pytest.MonkeyPatch.context() as patch:  # the other one's work, in its lock
            patch.setattr(image_files.files, "locked", lambda *a, **o: contextlib.nullcontext())
            pack()
    waits.join(20)
    assert torch.equal(found[0][0], torch.stack(constants()))


@pytest.mark.parametrize("damage", [
    lambda data, card: data.write_bytes(b"\1" + data.read_bytes()[1:]),
    lambda data, card: os.truncate(data, 5), lambda data, card: data.unlink(),
    lambda data, card: card.unlink(), lambda data, card: card.write_text("{"),
    lambda data, card: card.write_text("[]"), lambda data, card: card.write_text('{"sha256": 3}')])
def test_a_damaged_packed_copy_is_made_again(damage):
    before = pack()[1]
    damage(next(Path("cache").glob("*.u8")), next(Path("cache").glob("*.json")))
    found, digest = pack()
    assert digest == before and torch.equal(found, torch.stack(constants()))


def test_a_bad_image_leaves_no_packed_copy():
    def images():
        yield constants()[0]
        raise DamagedError("bad", file="x.png")

    with pytest.raises(DamagedError, match="x.png"):
        pack(images=images)
    assert contents(Path("cache")) == {}


def test_a_copy_left_by_a_killed_process_is_removed():
    pack()
    name = next(Path("cache").glob("*.u8")).stem
    Path(f"cache/.{name}.tmp.4242.u8").write_bytes(b"half")
    next(Path("cache").glob("*.json")).unlink()
    pack()
    assert not list(Path("cache").glob(".*.tmp.*"))


def test_a_packed_copy_is_not_begun_without_the_space(monkeypatch):
    full = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(image_files.files.os, "statvfs", lambda place: full)
    with pytest.raises(UserError, match="packed cache") as error:
        pack()
    assert error.value.exit_code == 6 and contents(Path("cache")) == {}
    shutil.rmtree("cache")
