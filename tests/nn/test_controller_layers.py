"""Controllers call their layers, so that whatever wraps, hooks or replaces these counts."""

import copy

import pytest
import torch
from quick import slow_unless
from small_nets import IMAGE, basic_net, images, inverted_net
from torch import nn
from torch.nn.utils import parametrize, prune

from dmnn_convert import GateConfig, dynamize, record_paths
from dmnn_convert.nn import controllers
from dmnn_convert.runtime import prepare


class Adapted(nn.Module):
    """A low-rank change of a linear layer, as of an adapter."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features) * 2)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) * 2)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def adapted(controller, name):
    setattr(controller, name, Adapted(getattr(controller, name)))
    layer = getattr(controller, name)
    weight = layer.base.weight + layer.up @ layer.down
    return weight, layer.base.bias


def pruned(controller, name):
    layer = getattr(controller, name)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer.weight_orig * layer.weight_mask, layer.bias


def parametrized(controller, name):
    layer = getattr(controller, name)
    weight = 2 * layer.weight
    parametrize.register_parametrization(layer, "weight", Doubled())
    return weight, layer.bias


def hooked(controller, name):
    layer = getattr(controller, name)
    layer.register_forward_hook(lambda module, args, y: -y)
    return -layer.weight, None if layer.bias is None else -layer.bias


CHANGES = {"adapted": adapted, "pruned": pruned, "parametrized": parametrized, "hooked": hooked}


def seasoned_model(spread=0.0, net=basic_net):
    model = dynamize(net(), input_size=IMAGE, gate=GateConfig(spread=spread)).model.eval()
    for controller in controllers(model):
        nn.init.normal_(controller.w1.weight)
        nn.init.normal_(controller.w3.weight)
        nn.init.normal_(controller.w3.bias)
    return model


def recorded(model, x):
    with torch.no_grad(), record_paths(model) as paths:
        y = model(x)
    return y, paths.gates, torch.cat([logits.flatten(1) for logits in paths.gate_logits], 1)


@pytest.mark.parametrize("spread", slow_unless(bool, [0.0, 1.0]))
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_layers_decide_as_plain_ones_with_their_weights(change, spread):
    model, x = seasoned_model(spread), images(6)
    plain = copy.deepcopy(model)
    before = recorded(model, x)[2]
    for controller, other in zip(controllers(model), controllers(plain), strict=True):
        for name in ("w1", "w3"):
            weight, bias = change(controller, name)
            layer = getattr(other, name)
            layer.weight.data.copy_(weight)
            if bias is not None:
                layer.bias.data.copy_(bias)
    wanted = recorded(plain, x)
    assert not torch.allclose(wanted[2], before, atol=0.1)
    for got, value in zip(recorded(model, x), wanted, strict=True):
        torch.testing.assert_close(got, value, atol=1e-4, rtol=1e-4)
    fast = prepare(model.eval(), x, autotune=False)
    with record_paths(fast.network) as paths:
        y = fast(x)
    assert torch.equal(paths.gates, wanted[1])
    torch.testing.assert_close(y, wanted[0], atol=1e-4, rtol=1e-4)


class Logits:
    """Keeps what one controller decided by."""

    def add(self, position, gates, category_logits, gate_logits):
        self.seen = gate_logits


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("how", ["half", "autocast"])
def test_changed_layers_compute_in_float32(change, how):
    controller = controllers(seasoned_model())[0]
    if how == "half":
        controller.to(torch.bfloat16)
    wide = copy.deepcopy(controller).float()
    x, seen = images(4, size=(8, 4, 4)), []
    for c in (controller, wide):
        torch.manual_seed(0)
        change(c, "w1")
        c.float() if c is wide else c.to(next(controller.parameters()).dtype)
        logits = Logits()
        amp = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")
        with c.chain.recording(logits), amp:
            c(x)
        seen.append(logits.seen)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(*seen, atol=0.02 if how == "half" else 0, rtol=0.02)
    seen[0].sum().backward()
    assert all(p.grad is not None for p in controller.w1.parameters())


@pytest.mark.filterwarnings("ignore")  # torch.ao is on its way out and says so
def test_dynamically_quantized_controllers_decide():
    model, x = seasoned_model(net=inverted_net), images(6)
    wanted = recorded(model, x)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(controllers(quantized)[0].w1, nn.Linear)
    got = recorded(quantized, x)
    assert not torch.equal(got[2], wanted[2])
    torch.testing.assert_close(got[2], wanted[2], atol=0.2, rtol=0.05)
    fast = prepare(quantized.eval(), x, autotune=False)
    with record_paths(fast.network) as paths:
        fast(x)
    assert torch.equal(paths.gates, got[1])
