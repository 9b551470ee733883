"""Hand out a trained student or teacher: safetensors with a card, and ONNX if asked for.

    python -m dm_kd.export --run save/student_model/digits --out digits_student [--onnx]

Each file is read back and its logits compared with the run's before the command succeeds. The ONNX
network takes images in [0, 1] (its first step standardises them) and any batch size.
"""

import argparse
import sys
import types
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import files, models, run
from dm_kd.errors import DamagedError, UserError

TOLERANCE = 1e-4  # of ONNX's logits, relative to the largest
IMAGES = 4  # compared


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
        state = "" if args.run.exists() else " (not made yet)"
        print(f"would export {args.run}{state} to {args.out}{' with ONNX' if args.onnx else ''}")
        return
    if args.out.resolve() == args.run.resolve():
        raise UserError("--out is the run itself", folder=args.out, hint="another --out")
    if args.onnx:
        require_onnx()
    run.use_device(args)
    name, state, card = models.read_run(files.must_exist(args.run, "--run", "run folder"))
    try:
        side = card["resolution"]
        task = types.SimpleNamespace(name=card["task"], num_classes=card["num_classes"],
                                     channels=len(card["mean"]), resolution=side,
                                     class_names=tuple(card.get("class_names", ())))
    except (KeyError, TypeError) as error:
        raise DamagedError("the card of the run's weights is not whole", folder=args.run,
                           found=str(error)[:80]) from error
    model, _ = models.load_frozen(str(args.run), task)
    images = torch.rand(IMAGES, task.channels, side, side,
                        generator=torch.Generator().manual_seed(0))
    wrapped = Standardised(model, card["mean"], card["std"]).eval()
    with torch.inference_mode():
        expected = wrapped(images)
    digest = files.write_with_card(args.out, "model", state, card)
    check_safetensors(args.out, task, card, images, expected)
    count = f"{models.parameter_count(model):,} parameters"
    print(f"{args.out / 'model.safetensors'}: {name}, {count}, "
          f"sha256 {digest[:16]}; read back, same logits")
    if args.onnx:
        error = write_onnx(args.out / "model.onnx", wrapped, images, expected)
        print(f"{args.out / 'model.onnx'}: images in [0, 1], [batch, {task.channels}, {side}, "
              f"{side}] to logits; read back, {error:.1e} relative apart")


def check_safetensors(folder: Path, task: object, card: dict, images: Tensor,
                      expected: Tensor) -> None:
    """Read the exported weights back and compare the logits, bit for bit."""
    again, _ = models.load_frozen(str(folder), task)
    with torch.inference_mode():
        found = Standardised(again, card["mean"], card["std"]).eval()(images)
    if not torch.equal(found, expected):
        raise DamagedError("the exported weights give other logits", folder=folder)


def require_onnx() -> None:
    """Raises:
        UserError: a package is missing."""
    try:
        import onnx.reference  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError("--onnx needs the packages onnx and onnxscript", found=str(error)[:80],
                        hint="pip install onnx onnxscript") from error


def write_onnx(path: Path, model: nn.Module, images: Tensor, expected: Tensor) -> float:
    """Write ONNX with a free batch size; the relative error of its logits under ONNX's own
    reference implementation.

    Raises:
        DamagedError: other logits."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model, (images,), dynamo=True, input_names=["images"],
                                output_names=["logits"], dynamic_shapes={"images": {0: batch}},
                                verbose=False)
    data = program.model_proto.SerializeToString()
    files.durable_write(path, data)
    network = ReferenceEvaluator(onnx.load(path))
    found = torch.cat([torch.from_numpy(network.run(None, {"images": part.numpy()})[0].copy())
                       for part in (images[:1], images[1:])])  # two batch sizes
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < TOLERANCE:
        raise DamagedError("the ONNX network gives other logits", file=path,
                           found=f"{error:.1e} relative apart")
    return error


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
