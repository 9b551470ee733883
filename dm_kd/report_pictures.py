"""Sample images in `report`: real ones beside synthetic ones, and their nearest real neighbours."""

from pathlib import Path

from dm_kd import augment, image_files, image_set
from dm_kd.report_canvas import picture, shown, write_png
from dm_kd.report_runs import DAMAGE
from dm_kd.tasks import TASKS, load_real

SAMPLE_COLUMNS, SAMPLE_CLASSES, THUMBNAIL = 8, 20, 64


def open_made(trial: dict) -> image_set.ImageSet | None:
    """The complete image set that a trial learnt from, if it is still there."""
    source = Path(str(trial["config"].get("source", "real")))
    if not (source / "manifest.json").exists():
        return None
    images = image_set.open_set(source)
    return images if images.complete else None


def read(images: image_set.ImageSet, label: int, k: int):
    """uint8 [C, H, W]."""
    path = images.plan.path(label, k)
    return image_files.read_image((images.folder / path).read_bytes(), path,
                                  images.manifest["channels"])


def thumbnails(images: list):
    """uint8 [N, C, h, h]: small images as they are, others' centres."""
    import torch

    if all(image.shape == images[0].shape and image.shape[1] <= THUMBNAIL for image in images):
        return torch.stack(images)
    return augment.centre_crops(images, THUMBNAIL)


def draw_samples(rows: list[dict], path: Path) -> list[dict]:
    """A row per class (the first 20): real images, where they can be found, beside synthetic ones.
    Nothing where no labelled set of the task is left."""
    for trial in (t for row in rows for t in row["trials"]):
        try:
            images, task = open_made(trial), TASKS.get(trial["task"])
            if (images is None or task is None or not images.manifest["labels_known"]
                    or images.manifest["task"] != task.name):
                continue
            made = {c: thumbnails([read(images, c, k) for k in range(
                min(SAMPLE_COLUMNS, images.plan.images_per_class))])
                for c in images.plan.classes[:SAMPLE_CLASSES]}
            break
        except DAMAGE:  # perhaps the next
            continue
    else:
        return []
    real = real_images(trial, task, list(made))
    columns = [("real (training images)", real)] * bool(real) + [("synthetic", made)]
    write_png(sheet_figure(columns, [task.class_names[c] for c in made]), path)
    text = "Real training images (left) beside synthetic ones (right)." if real else \
        "Synthetic images, a row per class."
    return [{"html": picture(path.read_bytes(), text), "caption": text, "wide": True}]


def real_images(trial: dict, task, classes: list[int]) -> dict:
    """label -> a few training images [N, C, h, h]; {} where they cannot be found."""
    data = trial["config"].get("data")
    try:
        real = load_real(task, "train", trial["fold"], data=Path(data) if data else None)
        found = {}
        for c in classes:
            at = (real.labels == c).nonzero()[:, 0]
            at = at[::max(1, len(at) // SAMPLE_COLUMNS)][:SAMPLE_COLUMNS]
            found[c] = thumbnails(list(real.images[at]))
        return found
    except DAMAGE:  # the config may hold anything
        return {}


def sheet_figure(columns: list[tuple[str, dict]], names: list[str]):
    from matplotlib import pyplot

    rows = len(names)
    figure, places = pyplot.subplots(
        1, len(columns), squeeze=False,
        figsize=(3.8 * len(columns), 3.55 * rows / SAMPLE_COLUMNS + 0.4))
    for axis, (title, images) in zip(places[0], columns, strict=True):
        first = next(iter(images.values()))
        sheet = image_set.tile([list(v) for v in images.values()],
                               scale=max(1, 32 // first.shape[2]))
        axis.imshow(sheet.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=255)
        height = sheet.shape[1] / rows
        axis.set_yticks([height * (r + 0.5) for r in range(rows)],
                        [shown(name, 18) for name in names], fontsize=8)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.set_title(title, fontsize=10)
        axis.spines[:].set_visible(False)
    return figure
