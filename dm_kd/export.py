"""Export a trained student or teacher: model.safetensors with its card model.json, and ONNX.

    python -m dm_kd.export --run save/student_model/digits --out digits_student [--onnx]

The folder is a teacher for `distill` and a model for `evaluate`. The ONNX network takes any number
of images in [0, 1]; it standardises them itself.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from dm_kd import models, run


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("export", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER",
                        help="a finished run of distill or train_teacher")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="gets model.safetensors, model.json and, with --onnx, model.onnx")
    parser.add_argument("--onnx", action="store_true",
                        help="write ONNX too (needs the packages onnx and onnxscript)")
    return run.parse(parser, argv)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    name, state, card = models.read_run(args.run)
    digest = run.write_with_card(args.out, "model", state, card)
    print(f"{args.out / 'model.safetensors'}: {name}, sha256 {digest[:16]}")
    if args.onnx:
        task = argparse.Namespace(**card, channels=len(card["mean"]), large=False)
        model = models.build(name, task)
        model.load_state_dict(state)
        standardise = nn.BatchNorm2d(task.channels, eps=1e-12, affine=False)
        standardise.running_mean = torch.tensor(card["mean"])
        standardise.running_var = torch.tensor(card["std"]) ** 2
        images = torch.rand(2, task.channels, card["resolution"], card["resolution"])
        program = torch.onnx.export(
            nn.Sequential(standardise, model).eval(), (images,), dynamo=True, verbose=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},))
        program.save(args.out / "model.onnx")
        print(f"{args.out / 'model.onnx'}: images in [0, 1], [B, C, H, W], to logits")


if __name__ == "__main__":
    sys.exit(main())
