"""Dynamic training by Lightning's Trainer."""

import warnings

import pytest
import torch
from small_nets import NETS, images
from torch.utils.data import DataLoader, TensorDataset

from dmnn_convert import (
    ArgumentError,
    DMNNLoss,
    GateSchedule,
    dynamize,
    parameter_groups,
    record_paths,
)
from dmnn_convert.nn import controllers

with warnings.catch_warnings():  # Lightning's own
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch")
    from dmnn_convert.integrations.lightning import DynamicTraining, GateScheduleCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own

SCHEDULE = GateSchedule(0.4, epochs=2, start=0.8, open_epochs=0.5, tau=2.0, tau_end=0.5)
CATEGORIES = [0, 0, 1, 1, 1]


def loader():
    return DataLoader(TensorDataset(images(32), torch.arange(32) % 5), 8)


class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        config = {"input_size": (3, 8, 8), "num_categories": 2}
        self.net, self.table = dynamize(NETS["basic"](), 2, **config)
        self.criterion = DMNNLoss(self.table, target=0.4, categories=CATEGORIES)
        self.seen = []

    def note(self, rates):
        taus = {controller.tau for controller in controllers(self.net)}
        self.seen.append((self.criterion.target, *taus, float(rates.min())))

    def configure_optimizers(self):
        return torch.optim.SGD(parameter_groups(self.net, weight_decay=1e-4), lr=0.01)


class Mixed(DynamicTraining, Base):
    def __init__(self):
        super().__init__()
        self.set_dynamic(self.criterion, SCHEDULE)

    def training_step(self, batch, index):
        loss = self.dynamic_loss(self.net, *batch, index)
        taus = {controller.tau for controller in controllers(self.net)}
        self.seen.append((self.criterion.target, *taus))
        return loss


class Own(Base):
    def training_step(self, batch, index):
        with record_paths(self.net) as paths:
            logits = self.net(batch[0])
        self.note(paths.execution_rates())
        return self.criterion(logits, batch[1], paths)


def fitted(module, **options):
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    before = [p.detach().clone() for p in module.parameters()]
    trainer.fit(module, loader())
    changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    return trainer, changed


def expected():
    return [SCHEDULE.at(step / 4) for step in range(8)]


def test_the_mixin_follows_the_schedule_and_logs_the_gates():
    module = Mixed()
    trainer, changed = fitted(module)
    assert sum(changed) > len(changed) * 0.9
    phases = expected()
    assert [s[:2] for s in module.seen] == [(p.target, p.tau) for p in phases]
    logged = trainer.callback_metrics
    assert float(logged["gates/target"]) == pytest.approx(phases[-1].target)
    assert float(logged["gates/category_loss"]) > 0
    assert 0 < float(logged["gates/flops_ratio"]) < 1.1
    assert float(logged["gates/rate"]) < 1


def test_the_callback_follows_the_schedule_in_a_module_of_ones_own():
    module = Own()
    _, changed = fitted(module, callbacks=[GateScheduleCallback(SCHEDULE)])
    assert sum(changed) > len(changed) * 0.9
    phases = expected()
    assert [s[:2] for s in module.seen] == [(p.target, p.tau) for p in phases]
    rates = [s[2] for s in module.seen]
    assert rates[:2] == [1.0, 1.0]  # open
    assert min(rates[2:]) < 1


def test_an_error_in_a_step_leaves_the_gates_to_their_controllers():
    class Fails(Own):
        def training_step(self, batch, index):
            raise ZeroDivisionError

    module = Fails()
    with pytest.raises(ZeroDivisionError):
        fitted(module, callbacks=[GateScheduleCallback(SCHEDULE)])
    assert controllers(module.net)[0].chain.forcing is None


def test_modules_that_lack_a_loss_are_told():
    class Lacks(Own):
        def __init__(self):
            super().__init__()
            del self.criterion

    with pytest.raises(ArgumentError, match="holds 0 losses"):
        fitted(Lacks(), callbacks=[GateScheduleCallback(SCHEDULE)])

    class Unset(DynamicTraining, Own):
        def training_step(self, batch, index):
            return self.dynamic_loss(self.net, *batch, index)

    with pytest.raises(ArgumentError, match="set_dynamic"):
        fitted(Unset())
