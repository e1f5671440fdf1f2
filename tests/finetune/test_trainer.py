"""One step of training: nothing waits for the device, and two processes make the step of one."""

import pytest
import torch
from finetune_data import NET
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import in_two_processes, needs_gloo

import dmnn_convert.nn.controller
from dmnn_convert import GateConfig, dynamize
from dmnn_convert.categories import Categories
from dmnn_convert.data import Batch
from dmnn_convert.distributed import Processes
from dmnn_convert.finetune import Recipe
from dmnn_convert.finetune.log import measured
from dmnn_convert.finetune.network import Networks
from dmnn_convert.finetune.schedule import GatePhase
from dmnn_convert.finetune.trainer import Trainer
from dmnn_convert.io import zoo
from dmnn_convert.nn import controllers

CPU = torch.device("cpu")
PHASE = GatePhase(False, 0.3, 1.0)
RECIPE = Recipe(distill=0.25, smoothing=0.1, rates="network", category=1e4)


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 8, 8, generator=generator)
    return Batch(images, torch.arange(8) % 3, ())


def networks():
    """A network whose gates differ from image to image."""
    torch.manual_seed(0)
    source = zoo.build(NET)
    gate = GateConfig(init_rate=0.5)
    model, table = dynamize(source, 2, gate=gate, input_size=(3, 8, 8), num_categories=2)
    for controller in controllers(model):
        torch.nn.init.normal_(controller.w3.weight, std=5.0)
    return Networks(model, table, source, Categories((0, 1, 1), ("a", "b")), source)


def trainer_of(recipe, nets, processes):
    return Trainer(recipe, nets, 3, [None] * 10, None, processes)


# --- waiting ----------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Notes operations that give the host a value, for which it has to wait."""

    READING = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"})

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().partition(".")[0] in self.READING:
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device():
    changes = {"ema": 0.9, "mixup": 0.2, "cutmix": 0.5, "clip_grad": 1.0}
    trainer = trainer_of(RECIPE.with_changes(changes), networks(), Processes(0, 1, CPU))
    trainer.model.train()
    trainer.watched.every = 10
    with Reads() as reads:
        for trainer.step in range(1, 4):
            trainer._train_step(batch(), PHASE)
    assert reads.seen == []
    assert trainer.averages.means()["loss"] > 0
    with Reads() as reads:
        trainer.watched.check()
    assert reads.seen != []


# --- two processes ----------------------------------------------------------------------------


def without_noise(logits, generator=None):
    return torch.zeros_like(logits, dtype=torch.float32)


def step_of(nets, processes):
    """Return the loss, gradients and averages of a step on a process's share of the batch."""
    trainer = trainer_of(RECIPE, nets, processes)
    for module in trainer.model.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    mine = slice(processes.rank, None, processes.count)
    images, targets = (part[mine] for part in batch()[:2])
    losses, logits, paths = trainer._forward(images, targets, PHASE)
    losses.total.backward()
    trainer.averages.add(measured(losses, logits, targets, paths), len(images))
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    return gradients, trainer.averages.means_everywhere(processes)


def on_one_of_two(rank, folder):
    dmnn_convert.nn.controller.gumbel_noise = without_noise
    nets = networks()
    torch.save(step_of(nets, Processes(rank, 2, CPU)), f"{folder}/{rank}.pt")


@needs_gloo
@pytest.mark.slow
def test_two_processes_make_the_step_of_one(tmp_path, monkeypatch):
    in_two_processes(on_one_of_two, tmp_path)
    monkeypatch.setattr(dmnn_convert.nn.controller, "gumbel_noise", without_noise)
    gradients, means = step_of(networks(), Processes(0, 1, CPU))
    assert 0.1 < means["rate"] < 0.9
    parts = ("classification", "distillation", "resource", "category")
    assert min(means[part] for part in parts) > 0
    for rank in (0, 1):
        theirs, averages = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert averages == pytest.approx(means, rel=1e-4)
        assert theirs.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(g.abs().max() > 1e-3 for name, g in gradients.items() if ".controller." in name)
