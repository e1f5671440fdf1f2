"""The log of a run: averages, TensorBoard, warnings about the gates."""

from types import SimpleNamespace

import pytest
import torch

from dmnn_convert.distributed import Processes
from dmnn_convert.finetune.gate_warnings import broken, gate_warnings, left_out, warn
from dmnn_convert.finetune.log import Averages, Log, epoch_line, postfix
from dmnn_convert.finetune.trackers import trackers

ALONE = Processes(0, 1, torch.device("cpu"))

TARGET = 0.5


def values(loss, top1):
    return {"loss": torch.tensor(loss), "top1": torch.tensor(top1)}


def test_averages_are_over_images_and_go_on():
    averages = Averages()
    averages.add(values(1.0, 50.0), 2)
    averages = Averages.of_state(averages.state(ALONE), ALONE)
    averages.add(values(4.0, 80.0), 1)
    assert averages.means() == pytest.approx({"loss": 2.0, "top1": 60.0})
    assert averages.means_everywhere(ALONE) == averages.means()
    assert Averages().means() == {}


def evaluation(*rates, entropy=5.0, ratio=0.5):
    """Blocks of two sub-blocks that run for these shares of the images."""
    flat = [rate for pair in rates for rate in pair]
    return SimpleNamespace(
        blocks=tuple(f"b{i}" for i in range(len(rates))),
        sizes=(2,) * len(rates),
        sub_block_rates=tuple(flat),
        always_on=[r for r in flat if r == 1],
        never_on=[r for r in flat if r == 0],
        path_entropy=entropy,
        distinct_paths=40,
        flops_ratio=SimpleNamespace(mean=ratio),
    )


ON, OFF, MIXED, LIVE = (1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 0.4)


@pytest.mark.parametrize(
    ("rates", "entropy", "words"),
    [
        ((ON, OFF, MIXED), 0.0, "every sub-block is always on (3) or always off (3)"),
        (
            (ON, ON, ON, ON, OFF, MIXED, LIVE, LIVE, LIVE),
            5.0,
            "6 of 9 controllers do the same for every image "
            "(all on: 4, b0, b1, b2 …; all off: 1, b4; some on: 1, b5)",
        ),
        ((ON, LIVE, LIVE), 0.5, "40 paths of 0.50 bits"),
    ],
)
def test_gates_that_do_the_same_for_every_image_are_told(rates, entropy, words):
    found = gate_warnings(evaluation(*rates, entropy=entropy), TARGET, final=False)
    assert len(found) == 1
    assert found[0].startswith(words)
    assert "--spread" in found[0]


def test_up_to_half_of_the_controllers_may():
    assert gate_warnings(evaluation(ON, OFF, LIVE, LIVE), TARGET, final=True) == []
    assert gate_warnings(evaluation(ON, ON, ratio=1.0), 1.0, final=True) == []


def test_a_missed_target_is_told_at_the_end():
    missed = evaluation(LIVE, ratio=0.56)
    assert gate_warnings(missed, TARGET, final=False) == []
    assert "6.0 points above" in gate_warnings(missed, TARGET, final=True)[0]


def test_logits_that_are_no_numbers_are_told():
    (text,) = broken(SimpleNamespace(nan_images=3, images=15))
    assert text.startswith("3 of 15 test images have NaN or infinite logits")
    assert not list(broken(SimpleNamespace(nan_images=0, images=15)))


def test_images_that_were_left_out_are_told():
    (text,) = left_out(4, 1)
    assert "4 over all epochs of training, 1 in evaluation" in text
    assert not list(left_out(0, 0))


def test_a_warning_is_a_line_on_standard_error(capsys):
    warn("too hot")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "warning: too hot\n")


def test_tensorboard_forgets_epochs_that_come_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = Log(tmp_path, 0, trackers((), tmp_path, {}, 0))
    for epoch in (1, 2, 3):
        log.add({"epoch": epoch, "loss": 10.0 * epoch})
    again = Log(tmp_path, 1, trackers((), tmp_path, {}, 1))
    again.add({"epoch": 2, "loss": 2.0})
    assert [row["loss"] for row in again.rows] == ["10.0", 2.0]
    for each in (log, again):
        each.close(failed=False)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 10.0), (2, 2.0)]


def test_the_bar_tells_the_parts_of_the_loss_that_there_are():
    means = {"loss": 1.5, "classification": 1.0, "distillation": 2.0, "resource": 0.0, "top1": 80.0}
    assert postfix(means, 0.5) == "loss 1.500 class 1.000 distillation 2.000 top1 80.0"
    gates = {"rate": 0.6, "gated": 0.55, "network": 0.58, "resource": 0.1}
    text = postfix(means | gates, 0.5)
    assert "resource 0.100" in text
    assert text.endswith("rate 0.600 gated 0.550 network 0.580 target 0.500")


def test_averages_of_losses_that_are_gone_are_dropped():
    alone = Processes(0, 1, torch.device("cpu"))
    old = {"names": ["loss", "diversity", "top1"], "sums": torch.tensor([[4.0, 1.0, 6.0, 2.0]])}
    averages = Averages.of_state(old, alone)
    assert averages.means() == {"loss": 2.0, "top1": 3.0}
    averages.add({"loss": torch.tensor(5.0), "top1": torch.tensor(0.0)}, 2)
    assert averages.means() == {"loss": 3.5, "top1": 1.5}


def test_an_epoch_is_a_line_and_a_long_one_if_asked():
    row = {"epoch": 2, "lr": 0.05, "loss": 1.5, "top1": 80.0, "target": 0.5, "test_top1": 71.25}
    assert epoch_line(row, 9, verbose=False) == "epoch 2/9: loss 1.500 top1 80.0; test top1 71.25"
    gates = {"rate": 0.6, "gated": 0.55, "network": 0.58, "test_network": 0.5625}
    text = epoch_line(row | gates, 9, verbose=False)
    assert text.endswith("target 0.500; test top1 71.25 network 0.562")
    long = epoch_line(row | gates, 9, verbose=True)
    assert all(name in long for name in (row | gates) if name != "epoch")
