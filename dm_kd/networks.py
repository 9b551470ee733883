"""Networks for small images (8 to 32 pixels a side, 1 or 3 channels), written from their papers.

Each class takes its sizes, then num_classes and channels; models.MODELS gives the members their
names. Input [B, channels, H, W], standardised; output logits [B, num_classes]. Parameters have the
names of the public checkpoints of each family, so that their files load.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps H and W at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def init_he(model: nn.Module) -> None:
    """Initialise convolutions: He-normal by fan-out, bias 0 (He et al. 2015, arXiv 1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# --- small CNN for 8x8 images ---------------------------------------------------------------------

class SmallCNN(nn.Module):
    """Six 3x3 convolutions with BN: three of `width` channels, three of twice as many at half the
    resolution; global average pooling; one linear layer."""

    def __init__(self, width: int, num_classes: int, channels: int):
        super().__init__()
        widths = [channels, width, width, width, 2 * width, 2 * width, 2 * width]
        layers = []
        for i in range(6):
            layers += [conv(widths[i], widths[i + 1], 3, stride=2 if i == 3 else 1),
                       nn.BatchNorm2d(widths[i + 1]), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # [B, 2 width, H/2, W/2]
        return self.fc(x.mean((2, 3)))


# --- wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146) ------------------------

class WideBlock(nn.Module):
    """Pre-activation block. A 1x1 shortcut takes the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-widen: (depth - 4) / 6 blocks a stage, widths 16k, 32k, 64k, strides 1, 2, 2."""

    def __init__(self, depth: int, widen: int, num_classes: int, channels: int):
        super().__init__()
        self.conv1 = conv(channels, 16, 3)
        inputs = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen), 1):
            blocks = []
            for i in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, width, 2 if i == 0 and stage > 1 else 1))
                inputs = width
            # The public keys are block1.layer.0.conv1.weight and so on.
            layer = OrderedDict(layer=nn.Sequential(*blocks))
            setattr(self, f"block{stage}", nn.Sequential(layer))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)
        init_he(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))  # [B, 64 widen, H/4, W/4]
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


# --- ResNets (He et al. 2016, arXiv 1512.03385) ---------------------------------------------------

class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; as a bottleneck 1x1, 3x3 and 1x1 to four times the width, where the
    3x3 has the stride. `skip` is the shortcut's name in the public checkpoints."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, skip: str):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        self.conv1 = conv(inputs, width, 1) if bottleneck else conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1) if bottleneck else None
        self.bn3 = nn.BatchNorm2d(outputs) if bottleneck else None
        self.skip = skip
        setattr(self, skip, None if stride == 1 and inputs == outputs else nn.Sequential(
            conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None:
            out = self.bn3(self.conv3(F.relu(out)))
        skip = getattr(self, self.skip)
        return F.relu(out + (x if skip is None else skip(x)))


class ResNet(nn.Module):
    """ResNet with a 3x3 stem of stride 1, for small images.

    blocks: how many in each stage; widths: of the stem and of each stage; all stages but the first
    have stride 2. Section 4.2's ResNet-(6n + 2) has three stages of n blocks.

    The ImageNet networks (stages of 64, 128, 256, 512) are public with other keys (`skip` and
    `head`: DAFL's and Fast-Datafree's are "shortcut" and "linear"), without the ReLU after the stem
    (DM-KD's), and with the stem's max-pool (`pool`), which nothing in a file tells.
    """

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, ...], num_classes: int,
                 channels: int, *, bottleneck: bool = False, skip: str = "downsample",
                 head: str = "fc", stem_relu: bool = True, pool: bool = False):
        super().__init__()
        self.stages, self.stem_relu, self.pool, self.head = len(blocks), stem_relu, pool, head
        self.conv1 = conv(channels, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths[1:], strict=True), 1):
            layers = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                layers.append(ResidualBlock(inputs, width, stride, bottleneck, skip))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        setattr(self, head, nn.Linear(inputs, num_classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))  # [B, widths[0], H, W]
        if self.stem_relu:
            x = F.relu(x)
        if self.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)  # halves H and W but for the first
        return getattr(self, self.head)(x.mean((2, 3)))


# --- VGG (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1) for small images -------------------

class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with bias, BN and ReLU, widths 64 to 512; one linear layer.

    convs: how many in each block. The public 32x32 form (RepDistiller, Fast-Datafree) pools after
    the first three blocks.
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
        x = self.block4(self.block3(x))  # [B, 512, H/8, W/8]
        return self.classifier(x.mean((2, 3)))


# --- LeNet-5 (LeCun et al. 1998) as DAFL and Fast-Datafree distil it ------------------------------

class LeNet5(nn.Module):
    """Three 5x5 convolutions with ReLU, 2x2 max-pooling after the first two, two linear layers, of
    these widths. Images of fewer than 32 pixels are padded with zeros. norm: a batch norm after
    each convolution; ours, for methods that invert a teacher by its batch statistics."""

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
        missing = max(0, 32 - x.shape[2])
        x = F.pad(x, [missing // 2, missing - missing // 2] * 2)
        x = self.features(x)  # [B, c, 1, 1] for 32 pixels, larger for more
        return self.fc(x.mean((2, 3)))
