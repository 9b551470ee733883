"""Image sets: where each image stands, the same bytes by any route, and every damage named."""

import csv
import hashlib
import io
import json
import shutil
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dm_kd import files, image_files, image_set
from dm_kd.errors import DamagedError, LockedError, StorageError, UserError


def sample(labels, seeds):
    """Images that hang on label and seed only, as a generator's do."""
    return torch.stack([torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8, generator=torch
                        .Generator().manual_seed(seed + int(label)))
                        for label, seed in zip(labels, seeds, strict=True)])


def make(folder, manifest, ranks=((0, 1),)):
    """The set, made by each (rank, world size) in turn."""
    for rank, world_size in ranks:
        with image_set.writing(folder, rank, world_size):
            images = image_set.begin(folder, manifest)
            image_set.make(images, sample, rank, world_size, lambda count: None)
    return image_set.open_set(folder)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and ".lock" not in p.parts}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, module_manifest):
    folder = tmp_path_factory.mktemp("finished") / "set"
    make(folder, module_manifest)
    return folder


@pytest.fixture(scope="module")
def module_manifest():
    return {"format_version": 1, "task": "digits", "num_classes": 10, "classes": [1, 4, 7],
            "class_names": ["1", "4", "7"], "images_per_class": 5, "resolution": 8, "channels": 1,
            "labels_known": True, "generator": {"name": "test", "steps": 3, "licence": "none"},
            "shared_noise": False, "base_seed": 0, "shard_size": 4, "device": "cpu", "threads": 2,
            "versions": {"torch": "2"}}


@pytest.fixture
def manifest(module_manifest):
    return json.loads(json.dumps(module_manifest))


@pytest.fixture
def copy(tmp_path, finished):
    """A copy of the finished set, to damage."""
    return shutil.copytree(finished, tmp_path / "copy")


# --- plan and seeds -------------------------------------------------------------------------------

def test_position_p_is_image_k_of_class_c_with_p_equal_to_k_classes_plus_c(manifest):
    plan = image_set.plan_of(manifest)
    assert [plan.at(p) for p in range(7)] == [(1, 0), (4, 0), (7, 0), (1, 1), (4, 1), (7, 1),
                                              (1, 2)]
    assert plan.images == 15 and plan.shards == 4


def test_a_shard_is_always_computed_in_full_and_its_end_is_left_out(manifest):
    plan = image_set.plan_of(manifest)
    assert [len(plan.shard(j)) for j in range(plan.shards)] == [4, 4, 4, 4]
    assert [plan.kept(j) for j in range(plan.shards)] == [4, 4, 4, 3]
    assert plan.shard(3) == [(1, 4), (4, 4), (7, 4), (1, 5)]


def test_seed_is_the_first_8_bytes_of_the_sha256_shifted_right_by_one():
    for base, label, k in ((0, 0, 0), (7, 207, 199), (3, 12, 1279)):
        first = hashlib.sha256(f"{base}/{label}/{k}".encode()).digest()[:8]
        assert image_set.image_seed(base, label, k) == int.from_bytes(first, "big") >> 1


def test_shared_noise_leaves_the_class_out_of_the_seed():
    seeds = {image_set.image_seed(0, label, 3, shared_noise=True) for label in range(5)}
    first = hashlib.sha256(b"0/3").digest()[:8]
    assert seeds == {int.from_bytes(first, "big") >> 1}


def test_every_seed_is_accepted_by_a_torch_generator():
    for k in range(200):
        torch.Generator().manual_seed(image_set.image_seed(0, 1, k))


def test_file_names_are_those_that_the_original_parser_reads(finished):
    names = sorted(str(p.relative_to(finished)) for p in finished.glob("images/*/*"))
    assert names == sorted(f"images/{c:04d}/class_{c}_seed_0_num_{k}.png"
                           for c in (1, 4, 7) for k in range(5))


# --- the same bytes by any route ------------------------------------------------------------------

def test_images_records_and_index_hold_what_the_generator_made(finished):
    images = image_set.open_set(finished)
    rows = images.index()
    assert [(r["label"], r["k"]) for r in rows] == [images.plan.at(p) for p in range(15)]
    for row in rows:
        data = (finished / row["path"]).read_bytes()
        seed = image_set.image_seed(0, row["label"], row["k"])
        made = sample(torch.tensor([row["label"]]), [seed])[0]
        assert torch.equal(image_files.read_image(data, row["path"]), made)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["pixels_sha256"] == hashlib.sha256(made.numpy().tobytes()).hexdigest()


def test_a_second_run_makes_nothing_and_changes_nothing(copy, manifest):
    before = contents(copy)

    def never(labels, seeds):
        raise AssertionError("everything is there")

    images = image_set.begin(copy, manifest)
    assert image_set.make(images, never, 0, 1, lambda count: None) == 0
    assert contents(copy) == before


# --- how long it took -----------------------------------------------------------------------------

def test_the_seconds_of_all_shards_are_known_and_lie_outside_the_set(tmp_path, manifest, finished):
    images = make(tmp_path / "set", manifest)
    assert contents(tmp_path / "set") == contents(finished)
    lines = [json.loads(line) for line in images.seconds_path.read_text().splitlines()]
    assert sorted({line["shard"] for line in lines}) == [0, 1, 2, 3]
    last = {line["shard"]: line["seconds"] for line in lines}
    assert images.seconds() == {"making_seconds": round(sum(last.values()), 3),
                                "pretraining_seconds": None}


def test_the_seconds_are_those_of_sampling_and_of_finishing_the_last_shard(tmp_path, manifest):
    def slow(value):
        time.sleep(0.5)
        return value

    with image_set.writing(tmp_path / "set", 0, 1):
        images = image_set.begin(tmp_path / "set", manifest | {"images_per_class": 1})
        started = time.monotonic()
        image_set.make(images, lambda *batch: slow(sample(*batch)), 0, 1, lambda count: None, slow)
        passed = time.monotonic() - started
    assert 1.0 <= images.seconds()["making_seconds"] <= passed + 0.001


def test_ranks_seconds_come_together_and_a_missing_shard_makes_them_unknown(tmp_path, manifest):
    images = make(tmp_path / "set", manifest, ((1, 2),))
    assert images.seconds()["making_seconds"] is None
    images = make(tmp_path / "set", manifest, ((0, 2),))
    assert images.seconds()["making_seconds"] > 0
    lines = images.seconds_path.read_text().splitlines()
    images.seconds_path.write_text("\n".join(v for v in lines if '"shard": 2' not in v))
    assert images.seconds()["making_seconds"] is None


def test_lines_of_another_set_and_halves_of_lines_are_passed_over(tmp_path, manifest):
    images = make(tmp_path / "set", manifest)
    before = images.seconds()
    other = image_set.ImageSet(tmp_path / "set", manifest | {"base_seed": 9})
    other.note_seconds(shard=0, seconds=1e6)
    with open(images.seconds_path, "a") as file:
        file.write('[]\n{"settings_sha256": "x"\n{"settings_sha256": 7}\n\n')
    for value in ("1", -1, float("nan"), None):
        images.note_seconds(shard=1, seconds=value)
        images.note_seconds(pretraining_seconds=value)
    assert images.seconds() == before and other.seconds()["making_seconds"] is None
    images.note_seconds(pretraining_seconds=12.5)
    assert images.seconds() == before | {"pretraining_seconds": 12.5}


def test_a_shard_made_again_counts_once(tmp_path, manifest):
    images = make(tmp_path / "set", manifest)
    for seconds in (5.0, 2.0):
        for j in range(4):
            images.note_seconds(shard=j, seconds=seconds)
    assert images.seconds()["making_seconds"] == 8.0


def test_where_the_seconds_cannot_be_written_the_set_is_made_all_the_same(tmp_path, manifest,
                                                                          finished):
    (tmp_path / "set.seconds.jsonl").mkdir()
    images = make(tmp_path / "set", manifest)
    assert contents(tmp_path / "set") == contents(finished)
    assert images.seconds() == {"making_seconds": None, "pretraining_seconds": None}


# --- growth ---------------------------------------------------------------------------------------

def test_growth_from_3_to_5_gives_the_bytes_of_5_at_once(tmp_path, finished, manifest):
    make(tmp_path / "grown", manifest | {"images_per_class": 3})
    make(tmp_path / "grown", manifest)
    assert contents(tmp_path / "grown") == contents(finished)


def test_a_set_that_grows_with_other_pixels_keeps_those_it_has(tmp_path, manifest, monkeypatch):
    make(tmp_path / "set", manifest | {"images_per_class": 3})
    before = contents(tmp_path / "set" / "images")
    monkeypatch.setattr(f"{__name__}.sample", lambda labels, seeds: torch.zeros(
        len(labels), 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="made again with other pixels"):
        make(tmp_path / "set", manifest)
    found = contents(tmp_path / "set" / "images")
    assert all(found[name] == data for name, data in before.items())


def test_an_image_of_a_set_that_is_gone_is_damage(tmp_path, manifest):
    images = make(tmp_path / "set", manifest)
    (tmp_path / "set" / images.plan.path(4, 1)).unlink()
    with pytest.raises(DamagedError, match="--repair"):
        image_set.packed(images, tmp_path / "cache", lambda n: None)


def test_a_set_that_grows_is_not_complete_until_it_is_made(tmp_path, manifest):
    make(tmp_path / "set", manifest | {"images_per_class": 3})
    assert not image_set.begin(tmp_path / "set", manifest).complete


@pytest.mark.parametrize("ranks", [((1, 2), (0, 2)), ((2, 3), (0, 3), (1, 3)),
                                   ((1, 2), (0, 1)), ((7, 8), (0, 1))])
def test_ranks_in_any_order_and_number_give_the_same_bytes(tmp_path, finished, manifest, ranks):
    make(tmp_path / "set", manifest, ranks)
    assert contents(tmp_path / "set") == contents(finished)


def test_shards_in_any_order_give_the_same_bytes(tmp_path, finished, manifest):
    images = image_set.begin(tmp_path / "set", manifest)
    for j in (2, 0, 3, 1):
        keys = images.plan.shard(j)
        labels = torch.tensor([label for label, _ in keys])
        images.write_shard(j, sample(labels, [images.plan.seed(*key) for key in keys]))
    images.write_index()
    assert contents(tmp_path / "set") == contents(finished)


def test_the_rank_that_finishes_first_writes_no_index(tmp_path, manifest):
    images = make(tmp_path / "set", manifest, [(0, 2)])
    assert not images.complete and images.missing() == [1, 3]


def test_a_lost_shard_is_made_again_alone(copy, manifest, finished):
    (copy / "shards" / "00002.json").unlink()
    (copy / "index.csv").unlink()
    seen = []

    def noted(labels, seeds):
        seen.append(labels.tolist())
        return sample(labels, seeds)

    assert image_set.make(image_set.begin(copy, manifest), noted, 0, 1, lambda count: None) == 1
    assert seen == [[7, 1, 4, 7]] and contents(copy) == contents(finished)


def test_labels_of_a_generator_without_classes_are_minus_one(tmp_path, manifest):
    images = make(tmp_path / "set", manifest | {"labels_known": False})
    assert {row["label"] for row in images.index()} == {-1}
    assert image_set.packed(images, tmp_path / "cache", lambda n: None)[1].tolist() == [-1] * 15


# --- refusals -------------------------------------------------------------------------------------

def test_an_incomplete_set_is_refused_with_its_count(tmp_path, manifest):
    images = make(tmp_path / "set", manifest, [(0, 2)])
    with pytest.raises(UserError, match="2 of 4 shards"):
        images.index()


def test_shrinking_is_refused(copy, manifest):
    with pytest.raises(UserError, match="5 images per class already"):
        image_set.begin(copy, manifest | {"images_per_class": 4})


@pytest.mark.parametrize(("change", "shown"), [
    ({"base_seed": 3}, r"base_seed: 0 -> 3"), ({"shard_size": 5}, r"shard_size: 4 -> 5"),
    ({"generator": {"name": "test", "steps": 9, "licence": "none"}}, r"generator.steps: 3 -> 9"),
    ({"classes": [1, 4, 8]}, r"classes"), ({"threads": 1}, r"threads: 2 -> 1"),
    ({"versions": {"torch": "3"}}, r"versions.torch: 2 -> 3")])
def test_changed_settings_are_refused_by_name_and_nothing_changes(copy, manifest, change, shown):
    before = contents(copy)
    with pytest.raises(UserError, match=shown) as caught:
        image_set.begin(copy, manifest | change)
    assert caught.value.exit_code == 2 and contents(copy) == before


def test_a_folder_of_other_files_is_refused(tmp_path, manifest):
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(UserError, match="other files"):
        image_set.begin(tmp_path, manifest)


def test_a_folder_without_manifest_is_refused_with_the_command(tmp_path):
    with pytest.raises(UserError, match="dm_kd.synthesize"):
        image_set.open_set(tmp_path)


def test_a_newer_format_is_refused_as_newer(copy, manifest):
    files.write_json(copy / "manifest.json", manifest | {"format_version": 2, "new": 1})
    with pytest.raises(UserError, match="newer version") as caught:
        image_set.open_set(copy)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"classes": 1}',
                                  b"[" * 100_000, b"9" * 5000])
def test_a_damaged_manifest_is_named(copy, text):
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(DamagedError, match="manifest.json"):
        image_set.open_set(copy)


@pytest.mark.parametrize("name", ["num_classes", "images_per_class", "shard_size", "base_seed",
                                  "resolution", "channels", "labels_known", "shared_noise",
                                  "classes", "task", "generator", "format_version"])
def test_a_manifest_without_a_setting_is_refused_by_its_name(copy, manifest, name):
    del manifest[name]
    files.write_json(copy / "manifest.json", manifest)
    with pytest.raises(DamagedError, match=name):
        image_set.open_set(copy)


@pytest.mark.parametrize("change", [
    {"classes": []}, {"classes": [1, 1]}, {"classes": [1, True]}, {"classes": [10]},
    {"classes": [-1]}, {"shard_size": 0}, {"images_per_class": 0}, {"images_per_class": 10 ** 12},
    {"base_seed": 0.5}, {"channels": True}])
def test_a_manifest_with_an_impossible_value_is_damage(copy, manifest, change):
    files.write_json(copy / "manifest.json", manifest | change)
    with pytest.raises(DamagedError, match="manifest.json"):
        image_set.open_set(copy)


def test_a_record_of_other_settings_is_damage(copy, manifest):
    files.write_json(copy / "manifest.json", manifest | {"threads": 1})
    with pytest.raises(DamagedError, match="does not match the manifest"):
        image_set.open_set(copy).record(0)


def test_a_flipped_image_a_missing_one_and_a_bad_record_are_named_by_shard(copy):
    images, told = image_set.open_set(copy), []
    paths = [copy / row["path"] for row in images.index()]
    data = bytearray(paths[0].read_bytes())
    data[-5] ^= 1
    paths[0].write_bytes(data)
    paths[5].unlink()
    images.record_path(2).write_text("{}")
    damaged = image_set.damaged_shards(images, told.append)
    assert set(damaged) == {0, 1, 2} and sum(told) == 15
    assert "class_1_seed_0_num_0.png differs" in damaged[0]
    assert "is missing" in damaged[1] and "record" in damaged[2]


def rewrite_index(folder, change):
    """index.csv with `change(rows)` applied; rows are lists, the first is the header."""
    rows = list(csv.reader(io.StringIO((folder / "index.csv").read_text())))
    change(rows)
    (folder / "index.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "images/../../secret.png",
                                  "images/0001/link.png"])
def test_an_index_path_outside_the_set_is_refused(copy, path):
    (copy.parent / "secret.png").write_bytes(b"secret")
    (copy / "images/0001/link.png").symlink_to(copy.parent / "secret.png")
    rewrite_index(copy, lambda rows: rows[3].__setitem__(0, path))
    with pytest.raises(DamagedError, match="index.csv line 4"):
        image_set.open_set(copy).index()


@pytest.mark.parametrize(("column", "value"), [(1, "cat"), (1, ""), (2, "1.5")])
def test_a_malformed_row_of_the_index_is_named_by_its_line(copy, column, value):
    rewrite_index(copy, lambda rows: rows[7].__setitem__(column, value))
    with pytest.raises(DamagedError, match="index.csv line 8"):
        image_set.open_set(copy).index()


def test_a_short_row_of_the_index_is_named_by_its_line(copy):
    rewrite_index(copy, lambda rows: rows[2].pop())
    with pytest.raises(DamagedError, match="index.csv line 3"):
        image_set.open_set(copy).index()


def test_an_index_with_a_row_too_few_is_refused(copy):
    rewrite_index(copy, lambda rows: rows.pop())
    with pytest.raises(DamagedError, match="14 images, the manifest says 15"):
        image_set.open_set(copy).index()


def test_an_index_without_a_column_is_damage(copy):
    rewrite_index(copy, lambda rows: [row.pop(3) for row in rows])
    with pytest.raises(DamagedError, match="index.csv"):
        image_set.open_set(copy).index()


def test_an_index_with_a_huge_field_is_damage(copy):
    rewrite_index(copy, lambda rows: rows[1].__setitem__(0, "x" * 200_000))
    with pytest.raises(DamagedError, match="index.csv"):
        image_set.open_set(copy).index()


def test_an_index_label_that_is_no_class_of_the_set_is_damage(copy):
    rewrite_index(copy, lambda rows: rows[1].__setitem__(1, "77"))
    with pytest.raises(DamagedError, match="index.csv"):
        image_set.open_set(copy).index()


# --- random mutations -----------------------------------------------------------------------------

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.integers(-2 ** 70, 2 ** 70), st.floats(),
    st.text(max_size=8), st.sampled_from(["../x", "\x00", "1", "e" * 300, "\ud800"]),
    st.lists(st.integers(-1, 12), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(),
                                                               max_size=2))
edits = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["set", "drop", "twice", "rename"]),
                           leaves), min_size=1, max_size=3)


def places(value):
    """Every (container, key) below a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(
        value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])


def mutated(value, changes):
    value = json.loads(json.dumps(value))
    for where, how, leaf in changes:
        found = list(places(value))
        if not found:
            break
        holder, key = found[int(where * (len(found) - 1))]
        if how == "drop":
            del holder[key]
        elif how == "twice" and isinstance(holder, list):
            holder.append(holder[key])
        elif how == "rename" and isinstance(holder, dict):
            holder[str(leaf)] = holder.pop(key)
        else:
            holder[key] = leaf
    return json.dumps(value)


def use(folder, cache):
    """What the commands do with a set; only user errors may come out."""
    try:
        images = image_set.open_set(folder)
        if images.plan.shards < 1000:
            images.missing()
            image_set.damaged_shards(images, lambda count: None)
            images.summary_damage()
            for j in range(images.plan.shards):
                images.known_pixels(j)
        image_set.begin(folder, images.manifest)
        image_set.packed(images, cache, lambda count: None)
    except UserError as error:
        assert len(str(error).splitlines()) <= 6
        return error
    return None


@settings(max_examples=300)
@given(changes=edits)
def test_a_mutated_manifest_never_raises_anything_but_a_users_error(changes, finished, tmp_path):
    folder = tmp_path / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    text = mutated(json.loads((finished / "manifest.json").read_text()), changes)
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    use(folder, tmp_path / "cache")


@pytest.mark.parametrize("digit", [1, 4, 6, 13])
def test_a_flipped_count_in_a_manifest_is_damage(finished, tmp_path, digit):
    folder = Path(shutil.copytree(finished, tmp_path / "set"))
    manifest = json.loads((folder / "manifest.json").read_text())
    files.write_json(folder / "manifest.json", manifest | {"images_per_class": digit})
    found = use(folder, tmp_path / "cache")
    assert isinstance(found, DamagedError) or image_set.open_set(folder).summary_damage()


@settings(max_examples=120)
@given(changes=edits, shard=st.integers(0, 3))
def test_a_mutated_record_never_raises_anything_but_a_users_error(changes, shard, finished,
                                                                  tmp_path):
    folder = tmp_path / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    path = image_set.open_set(folder).record_path(shard)
    path.write_text(mutated(json.loads(path.read_text()), changes))
    use(folder, tmp_path / "cache")


@settings(max_examples=120)
@given(cut=st.integers(0, 2400), byte=st.integers(0, 255), insert=st.binary(max_size=6))
def test_a_mutated_index_is_refused_or_read(cut, byte, insert, finished, tmp_path):
    folder = tmp_path / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    data = bytearray((finished / "index.csv").read_bytes())
    data[cut % len(data)] = byte
    data[cut % len(data):cut % len(data)] = insert
    (folder / "index.csv").write_bytes(data)
    use(folder, tmp_path / "cache")


def test_the_mutations_reach_both_refusal_and_acceptance(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "set")
    assert use(folder, tmp_path / "cache") is None
    (folder / "manifest.json").write_text(mutated(
        json.loads((folder / "manifest.json").read_text()), [(0.0, "drop", None)]))
    assert isinstance(use(folder, tmp_path / "cache"), DamagedError)


# --- images ---------------------------------------------------------------------------------------

def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(shape=(8, 8)):
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel(channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    assert torch.equal(image_files.read_image(image_set.encode_png(image), "x.png"), image)


def test_a_palette_image_is_read_as_its_colours():
    image = Image.fromarray(ramp()).convert("P")
    image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    found = image_files.read_image(encoded(image), "x.png")
    indices = torch.from_numpy(np.array(image))
    expected = torch.stack([indices, 255 - indices, torch.full_like(indices, 7)])
    assert torch.equal(found, expected)


def test_a_cmyk_jpeg_is_read_as_three_channels():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    found = image_files.read_image(encoded(image, "JPEG", quality=100), "x.jpg")
    assert found.shape == (3, 8, 8)
    assert found[0].max() < 40 and found[1:].min() > 200  # pure cyan


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_a_16_bit_grey_image_keeps_its_upper_8_bits(channels):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    found = image_files.read_image(encoded(Image.fromarray(levels)), "x.png", channels)
    assert len(found) == (channels or 1)
    assert torch.equal(found[0], torch.from_numpy((levels >> 8).astype(np.uint8)))


def test_a_grey_image_can_be_asked_for_as_colour():
    found = image_files.read_image(encoded(Image.fromarray(ramp())), "x.png", 3)
    assert found.shape == (3, 8, 8) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused_unless_all_pixels_are_there(kind):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(
        0, 256, (16, 16, 3), dtype=np.uint8)), kind)
    whole, refused = image_files.read_image(data, "x"), 0
    for length in range(len(data)):
        try:
            assert torch.equal(image_files.read_image(data[:length], "cut.x"), whole), length
        except DamagedError as error:
            refused += 1
            assert "cut.x" in str(error)
    assert refused >= len(data) - 24  # a PNG's end mark and checksums


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_flipped_bytes_never_raise_anything_but_damage(kind):
    data = encoded(Image.fromarray(ramp((16, 16))), kind)
    random = np.random.default_rng(0)
    for _ in range(300):
        flipped = bytearray(data)
        for place in random.integers(0, len(data), 3):
            flipped[place] = random.integers(256)
        try:
            image_files.read_image(bytes(flipped), "flipped.x")
        except DamagedError as error:
            assert "flipped.x" in str(error)


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"GIF89a" + b"\0" * 40, b"BM" + b"\0" * 60])
def test_other_formats_are_refused(data):
    with pytest.raises(DamagedError, match="no PNG or JPEG") as error:
        image_files.read_image(data, "x.png")
    assert "BytesIO" not in str(error.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_100, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(DamagedError):
        image_files.read_image(bytes(data), "bomb.png")


# --- packed cache ---------------------------------------------------------------------------------

def test_the_packed_cache_equals_the_files(finished, tmp_path):
    images, counted = image_set.open_set(finished), []
    pixels, labels = image_set.packed(images, tmp_path, counted.append)
    assert pixels.shape == (15, 1, 8, 8) and pixels.dtype == torch.uint8
    assert labels.tolist() == [1, 4, 7] * 5 and sum(counted) == 15
    for image, row in zip(pixels, images.index(), strict=True):
        data = (finished / row["path"]).read_bytes()
        assert torch.equal(image, image_files.read_image(data, row["path"]))


@pytest.mark.parametrize("threads", [1, 8])
def test_images_decoded_by_many_threads_keep_their_order(finished, tmp_path, monkeypatch, threads):
    images, seen = image_set.open_set(finished), set()
    expected = image_set.packed(images, tmp_path / "one", lambda n: None)[0]
    real = image_set.read_image

    def slower_at_first(*args):
        seen.add(threading.get_ident())
        time.sleep(0.03 / (1 + len(seen)))
        return real(*args)

    monkeypatch.setattr(image_set, "read_image", slower_at_first)
    monkeypatch.setattr(image_set, "DECODED_AHEAD", 7)
    monkeypatch.setattr(image_set, "LARGE_SIDE", 8 if threads > 1 else 9)
    found = image_set.packed(images, tmp_path / "many", lambda n: None)[0]
    assert torch.equal(found, expected) and (len(seen) > 1) == (threads > 1)


def test_the_cache_is_built_once(finished, tmp_path):
    images, counted = image_set.open_set(finished), []
    first = image_set.packed(images, tmp_path, counted.append)[0].clone()
    second = image_set.packed(images, tmp_path, counted.append)[0]
    assert sum(counted) == 15 and torch.equal(first, second)


def test_a_half_written_cache_is_built_again(finished, tmp_path):
    images = image_set.open_set(finished)
    first = image_set.packed(images, tmp_path, lambda n: None)[0].clone()
    data = next(tmp_path.glob("*.u8"))
    data.write_bytes(data.read_bytes()[:100])
    assert torch.equal(image_set.packed(images, tmp_path, lambda n: None)[0], first)


def test_a_flipped_file_stops_the_cache_and_leaves_nothing_behind(copy, tmp_path):
    images = image_set.open_set(copy)
    path = copy / images.index()[9]["path"]
    data = bytearray(path.read_bytes())
    data[30] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=path.name):
        image_set.packed(images, tmp_path / "cache", lambda n: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_whole_image_that_is_not_the_recorded_one_stops_the_cache(copy, tmp_path):
    images = image_set.open_set(copy)
    first, second = (copy / row["path"] for row in images.index()[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedError, match=first.name):
        image_set.packed(images, tmp_path / "cache", lambda n: None)


def test_writing_into_the_cached_pixels_does_not_change_the_cache(finished, tmp_path):
    images = image_set.open_set(finished)
    pixels = image_set.packed(images, tmp_path, lambda n: None)[0]
    before = pixels.clone()
    pixels.zero_()
    assert torch.equal(image_set.packed(images, tmp_path, lambda n: None)[0], before)


# --- locks ----------------------------------------------------------------------------------------

def test_the_same_rank_twice_is_locked_out_and_the_holder_is_named(tmp_path):
    with (image_set.writing(tmp_path, 0, 2),
          pytest.raises(LockedError, match=r"written by pid \d+ on ") as caught,
          image_set.writing(tmp_path, 0, 2)):
        pass
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("mine", "other"), [((0, 1), (0, 2)), ((1, 2), (2, 3)),
                                             ((0, 1), (0, 11))])
def test_another_world_size_is_locked_out(tmp_path, mine, other):
    with (image_set.writing(tmp_path, *mine), pytest.raises(LockedError, match="world-size"),
          image_set.writing(tmp_path, *other)):
        pass


def test_other_ranks_of_the_same_world_may_write_together(tmp_path):
    with image_set.writing(tmp_path, 0, 2), image_set.writing(tmp_path, 1, 2):
        assert len(list((tmp_path / ".lock").glob("rank*"))) == 2


def test_locks_leave_no_trace(tmp_path):
    with image_set.writing(tmp_path, 0, 1):
        pass
    with image_set.writing(tmp_path, 0, 3):
        pass
    assert list(tmp_path.iterdir()) == []


# --- contact sheet --------------------------------------------------------------------------------

def test_tile_puts_each_image_in_its_place():
    a, b, c = (torch.full((1, 2, 3), v, dtype=torch.uint8) for v in (10, 20, 30))
    sheet = image_set.tile([[a, b], [c]], scale=2, gap=1)
    assert sheet.shape == (1, 11, 15)
    assert (sheet[0, 1:5, 1:7] == 10).all() and (sheet[0, 1:5, 8:14] == 20).all()
    assert (sheet[0, 6:10, 1:7] == 30).all() and (sheet[0, 6:10, 8:14] == 255).all()
    assert (sheet[0, 0] == 255).all() and (sheet[0, :, 7] == 255).all()


def test_a_damaged_contact_sheet_is_named(copy):
    images = image_set.open_set(copy)
    assert images.summary_damage() is None
    (copy / "contact_sheet.png").write_bytes(b"")
    assert images.summary_damage() == "contact_sheet.png"


def test_growth_from_20_to_50_images_per_class_gives_the_bytes_of_50_at_once(tmp_path, manifest):
    make(tmp_path / "grown", manifest | {"images_per_class": 20, "shard_size": 16})
    make(tmp_path / "grown", manifest | {"images_per_class": 50, "shard_size": 16})
    make(tmp_path / "whole", manifest | {"images_per_class": 50, "shard_size": 16})
    assert len(contents(tmp_path / "whole")) == 150 + 10 + 3
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


# --- the second thread ----------------------------------------------------------------------------

def test_shards_are_written_beside_the_next_batch_and_in_order(tmp_path, manifest, monkeypatch):
    order, threads = [], set()
    real = image_set.ImageSet.write_shard

    def write(self, j, *images):
        threads.add(threading.current_thread())
        order.append(f"wrote {j}")
        real(self, j, *images)

    monkeypatch.setattr(image_set.ImageSet, "write_shard", write)

    def seen(labels, seeds):
        threads.add(threading.current_thread())
        return sample(labels, seeds)

    with image_set.writing(tmp_path / "set", 0, 1):
        images = image_set.begin(tmp_path / "set", manifest)
        image_set.make(images, seen, 0, 1, order.append)
    assert len(threads) == 2
    assert [o for o in order if isinstance(o, str)] == [f"wrote {j}" for j in range(4)]
    assert [o for o in order if isinstance(o, int)] == [4, 4, 4, 3]


def test_what_finishes_a_batch_in_the_second_thread_makes_the_same_bytes(tmp_path, manifest,
                                                                         finished):
    with image_set.writing(tmp_path / "set", 0, 1):
        images = image_set.begin(tmp_path / "set", manifest)
        image_set.make(images, lambda *batch: batch, 0, 1, lambda n: None,
                       lambda batch: sample(*batch))
    assert contents(tmp_path / "set") == contents(finished)


@pytest.mark.parametrize("where", ["write", "finish", "sample"])
def test_an_error_in_either_thread_ends_the_run_and_the_next_one_goes_on(
        tmp_path, manifest, finished, monkeypatch, where):
    calls = []

    def failing(name, function):
        def called(*args):
            calls.append(name)
            if name == where and calls.count(name) == 3:
                raise StorageError("no space left")
            return function(*args)
        return called

    with monkeypatch.context() as patch:
        patch.setattr(image_set, "encode_all", failing("write", image_set.encode_all))
        with (image_set.writing(tmp_path / "set", 0, 1), pytest.raises(StorageError)):
            images = image_set.begin(tmp_path / "set", manifest)
            image_set.make(images, failing("sample", sample), 0, 1, lambda n: None,
                           failing("finish", lambda x: x))
    left = images.missing()
    assert left == [2, 3] and calls.count("sample") <= 4
    assert not images.complete
    assert contents(make(tmp_path / "set", manifest).folder) == contents(finished)


def test_large_images_are_encoded_by_several_threads_in_order():
    images = list(torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8))
    assert list(image_set.encode_all(images)) == [image_set.encode_png(i) for i in images]
