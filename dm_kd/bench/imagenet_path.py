"""The ImageNet path at its real sizes, on generated files: shapes, formats and memory.

    sh scripts/sweeps/imagenet_path.sh

Writes what a user brings (DiT-XL/2 as an original file and as a diffusers folder, a teacher under
save/models/ResNet18, an original-style list, a validation list, a folder per WordNet id) with
random weights and coloured squares, runs the real commands on it in a folder that looks like a
fresh checkout, each in a process of its own, and records what came out in imagenet_path.json.
Nothing in it is an accuracy.
"""

import argparse
import json
import multiprocessing
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from dm_kd import files, models, run
from dm_kd.errors import UserError
from dm_kd.generators import dit, dit_weights
from dm_kd.tasks import Task, get_task

DISK_BYTES = 7_000_000_000
DIT = {**dit_weights.PUBLISHED, "input_size": 32}  # DiT-XL/2 at 256 x 256
SD_VAE = {  # stabilityai/sd-vae-ft-mse, config.json
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 32,
    "layers_per_block": 2, "block_out_channels": (128, 256, 512, 512), "sample_size": 256,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
PAIR = "torchvision:resnet18"  # teacher and student
JUDGED = "torchvision:shufflenet_v2_x0_5"  # a small network for the thousand images
IMAGES, BATCH = 16, 8
FIRST_WNID, LAST_WNID = 1440764, 15075141  # tench and toilet tissue, as ImageNet's own

# Where things lie in a checkout.
ORIGINAL, PIPELINE = Path("DiT-XL-2-256x256.pt"), Path("DiT-XL-2-256")
TEACHER = Path("save/models/ResNet18/resnet18.pth")
LIST, VAL_LIST = Path("syn_dataset/s2_st100_16.txt"), Path("true_dataset/imagenet_val.txt")
WORDNET = Path("true_dataset/by_wordnet_id/val")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("bench.imagenet_path", __doc__)
    parser.add_argument("--out", type=Path, default=Path("save/bench"), metavar="DIR",
                        help="where imagenet_path.json is written (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("save"), metavar="DIR",
                        help="where a folder of 7 GB is made, and removed at the end (default: "
                             "%(default)s)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        print(f"would write 7 GB below {args.work}, run 5 commands on it, about 5 minutes, and "
              f"remove it; the record: {args.out / 'imagenet_path.json'}")
        return
    require_diffusers()
    files.check_free_space(args.work, DISK_BYTES, "the files")
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imagenet_path_", dir=args.work) as folder:
        record = measure(args, Path(folder).resolve())
    files.write_json(args.out / "imagenet_path.json", record)
    print(f"record: {args.out / 'imagenet_path.json'}")


def require_diffusers() -> None:
    """Raises:
        UserError: it is not installed."""
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise UserError("the diffusers folder and the VAE need diffusers",
                        hint="pip install diffusers") from error


def measure(args: argparse.Namespace, root: Path) -> dict:
    """Write the files below `root`, run the commands there; the record."""
    alone(write_generator, root, DIT, SD_VAE, args.seed)
    write_teacher(root, get_task("imagenet"), args.seed)
    write_images(root)
    device = ["--device", args.device, "--threads", str(args.threads or 2)]
    rows = []
    for name, argv in commands().items():
        rows.append({"name": name, **measured(root, name, [*argv, *device])})
        print("{name}: {seconds:.0f} s, {peak_rss_mb} MB".format(**rows[-1]), flush=True)
    return {
        "bench": "imagenet_path",
        "shows": "shapes, formats and memory: weights and images are random, so no picture and no "
                 "accuracy here means anything",
        "date": time.strftime("%Y-%m-%d"), "commit": run.commit(),
        "command": shlex.join(["python", "-m", "dm_kd.bench.imagenet_path", *sys.argv[1:]]),
        "versions": run.versions(), "hardware": run.hardware(run.use_device(args)),
        "parameters": parameters(), "synthesis": pictures(root), "distillation": students(root),
        "commands": rows}


def commands() -> dict[str, list[str]]:
    """name -> module and flags, from a checkout's folder."""
    made = ["synthesize", "--task", "imagenet", "--generator", "dit", "--guidance-scale", "2",
            "--steps", "2", "--images-per-class", "1", "--classes", "207,388", "--batch-size", "2",
            "--vae", f"{PIPELINE}/vae"]
    learnt = ["distill", "--task", "imagenet", "--teacher", str(TEACHER), "--student", PAIR,
              "--epochs", "1", "--no-label-check", "--amp", "none"]
    return {
        "synthesize, original file": [*made, "--weights", str(ORIGINAL), "--out",
                                      "syn_dataset/original"],
        "synthesize, diffusers folder": [*made, "--weights", str(PIPELINE), "--out",
                                         "syn_dataset/diffusers"],
        "distill, original-style list": [*learnt, "--source", str(LIST), "--batch-size", str(BATCH),
                                         "--out", "save/student_model/list"],
        "distill, the set just made": [*learnt, "--source", "syn_dataset/original", "--batch-size",
                                       "2", "--val", "none", "--out", "save/student_model/set"],
        "evaluate, folder per WordNet id": ["evaluate", "--task", "imagenet", "--model",
                                            f"{JUDGED}@none", "--data", str(WORDNET.parent)]}


# --- the files ------------------------------------------------------------------------------------

def write_generator(root: Path, sizes: dict, vae: dict, seed: int) -> None:
    """A DiT with random weights as an original file and as a diffusers folder with a VAE."""
    import diffusers

    torch.manual_seed(seed)
    network = dit.DiT(**sizes)
    for parameter in network.parameters():  # adaLN-Zero starts at zero: no block would count
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    torch.save(network.state_dict(), root / ORIGINAL)
    with torch.device("meta"):
        theirs = diffusers.DiTTransformer2DModel(
            num_attention_heads=sizes["heads"], num_layers=sizes["depth"],
            attention_head_dim=sizes["width"] // sizes["heads"], in_channels=sizes["channels"],
            out_channels=network.out_channels, sample_size=sizes["input_size"],
            patch_size=sizes["patch_size"], num_embeds_ada_norm=sizes["num_classes"])
    theirs.load_state_dict(dit_weights.to_diffusers(network.state_dict()), assign=True)
    theirs.save_pretrained(root / PIPELINE / "transformer")
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(root / PIPELINE / "scheduler")
    diffusers.AutoencoderKL(**vae).save_pretrained(root / PIPELINE / "vae")


def write_teacher(root: Path, task: Task, seed: int) -> None:
    """The published script's teacher: a bare state dict, the folder says what it is."""
    torch.manual_seed(seed)
    (root / TEACHER).parent.mkdir(parents=True)
    torch.save(models.build(PAIR, task).state_dict(), root / TEACHER)


def write_images(root: Path) -> None:
    """Squares in the colour of their class: the original's list and images, a validation list in
    the original's form (paths with spaces, label last), and a JPEG for each of a thousand WordNet
    ids."""
    draw = random.Random(0)
    labels = [0, 999, *draw.sample(range(1, 999), IMAGES - 2)]
    made = [f"class_{c}_seed_0_num_{i}.png" for i, c in enumerate(labels)]
    judged = [f"ILSVRC2012 val {i:08d}.JPEG" for i in range(1, IMAGES + 1)]
    for c, png, jpeg in zip(labels, made, judged, strict=True):
        square(root / "syn_dataset/s2_st100" / png, c, (256, 256))
        square(root / "true_dataset/val images" / jpeg, c, (500, 375))
    (root / LIST).write_text("".join(f"./syn_dataset/s2_st100/{name}\r\n" for name in made))
    (root / VAL_LIST).write_text("".join(
        f"true_dataset/val images/{name} {c}\n" for name, c in zip(judged, labels, strict=True)))
    others = sorted(draw.sample(range(FIRST_WNID + 1, LAST_WNID), 998))
    for c, number in enumerate([FIRST_WNID, *others, LAST_WNID]):
        square(root / WORDNET / f"n{number:08d}" / f"ILSVRC2012_val_{c + 1:08d}.JPEG", c, (80, 60))


def square(path: Path, label: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (label // 4, label * 37 % 256, label * 101 % 256)).save(path)


# --- running and looking --------------------------------------------------------------------------

def alone(function, *args: object) -> None:
    """In a process of its own, whose memory the commands' figures then do not hold: Linux counts
    what a process had when it started another one as the other's.

    Raises:
        UserError: it failed."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise UserError("the files could not be written", exit_code=process.exitcode,
                        hint="7 GB of disk and of memory")


def measured(root: Path, name: str, argv: list[str]) -> dict:
    """Run a command in `root`: {command, seconds, cpu_seconds, peak_rss_mb}.

    Raises:
        UserError: it did not end with 0; its last line is shown."""
    package = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}"
                                               f"{os.environ.get('PYTHONPATH', '')}"}
    words = ["-m", f"dm_kd.{argv[0]}", *argv[1:]]
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([sys.executable, *words], cwd=root, env=environment,
                                 stdout=output, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if child.returncode is None:
                child.kill()
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    if child.returncode:
        raise UserError(f"'{name}' ended with exit code {child.returncode}",
                        found=" | ".join(lines[-3:])[:300])
    return {"command": shlex.join(["python", *words]),
            "seconds": round(time.monotonic() - started, 3),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),  # what a busy machine hides
            "peak_rss_mb": round(usage.ru_maxrss / 1024)}  # KiB on Linux


def parameters() -> dict[str, int]:
    """Counts of the networks at these sizes."""
    import diffusers

    with torch.device("meta"):
        generator, decoder = dit.DiT(**DIT), diffusers.AutoencoderKL(**SD_VAE)
        student = models.build(PAIR, get_task("imagenet"))
        return {"DiT": models.parameter_count(generator), "VAE": models.parameter_count(decoder),
                PAIR: models.parameter_count(student)}


def pictures(root: Path) -> dict:
    """What both sets hold, and whether it is the same."""
    found = {}
    for name in ("original", "diffusers"):
        folder, found[name] = root / "syn_dataset" / name, []
        for path in sorted(folder.glob("images/*/*.png")):
            with Image.open(path) as image:
                found[name].append({
                    "file": path.name, "format": image.format, "mode": image.mode,
                    "size": list(image.size),
                    "grey_levels": sum(n > 0 for n in image.convert("L").histogram()),
                    "sha256": files.sha256_file(path)})
    same = found["original"] == found["diffusers"] and bool(found["original"])
    return {"images": found["original"], "same_files_from_both_layouts": same}


def students(root: Path) -> list[dict]:
    """Of each run what it saw and wrote."""
    rows = []
    for name in ("list", "set"):
        folder = root / "save/student_model" / name
        result = json.loads((folder / "result.json").read_text())
        rows.append({"source": name, "images_seen": result["images_seen"],
                     "val_images": result["val_images"], "seconds_of_training": result["seconds"],
                     "train_loss": run.read_metrics(folder)[-1]["train_loss"],
                     "student_bytes": (folder / "student.safetensors").stat().st_size})
    return rows


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
