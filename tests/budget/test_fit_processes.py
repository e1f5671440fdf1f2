"""Two processes find the thresholds and offsets that one finds with all their images."""

import json
from pathlib import Path

import pytest
import torch
from small_nets import NETS, images, seasoned
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_processes import in_two_processes, needs_gloo

from dmnn_convert import ArgumentError, Cascade, dynamize, freeze, set_budget, shard
from dmnn_convert.nn import controllers

COUNT = 61  # an odd number: one process has an image more


def everything():
    torch.manual_seed(0)
    model = dynamize(seasoned(NETS["basic"]()), 4, split="exact", input_size=(3, 8, 8)).model.eval()
    for controller in controllers(model):
        nn.init.normal_(controller.w1.weight)
        nn.init.normal_(controller.w3.weight)
    x = images(COUNT)
    with torch.no_grad():
        whole = freeze(model, 1.0)(x)
        labels = (whole - whole.mean(0)).argmax(1)
    return model, TensorDataset(x, labels)


def found(share):
    model, data = everything()
    loader = DataLoader(share(data), 7)
    fitted = Cascade.fit(model, loader, levels=(0.25, 0.5, 1.0), flops_ratio=0.7).fitted
    offset = set_budget(model, loader, 0.8)
    return [*fitted.thresholds, fitted.top1, fitted.flops_ratio, *fitted.shares, offset]


def on_one_of_two(rank, folder):
    model, data = everything()
    alone = DataLoader(data, 7) if rank else []  # one process has no image at all
    lopsided = set_budget(model, alone, 0.8)
    with pytest.raises(ArgumentError, match="no images"):
        set_budget(model, [], 0.8)
    Path(folder, f"{rank}.json").write_text(json.dumps([*found(shard), lopsided]))


@pytest.mark.slow
@needs_gloo
def test_two_processes_find_what_one_does(tmp_path):
    in_two_processes(on_one_of_two, tmp_path)
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1))
    assert first == second
    expected = found(lambda whole: whole)
    assert first == pytest.approx([*expected, expected[-1]], rel=1e-6)
