"""A frozen teacher made faster on CPUs without bfloat16 instructions: the same function, fewer
passes over memory.

    teacher = frozen.prepare(teacher, view.plain(images[:4]), args.amp)

Batch norms that follow a convolution are folded into its weights, the ReLU and the residual sum
are done while the product is still in cache, and weights are laid out once. Logits differ from the
plain module's in the last bits only (1e-6 relative; tests/test_bench.py). Every call is compared
with the plain module on an example before it is trusted.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
SUMS = (operator.add, operator.iadd, torch.add)


class PackedConv(nn.Module):
    """conv -> + other -> ReLU in one oneDNN call, weights in the layout of the first input."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias, self.relu, self.packed = conv.weight, conv.bias, False, None
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)

    def fold(self, bn: nn.BatchNorm2d) -> None:
        self.weight, self.bias = fuse_conv_bn_weights(
            self.weight, self.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x [B, C, H, W]; other like the output."""
        ops, relu = torch.ops.mkldnn, "relu" if self.relu else None
        if self.packed is None:
            weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
            self.packed = ops._reorder_convolution_weight(weight, *self.geometry, list(x.shape))
        if other is None:
            return ops._convolution_pointwise(x, self.packed, self.bias, *self.geometry,
                                              relu or "none", [], "")
        return ops._convolution_pointwise.binary(x, other, self.packed, self.bias, *self.geometry,
                                                 "add", None, relu, [], None)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Linear, PackedConv)) or super().is_leaf_module(module, name)


@torch.no_grad()
def prepare(teacher: nn.Module, example: Tensor, amp: str) -> nn.Module:
    """The frozen teacher to use in training: fused on CPUs in float32, else (and where fusing
    fails or changes a logit by more than 1e-4 of the largest) `teacher` itself.

    Args:
        teacher: in eval mode; its weights may not change afterwards.
        example: standardised images float32 [B, C, H, W].
        amp: "bf16" or "none".
    """
    if example.device.type != "cpu" or amp != "none":
        return teacher
    example = example.contiguous(memory_format=torch.channels_last)
    try:
        fused = fuse(teacher)
        logits, expected = fused(example), teacher(example)
    except Exception:  # not traceable, no oneDNN, other private signatures: each raises its own
        return teacher
    close = (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    return fused if close else teacher


def fuse(model: nn.Module) -> nn.Module:
    """The same function of float32 [B, C, H, W] images on the CPU, in eval mode and without
    gradients. Raises what tracing raises, and what a torch without oneDNN raises."""
    graph = _Tracer().trace(model)
    network = fx.GraphModule(model, graph)
    modules = dict(network.named_modules())
    for node in [n for n in graph.nodes if _is(n, modules, nn.Conv2d)]:
        if _packable(modules[node.target], node, graph):
            _fuse_one(network, node, modules)
    for node in [n for n in graph.nodes if _is_relu(n, modules)]:
        if _is(node.args[0], modules, nn.BatchNorm2d) and len(node.args[0].users) == 1:
            node.op, node.target, node.kwargs = "call_function", torch.relu_, {}
            node.args = node.args[:1]
    network.recompile()
    return network.eval().requires_grad_(False)


def _fuse_one(network: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Replace a convolution and what directly follows it: BN, sum, ReLU."""
    packed = PackedConv(modules[node.target])
    last, inputs = node, [node.args[0]]
    bn = following(last)
    if _is(bn, modules, nn.BatchNorm2d) and modules[bn.target].track_running_stats:
        last = bn
        packed.fold(modules[bn.target])
    then = following(last)
    if then is not None and then.op == "call_function" and then.target in SUMS:
        other = then.args[1] if then.args[0] is last else then.args[0]
        if isinstance(other, fx.Node) and other is not last and not then.kwargs:
            last, inputs = then, [*inputs, other]
    if _is_relu(following(last), modules):
        last, packed.relu = following(last), True
    name = node.target.replace(".", "_") + "_packed"
    network.add_submodule(name, packed)
    modules[name] = packed
    with network.graph.inserting_after(last):
        fused = network.graph.call_module(name, tuple(inputs))
    last.replace_all_uses_with(fused)
    while last is not node:  # from the end back to the convolution
        previous = last.args[1] if last.args[0] in inputs else last.args[0]
        network.graph.erase_node(last)
        last = previous
    network.graph.erase_node(node)


def following(node: fx.Node) -> fx.Node | None:
    """The one node that uses this one's output, or None if there are several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is(node: object, modules: dict[str, nn.Module], kind: type) -> bool:
    return (isinstance(node, fx.Node) and node.op == "call_module"
            and isinstance(modules[node.target], kind))


def _is_relu(node: object, modules: dict[str, nn.Module]) -> bool:
    return _is(node, modules, nn.ReLU) or (
        isinstance(node, fx.Node) and node.op in ("call_function", "call_method")
        and node.target in RELUS)


def _packable(conv: nn.Conv2d, node: fx.Node, graph: fx.Graph) -> bool:
    shared = sum(n.op == "call_module" and n.target == node.target for n in graph.nodes) > 1
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and not shared
