"""Networks for small images, written from their papers: 8 to 64 pixels a side, 1 or 3 channels.

Each is a class of (its sizes, num_classes, channels); models.MODELS names the members. Input
[B, channels, H, W], standardised; output [B, num_classes]. Key names are those of the public
checkpoints of each family, so that their files load.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

# --- small CNN for 8x8 images ---------------------------------------------------------------------

class SmallCNN(nn.Module):
    """Six 3x3 convolutions with BN for tiny images: three at full size, three at half.

    Widths w, w, w, 2w, 2w, 2w; global average pool; one linear layer.
    """

    def __init__(self, width: int, num_classes: int, channels: int):
        super().__init__()
        widths = [channels, width, width, width, 2 * width, 2 * width, 2 * width]
        layers = []
        for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if index == 3 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                       nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # [B, 2w, H/2, W/2]
        return self.fc(x.mean((2, 3)))  # [B, classes]


# --- wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146) ------------------------

class WideBlock(nn.Module):
    """Pre-activation block; the 1x1 shortcut, if any, sees the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = (None if inputs == outputs else
                             nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(*[
            WideBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1)
            for i in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-widen: (depth - 4) / 6 blocks per stage, widths 16k, 32k, 64k, strides 1, 2, 2."""

    def __init__(self, depth: int, widen: int, num_classes: int, channels: int):
        super().__init__()
        assert (depth - 4) % 6 == 0, depth
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(blocks, widths[0], widths[1], 1)
        self.block2 = WideStage(blocks, widths[1], widths[2], 2)
        self.block3 = WideStage(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        init_he(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))  # [B, 64k, H/4, W/4]
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


# --- CIFAR ResNets (He et al. 2016, arXiv 1512.03385, section 4.2) --------------------------------

def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block that changes the shape: 1x1 convolution and BN. Else None."""
    return None if stride == 1 and inputs == outputs else nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions. `skip` is the shortcut's key in the family's checkpoints."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, skip: str = "downsample"):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.skip = skip
        setattr(self, skip, projection(inputs, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        skip = getattr(self, self.skip)
        return F.relu(out + (x if skip is None else skip(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the width; the 3x3 has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, skip: str = "downsample"):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.skip = skip
        setattr(self, skip, projection(inputs, 4 * width, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        skip = getattr(self, self.skip)
        return F.relu(out + (x if skip is None else skip(x)))


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages; `widths` = stem and stages."""

    def __init__(self, depth: int, widths: tuple[int, ...], num_classes: int, channels: int):
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = [nn.Sequential(*[
            BasicBlock(widths[s] if i == 0 else widths[s + 1], widths[s + 1],
                       2 if i == 0 and s > 0 else 1) for i in range(blocks)]) for s in range(3)]
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(widths[3], num_classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # [B, w0, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [B, w3, H/4, W/4]
        return self.fc(x.mean((2, 3)))


# --- ResNet-18, -34 and -50 for small images ------------------------------------------------------

class ImageNetResNet(nn.Module):
    """The paper's ImageNet network with a 3x3 stem of stride 1 and no max-pool: stages of 64, 128,
    256 and 512, strides 1, 2, 2, 2.

    Two public kinds: DAFL's and Fast-Datafree's (keys `shortcut` and `linear`, a ReLU after the
    stem) and DM-KD's (keys `downsample` and `fc`, no ReLU there: another function). torchvision's
    ResNet with its stem replaced has DM-KD's keys and the ReLU; nothing in its file says so.
    """

    def __init__(self, block: type, blocks: tuple[int, ...], skip: str, num_classes: int,
                 channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
            layers = []
            for i in range(count):
                layers.append(block(inputs, width, 2 if i == 0 and stage > 1 else 1, skip))
                inputs = width * block.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.stem_relu = skip == "shortcut"
        self.head = "linear" if skip == "shortcut" else "fc"
        setattr(self, self.head, nn.Linear(inputs, num_classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))  # [B, 64, H, W]
        x = F.relu(x) if self.stem_relu else x
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [B, 512 e, H/8, W/8]
        return getattr(self, self.head)(x.mean((2, 3)))


# --- VGG (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1) for small images -------------------

class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with bias, BN and ReLU, widths 64 to 512; one linear layer.

    convs: how many in each block. The public 32x32 form (RepDistiller, Fast-Datafree) pools after
    the first three blocks, and after the fourth too if the images have 64 pixels.
    """

    def __init__(self, convs: tuple[int, ...], num_classes: int, channels: int):
        super().__init__()
        inputs = channels
        for index, (width, count) in enumerate(zip((64, 128, 256, 512, 512), convs, strict=True)):
            layers = []
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width),
                           nn.ReLU(inplace=True)]
                inputs = width
            setattr(self, f"block{index}", nn.Sequential(*layers))
        self.classifier = nn.Linear(512, num_classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(block(x), 2)
        x = self.block3(x)  # [B, 512, H/8, W/8]
        x = F.max_pool2d(x, 1 + x.shape[2] // 8)  # a window of 1 (nothing) below 64 pixels, 2 at 64
        return self.classifier(self.block4(x).mean((2, 3)))


# --- ShuffleNet V2 (Ma et al. 2018, arXiv 1807.11164, figure 3 c and d, table 5) ------------------

class ShuffleUnit(nn.Module):
    """Stride 1: half of the channels pass, half are convolved; then all are shuffled."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passed, x = x.chunk(2, 1)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(self.bn3(self.conv3(x)))
        return F.channel_shuffle(torch.cat([passed, x], 1), 2)


class ShuffleDownUnit(nn.Module):
    """Stride 2: both branches see all channels; conv1 and conv2 are the short branch."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = depthwise(inputs, 2), nn.BatchNorm2d(inputs)
        self.conv2, self.bn2 = nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        short = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        x = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        x = F.relu(self.bn5(self.conv5(x)))
        return F.channel_shuffle(torch.cat([short, x], 1), 2)


def depthwise(width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)


class ShuffleNetV2(nn.Module):
    """The 1x network in the form of RepDistiller's "ShuffleV2": its stem is a 1x1 convolution of
    stride 1 (the paper's is 3x3 of stride 2 with a max-pool); stages of 4, 8 and 4 units."""

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 24, 1, bias=False), nn.BatchNorm2d(24)
        inputs = 24
        for stage, (width, units) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
            setattr(self, f"layer{stage}", nn.Sequential(
                ShuffleDownUnit(inputs, width), *[ShuffleUnit(width) for _ in range(units - 1)]))
            inputs = width
        self.conv2, self.bn2 = nn.Conv2d(464, 1024, 1, bias=False), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # [B, 24, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [B, 464, H/8, W/8]
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


# --- LeNet-5 (LeCun et al. 1998) as DAFL and Fast-Datafree distil it ------------------------------

@fx.wrap  # frozen.prepare traces forward() once for all sizes: the choice is made at each call
def pad_to_32(x: Tensor) -> Tensor:
    """Zeros around images of fewer than 32 pixels; [B, C, H, W], square."""
    missing = max(0, 32 - x.shape[2])
    return F.pad(x, [missing // 2, missing - missing // 2] * 2)


class LeNet5(nn.Module):
    """Three 5x5 convolutions with ReLU, 2x2 max-pool after the first two, two linear layers.

    widths: of the convolutions and the hidden linear layer. Images of 32 pixels end as one
    position; of more, the positions are averaged. norm: with a batch norm after each convolution,
    ours: what inverts a teacher by its batch statistics needs some.
    """

    def __init__(self, widths: tuple[int, int, int, int], num_classes: int, channels: int,
                 norm: bool = False):
        super().__init__()
        a, b, c, hidden = widths
        layers = []
        for inputs, outputs in ((channels, a), (a, b), (b, c)):
            layers += [nn.Conv2d(inputs, outputs, 5), *([nn.BatchNorm2d(outputs)] if norm else []),
                       nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers[:-1])
        self.fc = nn.Sequential(nn.Linear(c, hidden), nn.ReLU(inplace=True),
                                nn.Linear(hidden, num_classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(pad_to_32(x))  # [B, c, 1, 1] for 32 pixels
        return self.fc(x.mean((2, 3)))


def init_he(model: nn.Module) -> None:
    """He-normal convolutions (fan-out) with bias 0, as the families' code bases do (He et al. 2015,
    arXiv 1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
