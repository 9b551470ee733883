"""Kills, signals, full disks and damaged bytes: the same command goes on to the same bits.

Every command runs in a child process (see processes.py) on one CPU thread. What a run of the same
command without a fault made is the golden value of each test.
"""

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import processes
import pytest
import torch
from processes import ROOT, contents, random_kills, run, start

from dm_kd import files, image_set, synthesize
from dm_kd.generators import dit, noise
from dm_kd.run import Run

NOISE = ("--task", "digits", "--generator", "noise", "--classes", "0-4", "--images-per-class", 4,
         "--batch-size", 3, "--threads", 1)  # 20 images, 7 shards, the last with 2 of 3
TINY = ("--task", "digits", "--generator", "noise", "--classes", "0-2", "--images-per-class", 1,
        "--batch-size", 2, "--threads", 1)  # 3 images, 2 shards, the last with 1 of 2
RECIPE = ("--task", "digits", "--student", "cnn_w4", "--epochs", 3, "--batch-size", 16,
          "--learning-rate", 0.05, "--lr-decay-epochs", 2, "--mixup", 0.4, "--threads", 1,
          "--amp", "none", "--checkpoint-seconds", 1e-6)  # 27 steps, a checkpoint after each
GENERATOR = ("--task", "digits", "--width", 16, "--depth", 1, "--heads", 2, "--steps", 12,
             "--sample-every", 5, "--batch-size", 8, "--threads", 1, "--amp", "none",
             "--checkpoint-seconds", 1e-6)


# --- what the tests share -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def dit_arguments(place):
    """A tiny DiT with random weights, in the layout that train_generator writes."""
    torch.manual_seed(0)
    model = dit.DiT(8, 4, 1, 16, 1, 2, 10, learn_sigma=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # the zero gates of a new DiT ignore the label
    files.write_with_card(place / "dit", "dit", {
        name: p.detach() for name, p in model.named_parameters()}, {
        "model": "dit", "task": "digits", "config": model.config, "clip": True, "licence": "none"})
    return ("--task", "digits", "--generator", "dit", "--weights", place / "dit", "--steps", 3,
            "--classes", "0-3", "--images-per-class", 4, "--batch-size", 3, "--threads", 1)


@pytest.fixture(scope="module")
def teacher(place):
    """A run folder of train_teacher, good enough that its labels mean something."""
    ended = run("train_teacher", "--task", "digits", "--model", "cnn_w8", "--epochs", 4,
                "--batch-size", 64, "--lr-decay-epochs", 3, "--threads", 1, "--amp", "none",
                "--out", place / "teacher")
    assert ended.code == 0, ended.err
    assert result(place / "teacher")["acc1"] > 60
    return place / "teacher"


@pytest.fixture(scope="module")
def noise_set(place):
    ended = run("synthesize", "--task", "digits", "--generator", "noise", "--images-per-class", 14,
                "--threads", 1, "--out", place / "noise_set")
    assert ended.code == 0, ended.err
    return place / "noise_set"


@pytest.fixture(scope="module")
def recipe(place, teacher, noise_set):
    return (*RECIPE, "--teacher", teacher, "--source", noise_set, "--cache", place / "cache")


@pytest.fixture(scope="module")
def unbroken(place, recipe):
    """The outcome, and all moments, of the distillation that no test disturbs."""
    ended = run("distill", *recipe, "--out", place / "unbroken")
    assert ended.code == 0, ended.err
    return outcome(place / "unbroken"), ended


def golden_set(command, folder):
    ended = run("synthesize", *command, "--out", folder)
    assert ended.code == 0, ended.err
    return contents(folder), ended


def result(folder):
    return json.loads((folder / "result.json").read_text())


def outcome(folder):
    """What a finished run must repeat bit for bit. Times and places are left out."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    untimed = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
               for row in rows]
    kept = ("acc1", "acc5", "best_acc1", "best_epoch", "teacher_acc1", "agreement", "images_seen",
            "weights_sha256")
    weights = next(folder.glob("*.safetensors"))
    assert files.sha256_file(weights) == result(folder)["weights_sha256"]
    return {"weights": weights.read_bytes(), "metrics": untimed,
            "result": {k: v for k, v in result(folder).items() if k in kept},
            "best": (folder / "best.pt").read_bytes() if (folder / "best.pt").exists() else None}


def finish_and_compare(command, folder, golden):
    ended = run("distill", *command, "--out", folder)
    assert ended.code == 0, ended.err
    assert outcome(folder) == golden
    assert [row["epoch"] for row in outcome(folder)["metrics"]] == [1, 2, 3]
    assert leftovers(folder) == []
    return ended


def leftovers(folder):
    return [name for name in contents(folder) if ".tmp." in name or ".lock" in name]


def flip_bit(data, chance):
    at = chance.randrange(8 * len(data))
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


# --- synthesis: kills -----------------------------------------------------------------------------

@pytest.mark.parametrize("generator", ["noise", "dit"])
def test_synthesis_after_random_kills_is_byte_identical(place, generator, dit_arguments, tmp_path,
                                                        kills=5):
    command = NOISE if generator == "noise" else dit_arguments
    golden, ended = golden_set(command, place / f"golden_{generator}_{kills}")
    random_kills("synthesize", *command, out=tmp_path / "set", kills=kills,
                 seconds=0.8 * ended.seconds)
    assert run("synthesize", *command, "--out", tmp_path / "set").code == 0
    assert contents(tmp_path / "set") == golden


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["noise", "dit"])
def test_synthesis_after_25_random_kills_is_byte_identical(place, generator, dit_arguments,
                                                           tmp_path):
    test_synthesis_after_random_kills_is_byte_identical(place, generator, dit_arguments, tmp_path,
                                                        kills=25)


def test_synthesis_killed_at_each_moment_of_every_write_is_byte_identical(
        tmp_path, of_all_images=False):
    golden, ended = golden_set(TINY, tmp_path / "golden")
    assert len(ended.moments) > 60
    for index, moment in enumerate(ended.moments):
        if not of_all_images and re.search(" (class_[12]_.*png|000[12])$", moment):
            continue
        folder = tmp_path / f"at{index}"
        assert run("synthesize", *TINY, "--out", folder, at=index).code == 137, moment
        again = run("synthesize", *TINY, "--out", folder)
        assert again.code == 0, (moment, again.err)
        assert contents(folder) == golden, moment


@pytest.mark.slow
def test_synthesis_killed_at_each_moment_of_every_image_is_byte_identical(tmp_path):
    test_synthesis_killed_at_each_moment_of_every_write_is_byte_identical(tmp_path, True)


def test_a_second_kill_after_the_index_leaves_no_half_written_file_behind(tmp_path):
    golden, _ = golden_set(TINY, tmp_path / "golden")
    folder = tmp_path / "set"
    for moment in ("half class_1_seed_0_num_0.png", "half 00001.json", "after replace index.csv"):
        assert run("synthesize", *TINY, "--out", folder, at=moment).code == 137, moment
    assert run("synthesize", *TINY, "--out", folder).code == 0
    assert contents(folder) == golden


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_synthesis_stopped_by_a_signal_says_so_and_goes_on(tmp_path, number, code):
    golden, _ = golden_set(NOISE, tmp_path / "golden")
    for moment in ("half 00001.json", "before replace class_2_seed_0_num_2.png"):
        ended = run("synthesize", *NOISE, "--out", tmp_path / "set", at=moment, send=number)
        assert ended.code == code and "goes on" in ended.err
        assert len(ended.err.splitlines()) == 1
    assert run("synthesize", *NOISE, "--out", tmp_path / "set").code == 0
    assert contents(tmp_path / "set") == golden


# --- synthesis: several processes -----------------------------------------------------------------

@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_processes_makes_the_same_bytes(tmp_path, world_size, dit_arguments):
    golden, _ = golden_set(dit_arguments, tmp_path / "golden")
    for trial in range(3):
        folder = tmp_path / f"trial{trial}"
        ranks = [start("synthesize", *dit_arguments, "--out", folder, "--rank", rank,
                       "--world-size", world_size) for rank in range(world_size)]
        for rank, ended in enumerate([child.wait() for child in ranks]):
            assert ended.code == 0, (rank, ended.err)
        assert contents(folder) == golden


@pytest.mark.parametrize("moment", [
    "before open start", "before unlink start", "opened manifest.json",
    "before replace manifest.json", "after replace manifest.json", "half class_0_seed_0_num_0.png",
    "half 00000.json", "before replace 00000.json", "before unlink rank0of2"])
def test_a_process_that_was_held_up_at_any_moment_does_no_harm_to_another(tmp_path, moment):
    golden, _ = golden_set(TINY, tmp_path / "golden")
    command = (*TINY, "--out", tmp_path / "set", "--world-size", 2)
    slow = start("synthesize", *command, "--rank", 0, at=moment, send=signal.SIGSTOP)
    slow.wait_until_stopped()
    other = start("synthesize", *command, "--rank", 1)
    time.sleep(0.5)  # enough to end, unless the first one holds the short lock others wait for
    slow.signal(signal.SIGCONT)
    other, slow = other.wait(), slow.wait()
    assert (slow.code, other.code) == (0, 0), slow.err + other.err
    assert contents(tmp_path / "set") == golden


def test_a_killed_rank_is_made_up_by_another_world_size(tmp_path):
    golden, _ = golden_set(NOISE, tmp_path / "golden")
    command = (*NOISE, "--out", tmp_path / "set")
    killed = run("synthesize", *command, "--rank", 0, "--world-size", 2, at="half 00002.json")
    assert killed.code == 137
    assert run("synthesize", *command, "--rank", 1, "--world-size", 2).code == 0
    assert run("synthesize", *command).code == 0
    assert contents(tmp_path / "set") == golden


@pytest.mark.parametrize("second", [(0, 2), (0, 1), (2, 3)])
def test_the_same_rank_or_another_world_size_is_refused_while_one_lives(tmp_path, second):
    golden, _ = golden_set(NOISE, tmp_path / "golden")
    command = (*NOISE, "--out", tmp_path / "set")
    first = start("synthesize", *command, "--rank", 0, "--world-size", 2, at="half 00002.json",
                  send=signal.SIGSTOP)
    first.wait_until_stopped()
    rank, world_size = second
    refused = run("synthesize", *command, "--rank", rank, "--world-size", world_size)
    assert refused.code == 3
    assert f"pid {first.pid}" in refused.err and socket.gethostname() in refused.err
    assert len(refused.err.splitlines()) <= 6 and refused.seconds < 2
    first.signal(signal.SIGCONT)
    assert first.wait().code == 0
    assert run("synthesize", *command, "--rank", 1, "--world-size", 2).code == 0
    assert contents(tmp_path / "set") == golden


# --- synthesis: growth ----------------------------------------------------------------------------

def test_a_set_that_grew_equals_one_made_at_once(tmp_path, dit_arguments):
    golden, _ = golden_set(dit_arguments, tmp_path / "golden")
    smaller = [2 if before == "--images-per-class" else value for before, value in
               zip((None, *dit_arguments), dit_arguments, strict=False)]
    golden_set(smaller, tmp_path / "set")
    assert run("synthesize", *dit_arguments, "--out", tmp_path / "set").code == 0
    assert contents(tmp_path / "set") == golden


def test_a_growth_killed_at_each_moment_ends_in_the_same_bytes(tmp_path):
    larger = [2 if before == "--images-per-class" else value for before, value in
              zip((None, *TINY), TINY, strict=False)]
    golden, _ = golden_set(larger, tmp_path / "golden")
    golden_set(TINY, tmp_path / "small")
    shutil.copytree(tmp_path / "small", tmp_path / "grown")
    moments = run("synthesize", *larger, "--out", tmp_path / "grown").moments
    assert contents(tmp_path / "grown") == golden
    for index in range(0, moments.index("after fsync shards") + 1, 2):
        folder = tmp_path / f"at{index}"
        shutil.copytree(tmp_path / "small", folder)
        assert run("synthesize", *larger, "--out", folder, at=index).code == 137
        again = run("synthesize", *larger, "--out", folder)
        assert again.code == 0, (moments[index], again.err)
        assert contents(folder) == golden, moments[index]


# --- synthesis: damaged bytes ---------------------------------------------------------------------

def damage_and_verify(folder, command, name, data, capsys):
    """Exit code and message of --verify with `data` in the file's place, which then comes back."""
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(data)
    code = synthesize.main([str(a) for a in (*command, "--out", folder, "--verify")])
    path.write_bytes(before)
    return code, capsys.readouterr().err


def names_it(name, message):
    """Whether a message of damage names the file, or the shard it is in."""
    if name.startswith("shards/"):
        return f"shard {name[7:12]}" in message
    return name in message or name == "manifest.json"


@pytest.mark.parametrize("part", ["images", "shards", "index.csv", "contact_sheet.png",
                                  "manifest.json"])
def test_verify_finds_every_flipped_bit_and_names_the_place(tmp_path, capsys, part, flips=40):
    golden, _ = golden_set(TINY, tmp_path / "set")
    names = [name for name in golden if name.startswith(part) and golden[name]]
    chance = random.Random(part)
    for _ in range(flips):
        name = chance.choice(names)
        changed = flip_bit(golden[name], chance)
        code, message = damage_and_verify(tmp_path / "set", TINY, name, changed, capsys)
        at = next(i for i, (a, b) in enumerate(zip(golden[name], changed, strict=True)) if a != b)
        where = f"{name} byte {at}: {golden[name][max(0, at - 20):at + 9]} -> {changed[at]:#x}"
        assert code == 5, f"{where}: exit {code} {message}"
        assert names_it(name, message), f"{where}: {message}"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["images", "shards", "index.csv", "contact_sheet.png",
                                  "manifest.json"])
def test_verify_finds_each_of_2000_flipped_bits(tmp_path, capsys, part):
    test_verify_finds_every_flipped_bit_and_names_the_place(tmp_path, capsys, part, flips=400)


def flip_pixel_digest(record):
    """Change one digit of the first pixels_sha256."""
    text = record.read_text()
    digest = re.search(r'"pixels_sha256": "(.)', text)
    other = "0" if digest[1] != "0" else "1"
    record.write_text(text[:digest.start(1)] + other + text[digest.end(1):])


def test_a_flipped_pixel_digest_is_named_by_its_shard_and_repaired(tmp_path, dit_arguments):
    golden, _ = golden_set(dit_arguments, tmp_path / "set")
    flip_pixel_digest(tmp_path / "set" / "shards" / "00001.json")
    verified = run("synthesize", *dit_arguments, "--out", tmp_path / "set", "--verify")
    assert verified.code == 5 and "shard 00001 is damaged, 1 of 6" in verified.err
    repaired = run("synthesize", *dit_arguments, "--out", tmp_path / "set", "--repair")
    assert repaired.code == 0, repaired.err
    assert contents(tmp_path / "set") == golden


def test_a_flipped_pixel_digest_comes_into_no_index(tmp_path):
    golden, _ = golden_set(TINY, tmp_path / "set")
    (tmp_path / "set" / "index.csv").unlink()  # as if it had been stopped before the end
    flip_pixel_digest(tmp_path / "set" / "shards" / "00000.json")
    refused = run("synthesize", *TINY, "--out", tmp_path / "set")
    assert refused.code == 5 and "shard 00000" in refused.err
    assert run("synthesize", *TINY, "--out", tmp_path / "set", "--repair").code == 0
    assert contents(tmp_path / "set") == golden


def test_a_damaged_row_of_the_index_is_the_indexs_damage(tmp_path):
    golden, _ = golden_set(TINY, tmp_path / "set")
    index = tmp_path / "set" / "index.csv"
    index.write_bytes(golden["index.csv"][:-3] + b"x\n\n")
    verified = run("synthesize", *TINY, "--out", tmp_path / "set", "--verify")
    assert verified.code == 5 and "index.csv is damaged" in verified.err
    assert run("synthesize", *TINY, "--out", tmp_path / "set", "--repair").code == 0
    assert contents(tmp_path / "set") == golden


@pytest.mark.parametrize("flags", [("--verify",), (), ("--repair",)])
def test_a_flipped_count_in_the_manifest_of_a_complete_set_is_named(tmp_path, capsys, flags):
    golden_set(TINY, tmp_path / "set")
    manifest = tmp_path / "set" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"images_per_class": 1,',
                                                     '"images_per_class": 3,'))
    assert synthesize.main([str(a) for a in (*TINY, "--out", tmp_path / "set", *flags)]) == 5
    message = capsys.readouterr().err
    assert "manifest.json is damaged" in message and '"images_per_class": 1 in it' in message


def test_repair_on_another_machine_is_refused_and_the_set_stays_as_it_was(
        tmp_path, capsys, monkeypatch):
    command = [str(a) for a in (*NOISE, "--out", tmp_path / "set")]
    golden, _ = golden_set(NOISE, tmp_path / "set")
    damaged = tmp_path / "set" / "images" / "0001" / "class_1_seed_0_num_2.png"
    damaged.write_bytes(b"")
    before, sample = contents(tmp_path / "set"), noise.NoiseGenerator.sample
    with monkeypatch.context() as patch:
        patch.setattr(noise.NoiseGenerator, "sample",
                      lambda *batch: sample(*batch) ^ 1)  # rounds in another way
        assert synthesize.main([*command, "--repair"]) == 2
    message = capsys.readouterr().err
    assert "other pixels than it had" in message and json.loads(
        golden["manifest.json"])["made_on"] in message
    assert contents(tmp_path / "set") == before
    assert synthesize.main([*command, "--repair"]) == 0
    assert contents(tmp_path / "set") == golden


def test_another_machine_may_go_on_and_a_note_says_so(tmp_path, capsys, monkeypatch):
    command = [str(a) for a in (*NOISE, "--out", tmp_path / "set", "--world-size", 2)]
    golden, _ = golden_set(NOISE, tmp_path / "golden")
    assert synthesize.main([*command, "--rank", "0"]) == 0
    assert "begun on" not in capsys.readouterr().out
    monkeypatch.setattr(synthesize, "machine", lambda device: "Abacus 3")
    assert synthesize.main([*command, "--rank", "1"]) == 0
    assert "this is Abacus 3: images of the two may differ" in capsys.readouterr().out
    assert contents(tmp_path / "set") == golden


def test_a_set_keeps_its_threads_unless_others_are_asked_for(tmp_path, capsys):
    golden, _ = golden_set(NOISE, tmp_path / "set")
    command = [str(a) for a in (*NOISE[:-2], "--out", tmp_path / "set")]  # without --threads 1
    assert synthesize.main(command) == 0 == synthesize.main([*command, "--repair"])
    assert synthesize.main([*command, "--threads", "2"]) == 2
    assert "threads: 1 -> 2" in capsys.readouterr().err
    assert contents(tmp_path / "set") == golden
    path = tmp_path / "set/manifest.json"
    path.write_bytes(golden["manifest.json"].replace(b'"threads": 1', b'"threads": "1"'))
    assert synthesize.main(command) == 5
    assert "threads is '1'" in capsys.readouterr().err


def test_a_rank_looks_at_its_own_shards_and_verify_at_all(tmp_path, capsys):
    golden_set(NOISE, tmp_path / "set")
    command = [str(a) for a in (*NOISE, "--out", tmp_path / "set")]
    (tmp_path / "set" / "images" / "0004" / "class_4_seed_0_num_0.png").write_bytes(b"")  # shard 1
    assert synthesize.main([*command, "--world-size", "2", "--rank", "0"]) == 5  # on the sheet
    assert "class_4_seed_0_num_0.png" in capsys.readouterr().err
    (tmp_path / "set" / "index.csv").unlink()
    looked = []
    shard_damage = image_set.ImageSet.shard_damage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_set.ImageSet, "shard_damage",
                      lambda self, j: looked.append(j) or shard_damage(self, j))
        assert synthesize.main([*command, "--world-size", "2", "--rank", "0"]) == 5
        assert set(looked) == {0, 2, 4, 6}
        assert synthesize.main([*command, "--verify"]) == 5
        assert set(looked) == set(range(7))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_ranks_repair_their_own_shards_and_the_last_one_ends_with_the_same_bytes(
        tmp_path, order, capsys):
    golden, _ = golden_set(NOISE, tmp_path / "set")
    for name in ("images/0000/class_0_seed_0_num_0.png", "images/0004/class_4_seed_0_num_0.png"):
        (tmp_path / "set" / name).write_bytes(golden[name][:-20])  # of shards 0 and 1
    command = [str(a) for a in (*NOISE, "--out", tmp_path / "set", "--world-size", 2, "--repair")]
    assert synthesize.main([*command, "--rank", str(order[0])]) == 0
    assert "1 shards are left to other ranks" in capsys.readouterr().out
    assert synthesize.main([*command, "--rank", str(order[1])]) == 0
    assert contents(tmp_path / "set") == golden


def test_a_second_writer_is_refused_before_the_generator_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "build", lambda *_: pytest.fail("gigabytes of weights are read"))
    command = [str(a) for a in (*NOISE, "--out", tmp_path / "set")]
    with image_set.writing(tmp_path / "set", 0, 1):
        assert synthesize.main(command) == 3


def test_a_generator_that_cannot_be_built_leaves_no_folder(tmp_path):
    command = ("--task", "digits", "--weights", tmp_path / "none", "--out", tmp_path / "set")
    assert run("synthesize", *command).code == 2 and not (tmp_path / "set").exists()


def test_verify_finds_truncation_at_every_length(tmp_path, capsys):
    golden, _ = golden_set(TINY, tmp_path / "set")
    image = next(name for name in golden if name.startswith("images") and golden[name])
    for name in (image, "shards/00001.json", "index.csv"):
        for length in range(0, len(golden[name]) - 1, 7):
            code, message = damage_and_verify(tmp_path / "set", TINY, name,
                                              golden[name][:length], capsys)
            assert code == 5 and names_it(name, message), (name, length, message)


def test_damage_stops_the_command_and_repair_makes_the_same_bytes(tmp_path, dit_arguments):
    golden, _ = golden_set(dit_arguments, tmp_path / "set")
    chance, folder = random.Random(1), tmp_path / "set"
    images = [name for name in golden if name.startswith("images") and golden[name]]
    flipped, truncated, missing = chance.sample(images, 3)
    (folder / flipped).write_bytes(flip_bit(golden[flipped], chance))
    (folder / truncated).write_bytes(golden[truncated][:20])
    (folder / missing).unlink()
    (folder / "shards" / "00000.json").write_bytes(golden["shards/00000.json"][:100])
    (folder / "index.csv").write_bytes(flip_bit(golden["index.csv"], chance))
    refused = run("synthesize", *dit_arguments, "--out", folder)
    assert refused.code == 5 and "--repair" in refused.err
    verified = run("synthesize", *dit_arguments, "--out", folder, "--verify")
    assert verified.code == 5
    for name in (flipped, truncated, missing):
        record = next(r for r in golden if r.startswith("shards/") and
                      name.encode() in golden[r])
        assert name in verified.err or f"shard {record[7:12]}" in verified.err
    assert "shard 00000" in verified.err
    repaired = run("synthesize", *dit_arguments, "--out", folder, "--repair")
    assert repaired.code == 0, repaired.err
    assert contents(folder) == golden


@pytest.mark.slow
def test_200_truncated_and_500_flipped_files_are_each_named_and_made_again(tmp_path):
    """A shard per image, so that each is named by itself."""
    command = ("--task", "digits", "--generator", "noise", "--images-per-class", 70,
               "--batch-size", 1, "--threads", 1, "--out", tmp_path / "set")
    assert run("synthesize", *command).code == 0
    golden, chance = contents(tmp_path / "set"), random.Random(7)
    images = [name for name in golden if name.startswith("images") and golden[name]]
    assert len(images) == 700
    for n, name in enumerate(chance.sample(images, 700)):
        (tmp_path / "set" / name).write_bytes(
            golden[name][:chance.randrange(len(golden[name]))] if n < 200
            else flip_bit(golden[name], chance))
    verified = run("synthesize", *command, "--verify")
    assert verified.code == 5 and "700 of 700" in verified.err
    assert all(name in verified.err for name in images)
    repaired = run("synthesize", *command, "--repair")
    assert repaired.code == 0, repaired.err
    assert contents(tmp_path / "set") == golden


def test_a_repair_that_was_killed_at_any_moment_is_taken_up(tmp_path):
    golden, _ = golden_set(TINY, tmp_path / "golden")
    image = next(name for name in golden if name.startswith("images") and golden[name])
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "golden", damaged)
    (damaged / image).write_bytes(golden[image][:-9])
    shutil.copytree(damaged, tmp_path / "whole")
    moments = run("synthesize", *TINY, "--out", tmp_path / "whole", "--repair").moments
    for index in range(1, len(moments), 3):
        folder = tmp_path / f"at{index}"
        shutil.copytree(damaged, folder)
        killed = run("synthesize", *TINY, "--out", folder, "--repair", at=index)
        assert killed.code == 137, moments[index]
        assert run("synthesize", *TINY, "--out", folder, "--repair").code == 0, moments[index]
        assert contents(folder) == golden, moments[index]


# --- synthesis: full disk -------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["manifest.json", "images/0002/class_2_seed_0_num_1.png",
                                  "shards/00003.json", "contact_sheet.png", "index.csv"])
def test_a_full_disk_in_synthesis_is_said_and_loses_nothing(tmp_path, name):
    golden, _ = golden_set(NOISE, tmp_path / "golden")
    folder = tmp_path / "set"
    ended = run("synthesize", *NOISE, "--out", folder, file_limit_bytes=len(golden[name]) - 1)
    assert ended.code == 6 and "no space left while writing" in ended.err
    assert len(ended.err.splitlines()) <= 6 and "Traceback" not in ended.err
    assert leftovers(folder) == []
    if (folder / "manifest.json").exists():
        assert run("synthesize", *NOISE, "--out", folder, "--verify").code == 0
    assert run("synthesize", *NOISE, "--out", folder).code == 0
    assert contents(folder) == golden


# --- distillation: kills --------------------------------------------------------------------------

def test_a_real_python_process_gives_the_bits_of_a_forked_one(recipe, unbroken, tmp_path):
    command = [sys.executable, "-m", "dm_kd.distill", *map(str, recipe), "--out",
               str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert outcome(tmp_path / "run") == unbroken[0]


def test_distillation_after_random_kills_ends_in_the_same_bits(recipe, unbroken, tmp_path,
                                                               kills=5):
    golden, ended = unbroken
    random_kills("distill", *recipe, out=tmp_path / "run", kills=kills,
                 seconds=0.5 * ended.seconds)
    finish_and_compare(recipe, tmp_path / "run", golden)


@pytest.mark.slow
def test_distillation_after_25_random_kills_ends_in_the_same_bits(recipe, unbroken, tmp_path):
    test_distillation_after_random_kills_ends_in_the_same_bits(recipe, unbroken, tmp_path, 25)


@pytest.mark.parametrize("file", ["inputs.json", "config.yaml", "checkpoints.sha256", "last.pt",
                                  "previous.pt", "best.pt", "metrics.jsonl"])
def test_distillation_killed_at_each_moment_of_a_write_ends_in_the_same_bits(
        recipe, unbroken, tmp_path, file):
    golden, ended = unbroken
    moments = [m for m in dict.fromkeys(ended.moments) if m.endswith(f" {file}")]
    assert len(moments) == (2 if file == "previous.pt" else 6), moments
    for moment in moments:
        killed = run("distill", *recipe, "--out", tmp_path / "run", at=moment)
        assert killed.code == 137, (moment, killed.err)
    finish_and_compare(recipe, tmp_path / "run", golden)


def test_distillation_killed_while_its_results_are_written_ends_in_the_same_bits(
        recipe, unbroken, place, tmp_path):
    golden, ended = unbroken
    shutil.copytree(place / "unbroken", tmp_path / "run")
    for name in ("predictions.json", "curve.png", "student.safetensors", "student.json",
                 "result.json"):
        (tmp_path / "run" / name).unlink()
    last = max(i for i, m in enumerate(ended.moments) if m.endswith(" last.pt"))
    moments = [m for m in ended.moments[last + 3:] if m.startswith(("half", "before replace"))]
    assert len(moments) == 9, moments
    for moment in moments:
        killed = run("distill", *recipe, "--out", tmp_path / "run", at=moment)
        assert killed.code == 137, (moment, killed.err)
    finish_and_compare(recipe, tmp_path / "run", golden)


def test_repeated_kills_before_a_checkpoint_is_whole_lose_nothing(recipe, unbroken, tmp_path):
    folder = tmp_path / "run"
    assert run("distill", *recipe, "--out", folder, at="step", count=12).code == 137
    for _ in range(6):
        assert run("distill", *recipe, "--out", folder, at="half last.pt").code == 137
    ended = finish_and_compare(recipe, folder, unbroken[0])
    assert "resumed at epoch 2, step 2" in ended.out


# --- distillation: signals ------------------------------------------------------------------------

@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment, count", [("step", 6), ("step", 9), ("step", 27),
                                           ("half metrics.jsonl", 2)])
def test_a_signal_saves_that_step_and_the_run_goes_on_to_the_same_bits(
        recipe, unbroken, tmp_path, number, code, moment, count):
    seldom = [1000 if before == "--checkpoint-seconds" else value for before, value in
              zip((None, *recipe), recipe, strict=False)]  # only the signal makes it save
    folder = tmp_path / "run"
    stopped = run("distill", *seldom, "--out", folder, at=moment, count=count, send=number)
    assert stopped.code == code and "goes on" in stopped.err
    ended = finish_and_compare(seldom, folder, unbroken[0])
    if (moment, count) == ("step", 6):
        assert "resumed at epoch 1, step 6" in ended.out


def test_a_finished_run_says_so_and_changes_nothing(recipe, unbroken, place, tmp_path):
    shutil.copytree(place / "unbroken", tmp_path / "run")
    before = contents(tmp_path / "run")
    ended = run("distill", *recipe, "--out", tmp_path / "run")
    assert ended.code == 0 and "is finished" in ended.out
    assert contents(tmp_path / "run") == before


# --- distillation: damaged checkpoints ------------------------------------------------------------

@pytest.fixture(scope="module")
def half_run(place, recipe):
    """A run killed in its second epoch, with two whole checkpoints."""
    assert run("distill", *recipe, "--out", place / "half_run", at="step", count=14).code == 137
    assert (place / "half_run" / "last.pt").exists()
    assert (place / "half_run" / "previous.pt").exists()
    return place / "half_run"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_says_so_and_ends_in_the_same_bits(
        recipe, unbroken, half_run, tmp_path, damage):
    shutil.copytree(half_run, tmp_path / "run")
    last = tmp_path / "run" / "last.pt"
    data = last.read_bytes()
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes({"truncated": data[:-100], "empty": b"",
                          "flipped": flip_bit(data, random.Random(3))}[damage])
    ended = finish_and_compare(recipe, tmp_path / "run", unbroken[0])
    assert "resumed at epoch 2, step 3" in ended.out  # previous.pt
    assert ("last.pt is damaged" in ended.out) == (damage != "missing")


@pytest.mark.parametrize("moment", ["half checkpoints.sha256", "half last.pt",
                                    "before replace last.pt", "after replace last.pt"])
def test_a_kill_after_falling_back_keeps_the_whole_checkpoint(recipe, unbroken, half_run, tmp_path,
                                                              moment):
    shutil.copytree(half_run, tmp_path / "run")
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(flip_bit(last.read_bytes(), random.Random(4)))
    assert run("distill", *recipe, "--out", tmp_path / "run", at=moment).code == 137
    finish_and_compare(recipe, tmp_path / "run", unbroken[0])


def test_every_flip_and_truncation_of_a_checkpoint_is_refused(half_run, tmp_path, tries=200):
    shutil.copytree(half_run, tmp_path / "run")
    args = type("Flags", (), {"checkpoint_seconds": 60.0})()
    folder = Run(tmp_path / "run", args, {}, "student", "distill")
    whole = folder.load_checkpoint()["step"]
    last, chance = tmp_path / "run" / "last.pt", random.Random(5)
    data = last.read_bytes()
    for trial in range(tries):
        cut = data[:chance.randrange(len(data))]
        last.write_bytes(flip_bit(data, chance) if trial % 2 else cut)
        assert folder.load_checkpoint()["step"] == whole - 1


def test_two_damaged_checkpoints_are_damage(recipe, half_run, tmp_path):
    shutil.copytree(half_run, tmp_path / "run")
    for name in ("last.pt", "previous.pt"):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:1000])
    ended = run("distill", *recipe, "--out", tmp_path / "run")
    assert ended.code == 5 and "no checkpoint is whole" in ended.err


def test_a_flipped_bit_in_finished_weights_is_damage(recipe, unbroken, place, tmp_path):
    shutil.copytree(place / "unbroken", tmp_path / "run")
    weights = tmp_path / "run" / "student.safetensors"
    weights.write_bytes(flip_bit(weights.read_bytes(), random.Random(6)))
    ended = run("distill", *recipe, "--out", tmp_path / "run")
    assert ended.code == 5 and "student.safetensors" in ended.err
    (tmp_path / "run" / "result.json").unlink()  # what the message says to do
    finish_and_compare(recipe, tmp_path / "run", unbroken[0])


# --- distillation: other faults -------------------------------------------------------------------

@pytest.mark.parametrize("flag, value, shown", [
    ("--seed", 1, "seed: 0 -> 1"), ("--temperature", 4, "temperature: 10.0 -> 4.0"),
    ("--student", "cnn_w8", "student: cnn_w4 -> cnn_w8"), ("--epochs", 4, "epochs: 3 -> 4"),
    ("--source", "real", "source_images: 140 -> 1530")])
def test_changed_settings_are_refused_with_the_difference(recipe, half_run, tmp_path, flag, value,
                                                          shown):
    shutil.copytree(half_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    ended = run("distill", *recipe, "--out", tmp_path / "run", flag, value)
    assert ended.code == 2 and shown in ended.err and len(ended.err.splitlines()) <= 6
    after = contents(tmp_path / "run")
    assert after.keys() | {".lock"} == before.keys() | {".lock"}  # the killed one's lock is gone
    assert all(after[name] == before[name] for name in after)


def test_a_changed_image_set_is_refused(recipe, noise_set, half_run, tmp_path):
    shutil.copytree(half_run, tmp_path / "run")
    inputs = tmp_path / "run" / "inputs.json"
    inputs.write_text(inputs.read_text().replace('"source_sha256": "', '"source_sha256": "0'))
    ended = run("distill", *recipe, "--out", tmp_path / "run")
    assert ended.code == 2 and "source_sha256" in ended.err


def test_two_runs_in_one_folder_are_refused_and_the_first_is_unharmed(recipe, unbroken, tmp_path):
    first = start("distill", *recipe, "--out", tmp_path / "run", at="step", count=5,
                  send=signal.SIGSTOP)
    first.wait_until_stopped()
    second = run("distill", *recipe, "--out", tmp_path / "run")
    assert second.code == 3
    assert f"pid {first.pid}" in second.err and socket.gethostname() in second.err
    first.signal(signal.SIGCONT)
    assert first.wait().code == 0
    assert outcome(tmp_path / "run") == unbroken[0]


@pytest.mark.parametrize("checkpoint_seconds", [1e-6, 1000])
@pytest.mark.parametrize("rate", [1e12, 1e30])
def test_divergence_ends_with_4_and_no_weights_file_holds_nan(recipe, tmp_path, rate,
                                                              checkpoint_seconds):
    folder = tmp_path / "run"
    ended = run("distill", *recipe, "--out", folder, "--learning-rate", f"{rate:.0f}"
                if rate < 1e15 else 1e15, "--checkpoint-seconds", checkpoint_seconds,
                "--weight-decay", 1)
    assert ended.code == 4 and "--learning-rate" in ended.err, ended.err
    assert len(ended.err.splitlines()) <= 6
    assert not list(folder.glob("*.safetensors")) and not (folder / "result.json").exists()
    for path in folder.glob("*.pt"):
        state = files.load_pt(path)
        for name, value in state.get("model", state.get("state_dict")).items():
            assert torch.isfinite(value).all(), (path.name, name)


@pytest.mark.parametrize("file, times", [("last.pt", 5), ("config.yaml", 1), ("log.txt", 1),
                                         ("student.safetensors", 1)])
def test_a_full_disk_in_distillation_is_said_and_the_run_completes(
        recipe, unbroken, place, half_run, tmp_path, file, times):
    start_from = place / "unbroken" if file == "student.safetensors" else half_run
    shutil.copytree(start_from, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink(missing_ok=True)
    if file == "log.txt":
        (tmp_path / "run" / "log.txt").write_text("x" * 99_000 + "\n")
    limit = (tmp_path / "run" / file).stat().st_size - 1
    for _ in range(times):  # a user tries again before making space
        ended = run("distill", *recipe, "--out", tmp_path / "run", file_limit_bytes=limit)
        assert ended.code == 6 and "no space left while writing" in ended.err, ended.err
        assert len(ended.err.splitlines()) <= 6 and "Traceback" not in ended.err
    finish_and_compare(recipe, tmp_path / "run", unbroken[0])


def test_a_killed_or_failed_unpacking_leaves_nothing_in_the_cache(recipe, noise_set, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run"
    command = (*recipe, "--cache", cache, "--out", out)
    name = files.sha256_file(noise_set / "index.csv")[:24]
    for moment in (f"before replace {name}.u8", f"half {name}.json"):
        assert run("distill", *command, at=moment).code == 137
    assert run("distill", *command, at="step").code == 137
    assert sorted(contents(cache)) == [f"{name}.json", f"{name}.u8"]
    damaged = tmp_path / "set"
    shutil.copytree(noise_set, damaged)
    image = damaged / "images" / "0003" / "class_3_seed_0_num_2.png"
    image.write_bytes(image.read_bytes()[:-5])
    ended = run("distill", *command, "--source", damaged, "--cache", tmp_path / "other")
    assert ended.code == 5 and image.name in ended.err and "--repair" in ended.err
    assert contents(tmp_path / "other") == {}
    limited = run("distill", *command, "--cache", tmp_path / "third", file_limit_bytes=5000)
    assert limited.code == 6 and contents(tmp_path / "third") == {}, limited.err


# --- the other trainings --------------------------------------------------------------------------

@pytest.mark.parametrize("moment, count", [("before replace last.pt", 7), ("half last.pt", 3),
                                           ("half samples_0000010.png", 1),
                                           ("half dit.json", 1)])
def test_train_generator_after_a_kill_ends_in_the_same_bits(place, tmp_path, moment, count):
    golden = place / "generator"
    if not golden.exists():
        assert run("train_generator", *GENERATOR, "--out", golden).code == 0
    folder = tmp_path / "run"
    assert run("train_generator", *GENERATOR, "--out", folder, at=moment, count=count).code == 137
    ended = run("train_generator", *GENERATOR, "--out", folder)
    assert ended.code == 0 and "resumed at step" in ended.out
    assert outcome(folder) == outcome(golden) and leftovers(folder) == []
    for name in ("samples_0000005.png", "samples_0000012.png"):
        assert (folder / name).read_bytes() == (golden / name).read_bytes()


def test_train_generator_that_diverges_writes_no_nan(tmp_path):
    ended = run("train_generator", *GENERATOR, "--out", tmp_path / "run", "--learning-rate", 1e14,
                "--weight-decay", 1)
    assert ended.code == 4 and "--learning-rate" in ended.err, ended.err
    assert not list((tmp_path / "run").glob("*.safetensors"))
    for path in (tmp_path / "run").glob("*.pt"):
        state = files.load_pt(path)
        assert all(torch.isfinite(v).all() for v in [*state["model"].values(), *state["average"]])


def test_train_teacher_after_a_kill_ends_in_the_same_bits(teacher, tmp_path):
    settings = re.sub(r" --out .*", "", result(teacher)["command"]).split()[3:]
    folder = tmp_path / "run"
    killed = run("train_teacher", *settings, "--out", folder, "--checkpoint-seconds", 1e-6,
                 at="step", count=31)
    assert killed.code == 137
    ended = run("train_teacher", *settings, "--out", folder)
    assert ended.code == 0 and "resumed at epoch 2" in ended.out
    assert outcome(folder) == outcome(teacher)


def test_the_children_were_of_this_checkout():
    assert processes.run("evaluate", "--help").out.startswith("usage: python -m dm_kd.evaluate")
