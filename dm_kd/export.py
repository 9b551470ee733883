"""Export a trained student or teacher: model.safetensors with its card model.json, and ONNX.

    python -m dm_kd.export --run save/student_model/digits --out digits_student [--onnx]

The folder is a teacher for `distill` and a model for `evaluate`. The ONNX network takes any number
of images in [0, 1]; it standardises them itself.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import models, run
from dm_kd.tasks import Task


class Standardised(nn.Module):
    """A classifier of images in [0, 1]."""

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("export", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER",
                        help="a finished run of distill or train_teacher")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="gets model.safetensors, model.json and, with --onnx, model.onnx")
    parser.add_argument("--onnx", action="store_true",
                        help="write ONNX too (needs the packages onnx and onnxscript)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        print(f"would export {args.run} to {args.out}")
        return
    name, state, card = models.read_run(args.run)
    digest = run.write_with_card(args.out, "model", state, card)
    print(f"{args.out / 'model.safetensors'}: {name}, sha256 {digest[:16]}")
    if args.onnx:
        task = Task(card["task"], tuple(card["class_names"]), card["resolution"],
                    len(card["mean"]), card["mean"], card["std"])
        model, _ = models.load_frozen(str(args.run), task)
        network = Standardised(model, card["mean"], card["std"]).eval()
        images = torch.rand(2, task.channels, task.resolution, task.resolution)
        program = torch.onnx.export(
            network, (images,), dynamo=True, input_names=["images"], output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, verbose=False)
        program.save(args.out / "model.onnx")
        print(f"{args.out / 'model.onnx'}: images in [0, 1], [batch, channels, height, width], to "
              "logits")


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
