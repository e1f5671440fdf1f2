"""Methods besides forward that name layers which blocks take, or set their modes."""

import copy
import re

import pytest
import torch
from quick import slow_unless
from small_nets import IMAGE, Net, basic
from torch import nn

from dmnn_convert import dynamize, find_blocks, force_gates
from dmnn_convert.nn import conversion_of


class Frozen(Net):
    """Trains with a layer of its first block in evaluation."""

    def __init__(self):
        super().__init__(basic(8, 8), basic(8, 16))
        self.kept = [self.b1.branch[1]]

    def train(self, mode=True):
        super().train(mode)
        self.freeze()
        return self


class ByName(Frozen):
    def freeze(self):
        self.b1.branch[1].eval()


class ByPath(Frozen):
    def freeze(self):
        self.get_submodule("b1.branch.1").eval()


class ByTable(Frozen):
    def freeze(self):
        dict(self.named_modules())["b1.branch.1"].eval()


class ByObject(Frozen):
    def freeze(self):
        for module in self.kept:
            module.eval()


class Prints(Net):
    def __init__(self):
        super().__init__(basic(8, 8), basic(8, 16))

    def extra_repr(self):
        return f"hidden={self.b1.branch[0].out_channels}"


class Saves(Prints):
    extra_repr = nn.Module.extra_repr

    def state_dict(self, *args, **kwargs):
        held = super().state_dict(*args, **kwargs)
        held["hidden"] = torch.tensor(self.b1.branch[0].out_channels)
        return held


NETS = {
    ByName: r"train\(\) uses b1.branch \(test_own_methods.py:\d+\), which the block would take",
    ByPath: r"train\(\) uses b1.branch \(test_own_methods.py:\d+\), which the block would take",
    ByTable: r"train\(\) fails: 'b1.branch.1' \(test_own_methods.py:\d+\)",
    ByObject: r"train\(\) \(test_own_methods.py:\d+\) sets the mode of its batch norms apart",
    Prints: r"extra_repr\(\) uses b1.branch \(test_own_methods.py:\d+\)",
    Saves: r"state_dict\(\) uses b1.branch \(test_own_methods.py:\d+\)",
}


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("kind", slow_unless(lambda kind: kind in (ByName, ByObject), NETS))
def test_a_layer_that_a_method_needs_stays(kind, verify):
    source = kind().eval()
    if kind is ByTable:  # which block it misses is not to be seen
        with pytest.raises(Exception, match=NETS[kind]):
            dynamize(source, 2, split="exact", input_size=IMAGE, verify=verify)
        return
    model, table = dynamize(source, 2, split="exact", input_size=IMAGE, verify=verify)
    assert table.blocks == ("b2",)
    assert re.match(NETS[kind], conversion_of(model).left["b1"])
    both, images = (source, model), torch.randn(2, *IMAGE)
    for each in both:
        each.train()
        repr(copy.deepcopy(each.float())), each.state_dict()
    with force_gates(model, True):
        for each in both:
            each(images)
    norm, its = (each.b1.branch[1] for each in both)
    assert its.training == norm.training
    torch.testing.assert_close(its.running_mean, norm.running_mean)


class FreezesWeights(Frozen):
    def freeze(self):
        self.stem.weight.requires_grad_(False)


def test_a_trace_does_not_freeze_what_training_freezes():
    source = FreezesWeights().eval()
    source.stem.weight.requires_grad_(True)
    find_blocks(source, IMAGE)
    model = dynamize(source, 2, split="exact", input_size=IMAGE).model
    assert source.stem.weight.requires_grad and model.stem.weight.requires_grad
