"""Train a teacher, or a student alone, on a task's real images: save/models/<name>/.

    python -m dm_kd.train_teacher --task digits --model cnn_w32 --out save/models/digits_cnn_w32

Cross-entropy with labels. The same command resumes where it stopped, to the same bits.
"""

import argparse
import sys
from pathlib import Path

from dm_kd import augment, data, engine, models, objectives, run
from dm_kd.tasks import get_task


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("train_teacher", __doc__)
    parser.usage = "python -m dm_kd.train_teacher --task NAME --model NAME --out RUN [flags]"
    run.add_data_arguments(parser)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME",
        help="such as wrn_40_2 (MODELS in models.py has all), torchvision:NAME or timm:NAME")
    add("--images-per-class", type=run.positive_int, metavar="N",
        help="train on N images of each class (default: all)")
    add("--subset-seed", type=run.nonnegative_int, metavar="S",
        help="draw them with this seed (default: the first)")
    add("--out", type=Path, required=True, metavar="RUN", help="such as save/models/NAME")
    engine.add_arguments(parser)
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    task = get_task(args.task, args.data, args)
    if args.dry_run:
        engine.dry_run(args, args.model, task, "real images")
        return
    device, model = engine.prepare(args, args.model, task)
    images = data.load_source(argparse.Namespace(**vars(args), source="real"), task)
    val = data.load_validation(task, args)
    source = data.start_source(images, augment.make_view(task, args, True), args, device)
    card = {**models.card(args.model, task), "fold": args.fold, "val": args.val, "seed": args.seed}
    inputs = {"source_images": len(images.labels), "source_sha256": images.sha256}
    notes = [f"{args.model}, {models.parameter_count(model):,} parameters, on "
             f"{len(images.labels)} real images of {task.name}, {device}, amp {args.amp}",
             *images.notes, *(val.notes if val else ())]
    with run.Run(args.out, args, inputs, "model") as folder:
        engine.fit(folder, args, source.view, model, None, source, objectives.cross_entropy,
                   val, device, card, notes)


if __name__ == "__main__":
    sys.exit(main())
