"""Other people's images as a set, and a set under other people's names: the same pixels and labels
both ways, nothing outside the folder, damage and kills."""

import csv
import io
import os
import random
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import contents, run

from dm_kd import files, image_files, image_set, import_export, synthesize
from dm_kd.errors import DamagedError, StorageError, UserError
from dm_kd.tasks import get_task

NAMES = tuple("0123456789")
BASE = ("--task", "digits", "--threads", 1, "--device", "cpu")


def main(*argv):
    return synthesize.main([str(a) for a in (*BASE, *argv)])


def png(value=0, size=(8, 8), kind="PNG", mode="L"):
    draw = random.Random(value)
    data = draw.randbytes(size[0] * size[1] * (3 if mode == "RGB" else 1))
    buffer = io.BytesIO()
    Image.frombytes(mode, size, data).save(buffer, kind)
    return buffer.getvalue()


def originals(folder, classes=(0, 1, 2), seeds=2, images=11):
    """A folder like the authors': class_{c}_seed_{k}_num_{i}.png."""
    folder.mkdir(parents=True)
    for c in classes:
        for seed in range(seeds):
            for i in range(images):
                name = f"class_{c}_seed_{seed}_num_{i}.png"
                (folder / name).write_bytes(png(1000 * c + 100 * seed + i))
    return folder


def pack(folder, to, mode):
    with tarfile.open(to, f"w:{mode}") as archive:
        archive.add(folder, folder.name)
    return to


def pack_zip(folder, to):
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder.parent))
    return to


def rows(folder):
    return list(csv.DictReader(open(folder / "index.csv")))


def pixels(folder):
    return [(row["label"], row["pixels_sha256"]) for row in rows(folder)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return originals(tmp_path_factory.mktemp("source") / "s2_st100")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, source):
    """A complete set of 3 classes x 22 images."""
    folder = tmp_path_factory.mktemp("labelled") / "set"
    assert main("--import", source, "--batch-size", 7, "--out", folder) == 0
    return folder


# --- import ---------------------------------------------------------------------------------------

def test_the_authors_set_keeps_its_pixels_labels_and_order(source, labelled):
    found = rows(labelled)
    assert len(found) == 66
    for position, row in enumerate(found):
        k, c = divmod(position, 3)
        original = source / f"class_{c}_seed_{k // 11}_num_{k % 11}.png"  # 2 comes before 10
        image = image_files.read_image(original.read_bytes(), original)
        assert (row["label"], row["k"]) == (str(c), str(k))
        assert row["pixels_sha256"] == files.sha256(image.numpy().tobytes())
    manifest = image_set.open_set(labelled).manifest
    assert manifest["generator"]["name"] == "import" and manifest["labels_known"]
    assert manifest["classes"] == [0, 1, 2] and manifest["images_per_class"] == 22


@pytest.mark.parametrize("kind", ["zip", "tar", "gz", "bz2", "xz"])
def test_folder_and_archives_make_the_same_bytes(source, labelled, tmp_path, kind):
    archive = tmp_path / f"any.{kind}"
    if kind == "zip":
        pack_zip(source, archive)
    else:
        pack(source, archive, "" if kind == "tar" else kind)
    assert main("--import", archive, "--batch-size", 7, "--out", tmp_path / "set") == 0
    assert contents(tmp_path / "set") == contents(labelled)


def test_a_list_keeps_its_own_order(source, tmp_path):
    names = [f"class_{c}_seed_0_num_{i}.png" for c in (2, 0) for i in (5, 3, 10)]
    (source.parent / "some.txt").write_text("".join(f"{source.name}/{n}\n" for n in names))
    assert main("--import", source.parent / "some.txt", "--out", tmp_path / "set") == 0
    expected = [files.sha256(image_files.read_image((source / names[i]).read_bytes(), "").numpy()
                             .tobytes()) for i in (3, 0, 4, 1, 5, 2)]
    assert [row["pixels_sha256"] for row in rows(tmp_path / "set")] == expected


def test_an_image_folder_gives_labels_by_its_folders(tmp_path):
    for c in (3, 7):
        (tmp_path / "in" / str(c)).mkdir(parents=True)
        (tmp_path / "in" / str(c) / "a.png").write_bytes(png(c))
    assert main("--import", tmp_path / "in", "--out", tmp_path / "set") == 0
    assert [row["label"] for row in rows(tmp_path / "set")] == ["3", "7"]


def test_images_without_labels_become_an_unlabelled_set(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(12):
        (tmp_path / "in" / f"photo{i}.png").write_bytes(png(i))
    assert main("--import", tmp_path / "in", "--out", tmp_path / "set") == 0
    assert {row["label"] for row in rows(tmp_path / "set")} == {"-1"}
    assert image_set.open_set(tmp_path / "set").plan.images == 12


def test_every_class_gets_as_many_and_the_rest_is_said(tmp_path, capsys):
    folder = originals(tmp_path / "in", seeds=1, images=4)
    (folder / "class_1_seed_0_num_3.png").unlink()
    assert main("--import", folder, "--out", tmp_path / "set") == 0
    assert "2 images are left out" in capsys.readouterr().out and len(rows(tmp_path / "set")) == 9
    assert main("--import", folder, "--images-per-class", 4, "--out", tmp_path / "more") == 2
    assert "3 images only" in capsys.readouterr().err and not (tmp_path / "more").exists()


def test_an_import_grows(source, labelled, tmp_path):
    command = ("--import", source, "--batch-size", 7, "--out", tmp_path / "set")
    assert main(*command, "--images-per-class", 9) == 0 and len(rows(tmp_path / "set")) == 27
    assert main(*command) == 0
    assert contents(tmp_path / "set") == contents(labelled)


def test_one_changed_byte_of_the_source_is_refused(source, labelled, tmp_path, capsys):
    changed = Path(shutil.copytree(source, tmp_path / source.name))
    (changed / "class_1_seed_1_num_4.png").write_bytes(png(99))
    copy = Path(shutil.copytree(labelled, tmp_path / "set"))
    assert main("--import", changed, "--batch-size", 7, "--out", copy) == 2
    assert "generator.source_sha256" in capsys.readouterr().err
    assert contents(copy) == contents(labelled)


def test_repair_takes_the_pixels_from_the_source_again(source, labelled, tmp_path):
    copy = Path(shutil.copytree(labelled, tmp_path / "set"))
    (copy / rows(copy)[30]["path"]).write_bytes(b"damage")
    command = ("--import", source, "--batch-size", 7, "--out", copy)
    assert main(*command) == 5 and main(*command, "--repair") == 0
    assert contents(copy) == contents(labelled)


def test_repair_keeps_what_another_rank_has_made_again_meanwhile(noise_folder, tmp_path,
                                                                 monkeypatch, capsys):
    copy = Path(shutil.copytree(noise_folder, tmp_path / "set"))
    monkeypatch.setattr(image_set, "damaged_shards", lambda *_: {0: "as it was a moment ago"})
    assert main("--generator", "noise", "--images-per-class", 4, "--batch-size", 8, "--out", copy,
                "--repair") == 0
    assert "complete already" in capsys.readouterr().out
    assert contents(copy) == contents(noise_folder)


@pytest.mark.parametrize(("task", "size", "side", "fit"), [
    ("digits", (16, 16), 16, "as they are"), ("digits", (8, 6), 8, "resized to 8 x 8"),
    ("imagenet", (64, 64), 64, "as they are"),
    ("imagenet", (300, 280), 256, "shorter side resized to 256, centre cut out")])
def test_images_come_to_one_size(tmp_path, task, size, side, fit):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(png(1, size, "JPEG", "RGB"))
    command = ["--task", task, "--import", str(tmp_path / "in"), "--out", str(tmp_path / "set")]
    assert synthesize.main([*command, "--threads", "1"]) == 0
    manifest = image_set.open_set(tmp_path / "set").manifest
    assert manifest["resolution"] == side and manifest["generator"]["fit"] == fit


@pytest.mark.parametrize(("h", "w"), [(10, 10), (10, 25), (25, 10), (4, 3), (300, 7)])
def test_the_centre_is_cut_out_of_any_shape(h, w):
    image = torch.zeros(1, h, w, dtype=torch.uint8)
    image[:, :, w // 2 - 1:w // 2 + 2] = 255
    found = import_export.fitted(image, 8, "shorter side resized to 8, centre cut out")
    assert found.shape == (1, 8, 8) and (found[0, :, 3:5] > 0).any()


def test_an_image_set_and_nothing_are_refused_and_leave_nothing(labelled, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for place, message in ((labelled, "image set already"), (tmp_path / "empty", "no PNG or JPEG"),
                           (tmp_path / "nowhere", "not found")):
        assert main("--import", place, "--out", tmp_path / "set") == 2
        assert message in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_flags_of_a_generator_do_not_go_with_an_import(source, tmp_path, capsys):
    for flags in (("--classes", "0-1"), ("--rank", 0, "--world-size", 2), ("--shared-noise",)):
        assert main("--import", source, *flags, "--out", tmp_path / "set") == 2
        assert "--import takes all classes" in capsys.readouterr().err
    assert main("--import", source, "--guidance-scale", 3, "--out", tmp_path / "set") == 2
    assert "--guidance-scale is for a generator" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "message"), [
    (("--import", "x", "--export", "y"), "--import and --export are commands of their own"),
    (("--verify", "--export", "y"), "--verify and --export are commands of their own"),
    (("--verify", "--repair"), "--verify makes no images"),
    (("--export", "y", "--repair"), "--export makes no images")])
def test_two_commands_at_once_are_refused(tmp_path, capsys, flags, message):
    assert main(*flags, "--out", tmp_path / "set") == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", [("--verify",), ("--export", "copy")])
def test_a_set_that_is_there_needs_no_task_and_refuses_another(labelled, tmp_path, capsys,
                                                               monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    assert synthesize.main([*what, "--out", str(labelled)]) == 0
    task = image_set.open_set(labelled).manifest["task"]
    assert synthesize.main([*what, "--out", str(labelled), "--task", task]) == 0
    assert synthesize.main([*what, "--out", str(labelled), "--task", "fashion_mnist"]) == 2
    assert f"is a set for {task}, not fashion_mnist" in capsys.readouterr().err
    assert synthesize.main(["--import", "x", "--out", "y"]) == 2
    assert "--task" in capsys.readouterr().err


def test_a_damaged_image_is_named_and_leaves_nothing(tmp_path, capsys):
    folder = originals(tmp_path / "in", images=2)
    (folder / "class_1_seed_0_num_1.png").write_bytes(b"no image")
    assert main("--import", folder, "--out", tmp_path / "set") == 5
    assert "class_1_seed_0_num_1.png" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def broken_in_the_middle(tmp_path):
    """A folder of images, one whose header is whole and whose pixels are not; that one's path."""
    folder = originals(tmp_path / "in", images=2)
    path = folder / "class_1_seed_0_num_1.png"
    path.write_bytes(path.read_bytes()[:50])
    return folder, path


def test_an_import_that_made_nothing_is_counted_as_nothing_and_goes_on_with_mended_images(
        tmp_path, capsys):
    folder, broken = broken_in_the_middle(tmp_path)
    command = ("--import", folder, "--out", tmp_path / "set")
    assert main(*command) == 5 and list(contents(tmp_path / "set")) == ["manifest.json"]
    assert main("--verify", "--out", tmp_path / "set") == 0
    assert "set: 0 of 12 images, every digest holds; not complete: 1 of 1 shards" in (
        capsys.readouterr().out)
    broken.write_bytes(png(99))
    assert main(*command) == 0 and len(rows(tmp_path / "set")) == 12
    assert main("--verify", "--out", tmp_path / "set") == 0
    assert "set: 12 images, every digest holds; complete" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["shards", "images/0000/class_0_seed_0_num_0.png", "generator"])
def test_what_holds_anything_but_an_imports_manifest_is_never_replaced(tmp_path, capsys, change):
    folder, broken = broken_in_the_middle(tmp_path)
    made = tmp_path / "set"
    assert main("--import", folder, "--out", made) == 5
    if change == "generator":
        manifest = files.read_json(made / "manifest.json")
        files.write_json(made / "manifest.json", manifest | {"generator": {"name": "noise"}})
    else:
        (made / change).mkdir(parents=True)
    before = contents(made)
    broken.write_bytes(png(99))
    assert main("--import", folder, "--out", made) == 2
    assert "other settings" in capsys.readouterr().err and contents(made) == before


@pytest.fixture
def private(tmp_path, monkeypatch):
    """An image that nobody gave; the working directory is beside it."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "class_0_seed_0_num_0.png").write_bytes(png(9))
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "private" / "class_0_seed_0_num_0.png"


OPENED = []  # paths, while a test wants to know
WATCHING = []
sys.addaudithook(lambda event, about: OPENED.append(os.path.realpath(os.fspath(about[0])))
                 if WATCHING and event == "open" and isinstance(about[0], (str, bytes)) else None)


@pytest.fixture
def opened_paths():
    """Every path that Python opens while the test runs."""
    OPENED.clear()
    WATCHING.append(True)
    yield OPENED
    WATCHING.clear()


@pytest.mark.parametrize("how", ["relative", "absolute", "linked image", "link in a list"])
def test_what_leads_out_of_the_given_places_is_not_read(private, tmp_path, how, capsys,
                                                        opened_paths):
    folder = tmp_path / "a" / "b" / "c"
    (folder / "class_1_seed_0_num_0.png").write_bytes(png(1))
    source = folder
    if how == "linked image":
        (folder / private.name).symlink_to(private)
    else:
        source = folder / "list.txt"
        line = {"relative": f"../../../private/{private.name}", "absolute": str(private),
                "link in a list": "class_0_seed_1_num_1.png"}[how]
        (folder / "class_0_seed_1_num_1.png").symlink_to(private)
        source.write_text(f"class_1_seed_0_num_0.png\n{line}\n")
    assert main("--import", source, "--out", tmp_path / "set") == 2
    message = capsys.readouterr().err
    assert "lies elsewhere" in message and "--data" in message and str(private) in message
    assert str(private) not in opened_paths and not (tmp_path / "set").exists()
    assert main("--import", source, "--data", private.parent, "--out", tmp_path / "set") == 0
    assert str(private) in opened_paths


def test_images_below_the_working_directory_and_the_lists_parent_are_read(private, tmp_path):
    folder = tmp_path / "a" / "b" / "c"
    (tmp_path / "a" / "b" / "class_0_seed_0_num_0.png").write_bytes(png(1))
    (tmp_path / "work" / "class_1_seed_0_num_0.png").write_bytes(png(2))
    (folder / "list.txt").write_text(
        f"../class_0_seed_0_num_0.png\n{Path.cwd()}/class_1_seed_0_num_0.png\n")
    assert main("--import", folder / "list.txt", "--out", tmp_path / "set") == 0
    (tmp_path / "door").symlink_to(folder.parent)  # the folder itself may be a link
    assert main("--import", tmp_path / "door", "--out", tmp_path / "other") == 0


# --- archives -------------------------------------------------------------------------------------

def tar_of(path, members):
    """members: (name, bytes or TarInfo type)."""
    with tarfile.open(path, "w") as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes) and len(what) > 1:
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what))
            else:
                info.type, info.linkname = what, "/etc/passwd"
                archive.addfile(info)
    return path


def test_links_devices_and_other_files_in_a_tar_are_passed_over(tmp_path):
    tar = import_export.Tar(tar_of(tmp_path / "a.tar", [
        ("0/a.png", png(1)), ("0/link.png", tarfile.SYMTYPE), ("0/hard.png", tarfile.LNKTYPE),
        ("0/device.png", tarfile.CHRTYPE), ("0/pipe.png", tarfile.FIFOTYPE),
        ("0/notes.txt", b"text"), ("0/._a.png", png(2)), ("0/folder.png", tarfile.DIRTYPE)]))
    assert tar.names() == ["0/a.png"] and tar.read("0/a.png") == png(1)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_names_that_lead_out_of_a_tar_write_and_read_nothing_there(tmp_path, suffix,
                                                                    opened_paths):
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    names = ["../class_0_seed_0_num_0.png", f"{tmp_path}/class_1_seed_0_num_0.png"]
    path = tar_of(place / "a.tar", [(name, png(i)) for i, name in enumerate(names)])
    if suffix:
        import gzip

        path.write_bytes(gzip.compress(path.read_bytes()))
    for name in names:  # what an unpacking program would have found there already
        (place / name).write_bytes(png(50))
    opened_paths.clear()
    before = set(tmp_path.rglob("*"))
    assert main("--import", path, "--out", place / "set") == 0
    assert not {os.path.realpath(place / name) for name in names} & set(opened_paths)
    assert [row["pixels_sha256"] for row in rows(place / "set")] == [
        files.sha256(image_files.read_image(png(i), "").numpy().tobytes()) for i in range(2)]
    new = set(tmp_path.rglob("*")) - before
    assert new and all(p.is_relative_to(place / "set") for p in new)
    assert not (place / "set" / ".import").exists()


@pytest.mark.parametrize("cut", [100, 600, -1024, -1500])
def test_a_truncated_tar_is_damage(source, tmp_path, cut):
    path = pack(source, tmp_path / "a.tar", "")
    data = path.read_bytes().rstrip(b"\0") + bytes(1024)
    path.write_bytes(data[:cut])
    with pytest.raises(DamagedError, match="tar archive is damaged"):
        import_export.Tar(path)


def test_a_flipped_header_in_the_middle_is_damage_and_no_shorter_list(source, tmp_path):
    path = pack(source, tmp_path / "a.tar", "")
    with tarfile.open(path) as archive:
        at = archive.getmembers()[20].offset
    data = bytearray(path.read_bytes())
    data[at + 150] ^= 4  # in its checksum
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="no end mark"):
        import_export.Tar(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, capsys):
    import gzip

    monkeypatch.setattr(import_export, "SPARE_BYTES", 10_000)
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    assert main("--import", path, "--out", tmp_path / "set") == 5
    assert "20 times its size" in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_a_huge_member_is_refused_before_it_is_read(tmp_path, monkeypatch):
    tar = import_export.Tar(tar_of(tmp_path / "a.tar", [("0/a.png", png(1))]))
    monkeypatch.setattr(import_export, "MAX_BYTES", 10)
    with pytest.raises(DamagedError, match="MB"):
        tar.read("0/a.png")


def test_a_full_disk_while_unpacking_is_said(source, tmp_path, monkeypatch):
    path = pack(source, tmp_path / "a.tar.gz", "gz")
    monkeypatch.setattr(import_export, "_write", lambda file, chunk, to: (_ for _ in ()).throw(
        files.storage_error(OSError(28, "full"), to)))
    with (pytest.raises(StorageError), import_export.opened(path, get_task("digits"),
                                                           tmp_path / "set", None)):
        pass
    assert not (tmp_path / "set" / ".import").exists()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = originals(tmp_path_factory.mktemp("archives") / "in", images=1, seeds=1)
    tar = pack(folder, folder.parent / "a.tar", "")
    tar.write_bytes(tar.read_bytes().rstrip(b"\0") + bytes(1024))
    return [tar, pack(folder, folder.parent / "a.tgz", "gz"),
            pack(folder, folder.parent / "a.txz", "xz"),
            pack_zip(folder, folder.parent / "a.zip")]


def damaged_import(data, place, name):
    """Whether the import of an archive of these bytes ended well; a user's error is the only other
    end, and nothing is left beside it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / name).write_bytes(data)
    try:
        with import_export.opened(place / name, get_task("digits"), place / "set", None) as found:
            made = import_export.Importer(found, get_task("digits"), 0, lambda n: None)
            made.sample(torch.tensor([0]), [image_set.image_seed(0, made.classes[0], 0)])
    except UserError as error:
        assert len(str(error).splitlines()) <= 6
        return False
    finally:
        assert {p.name for p in place.iterdir()} <= {name, "set"}
    return True


@settings(max_examples=300)
@given(which=st.integers(0, 3), edits=st.lists(st.tuples(st.floats(0, 1), st.binary(
    min_size=1, max_size=8)), max_size=4), cut=st.floats(0.2, 1))
def test_a_mutated_archive_is_read_or_refused_and_writes_nothing_outside(
        archives, tmp_path, which, edits, cut):
    data = bytearray(archives[which].read_bytes())
    for place, piece in edits:
        at = int(place * (len(data) - 1))
        data[at:at + len(piece)] = piece
    damaged_import(bytes(data[:int(cut * len(data))]) if cut < 0.9 else bytes(data),
                   tmp_path / "place", "archive.zip" if which == 3 else "archive.tar")


def test_a_mutated_archive_reads_nothing_beside_itself(archives, tmp_path, opened_paths):
    """Members renamed to paths and links that lead to a file with an image of another value."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(77))
    opened_paths.clear()
    for i, archive in enumerate(archives):
        data, place = archive.read_bytes(), tmp_path / str(i)
        if i == 0:  # a tar in place: its first image's header is a link to the file
            data = bytearray(data)
            at = data.index(b"in/class_")
            data[at + 156:at + 157] = b"2"
            data[at + 157:at + 157 + len(str(secret))] = str(secret).encode()
            data[at + 148:at + 156] = b" " * 8
            data[at + 148:at + 156] = b"%06o\0 " % sum(data[at:at + 512])
        elif i == 3:  # a zip: the name in both of its places
            data = data.replace(b"in/class_0_seed_0_num_0.png", b"../" + b"./" * 7 + b"secret.png")
        damaged_import(bytes(data), place, "a.zip" if i == 3 else "a.tar")
    places = {p for p in opened_paths if p.startswith(str(tmp_path))}
    assert places and str(secret) not in places
    assert all(Path(p).relative_to(tmp_path).parts[0] in "0123" for p in places)


def test_the_mutations_reach_both_refusal_and_images(archives, tmp_path):
    for i, data in enumerate(path.read_bytes() for path in archives):
        name = "a.zip" if i == 3 else "a.tar"
        assert damaged_import(data, tmp_path / str(i), name)
        assert not damaged_import(data[:len(data) // 2], tmp_path / str(i), name)


# --- export ---------------------------------------------------------------------------------------

def test_an_exported_list_is_read_with_the_same_pixels_and_labels(labelled, tmp_path):
    assert main("--export", tmp_path / "syn_dataset", "--out", labelled) == 0
    listing = tmp_path / "syn_dataset" / "import_66.txt"
    assert listing.read_text().splitlines()[4] == (
        "syn_dataset/import_66/class_1_seed_0_num_1.png")
    found = image_files.find(listing, NAMES, 1)
    digests = [files.sha256(found.decode(i).numpy().tobytes()) for i in range(len(found))]
    assert list(zip(map(str, found.labels.tolist()), digests, strict=True)) == pixels(labelled)


def test_a_round_trip_through_a_list_gives_the_same_pixels(labelled, tmp_path):
    assert main("--export", tmp_path / "out", "--out", labelled) == 0
    assert main("--import", tmp_path / "out" / "import_66.txt", "--out", tmp_path / "set") == 0
    assert pixels(tmp_path / "set") == pixels(labelled)


def test_a_round_trip_through_an_image_folder_gives_the_same_pixels(labelled, tmp_path):
    assert main("--export", tmp_path, "--export-format", "imagefolder", "--out", labelled) == 0
    place = tmp_path / "import_66_imagefolder"
    assert torchvision.datasets.ImageFolder(place).classes == ["0000", "0001", "0002"]
    assert main("--import", place, "--out", tmp_path / "set") == 0
    assert pixels(tmp_path / "set") == pixels(labelled)


@pytest.mark.parametrize("layout", ["list", "imagefolder"])
def test_a_set_without_labels_is_exported_without_them(noise_folder, tmp_path, layout):
    assert main("--export", tmp_path, "--export-format", layout, "--out", noise_folder) == 0
    place = tmp_path / ("noise_40.txt" if layout == "list" else "noise_40_imagefolder")
    found = image_files.find(place, NAMES, 1)
    assert len(found) == 40 and set(found.labels.tolist()) == {-1}


@pytest.mark.parametrize(("generator", "count", "name"), [
    ({"name": "dit", "guidance_scale": 2.0, "steps": 100, "sampler": "ddpm"}, 200, "s2_st100_200k"),
    ({"name": "dit", "guidance_scale": 1.6, "steps": 150, "sampler": "ddpm"}, 50, "s1.6_st150_50k"),
    ({"name": "dit", "guidance_scale": 4.0, "steps": 25, "sampler": "dpm++",
      "guidance_interval": [0.2, 0.8], "fp8": True}, 1280, "s4_st25_dpmpp_gi0.2-0.8_fp8_1280k"),
    ({"name": "sit", "guidance_scale": 1.5, "steps": 250, "sampler": "sde",
      "guidance_interval": [0.0, 1.0]}, 50, "s1.5_st250_sde_50k"),
    ({"name": "dit", "guidance_scale": 2.0, "steps": 100, "sampler": "ddpm",
      "teacher_guidance": 0.5}, 200, "s2_st100_tg0.5_200k"),
    ({"name": "dit", "guidance_scale": 1.0, "steps": 100, "teacher_guidance": 1.0,
      "student": "cnn_w8", "latent_cutmix": True}, 200, "s1_st100_tg1_adv_cutmix_200k"),
    ({"name": "imf", "steps": 1, "network_guidance": 8.0, "network_guidance_interval": [0.4, 0.65]},
     50, "imf_w8_st1_gi0.4-0.65_50k"),
    ({"name": "imf", "steps": 2, "network_guidance": 8.0, "network_guidance_interval": [0.4, 0.65]},
     50, "imf_w8_st2_gi0.4-0.65_50k"),
    ({"name": "gan", "truncation": 0.7}, 5, "gan_t0.7_5k"),
    ({"name": "text_to_image", "num_inference_steps": 4, "guidance_scale": 0}, 5,
     "text_to_image_s0_st4_5k"),
    ({"name": "../a b"}, 1, "..-a-b_1k")])
def test_a_set_is_named_as_the_original_names_it(generator, count, name):
    assert import_export.set_name({"generator": generator, "classes": list(range(1000)),
                                   "images_per_class": count}) == name


@pytest.mark.parametrize("generator", [
    {"guidance_scale": 2.0, "steps": "../../evil"},
    {"guidance_scale": 2.0, "steps": 9, "sampler": "x/../../evil/y"}, {"name": "/etc/passwd"}])
def test_the_name_of_a_set_leads_nowhere_else(generator):
    name = import_export.set_name({"generator": generator, "classes": [0], "images_per_class": 1})
    assert "/" not in name and "\\" not in name and not name.startswith(".")


@pytest.mark.parametrize("generator", [
    {"guidance_scale": "2", "steps": 9},
    {"guidance_scale": 2.0, "steps": 9, "teacher_guidance": "x"},
    {"guidance_scale": 2.0, "steps": 9, "guidance_interval": [0.5]}])
def test_settings_that_are_none_are_damage_to_the_manifest(generator):
    with pytest.raises(DamagedError, match="manifest.json"):
        import_export.set_name({"generator": generator, "classes": [0], "images_per_class": 1})


def test_a_second_export_changes_nothing_and_other_files_are_kept(labelled, tmp_path, capsys):
    assert main("--export", tmp_path, "--out", labelled) == 0
    before = contents(tmp_path)
    assert main("--export", tmp_path, "--out", labelled) == 0 and contents(tmp_path) == before
    image = tmp_path / "import_66" / "class_0_seed_0_num_0.png"
    image.write_bytes(b"precious")
    assert main("--export", tmp_path, "--out", labelled) == 2
    assert "another file has that name" in capsys.readouterr().err
    assert image.read_bytes() == b"precious"


def test_a_damaged_image_is_not_exported(labelled, tmp_path, capsys):
    copy = Path(shutil.copytree(labelled, tmp_path / "set"))
    name = rows(copy)[0]["path"]
    (copy / name).write_bytes(b"damage")
    assert main("--export", tmp_path / "out", "--out", copy) == 5
    assert Path(name).name in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))


def test_an_unfinished_set_is_not_exported(labelled, tmp_path, capsys):
    copy = Path(shutil.copytree(labelled, tmp_path / "set"))
    (copy / "index.csv").unlink()
    assert main("--export", tmp_path / "out", "--out", copy) == 2
    assert "not complete" in capsys.readouterr().err


# --- kills ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["folder", "gz"])
def test_an_import_killed_at_any_moment_is_taken_up(tmp_path, kind):
    place = originals(tmp_path / "in", images=1, seeds=1)
    if kind == "gz":
        place = pack(place, tmp_path / "in.tar.gz", "gz")
    command = (*BASE, "--import", place, "--batch-size", 2)
    golden = run("synthesize", *command, "--out", tmp_path / "golden")
    assert golden.code == 0, golden.err
    step = 19 if kind == "folder" else 37
    for index in range(0, len(golden.moments), step):
        folder = tmp_path / f"at{index}"
        assert run("synthesize", *command, "--out", folder, at=index).code == 137
        again = run("synthesize", *command, "--out", folder)
        assert again.code == 0, (golden.moments[index], again.err)
        assert contents(folder) == contents(tmp_path / "golden"), golden.moments[index]


def test_an_export_killed_at_any_moment_is_taken_up(labelled, tmp_path):
    command = (*BASE, "--out", labelled, "--export")
    golden = run("synthesize", *command, tmp_path / "golden" / "x")
    assert golden.code == 0, golden.err
    for index in range(0, len(golden.moments), 61):
        folder = tmp_path / f"at{index}" / "x"
        assert run("synthesize", *command, folder, at=index).code == 137
        again = run("synthesize", *command, folder)
        assert again.code == 0, (golden.moments[index], again.err)
        assert contents(folder) == contents(tmp_path / "golden" / "x"), golden.moments[index]
