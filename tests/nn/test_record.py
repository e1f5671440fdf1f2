"""Recording shows the gates of exactly the forward passes inside, and changes none of them."""

import threading

import pytest
import torch
from small_nets import IMAGE, basic_net, bottleneck_net, images, random_gates
from torch import nn

from dmnn_convert import (
    DMNNLoss,
    FlopsTable,
    Paths,
    RecordingError,
    category_loss,
    dynamize,
    force_gates,
    gate_parameters,
    record_paths,
)
from dmnn_convert.flops.rows import FixedRow, Row, Trunk


@pytest.fixture
def converted():
    model, table = dynamize(bottleneck_net(), 2, split="exact", input_size=IMAGE)
    return model.eval(), table


def gated(model, gates):
    """A forward pass with these gates."""
    with torch.no_grad(), force_gates(model, gates):
        return model(images(len(gates)))


# --- what is recorded -------------------------------------------------------------------------


def test_gates_are_in_order_one_batch_after_another(converted):
    model, _ = converted
    batches = [random_gates(batch, 4, seed=batch) for batch in (3, 1, 4)]
    with record_paths(model) as paths:
        for gates in batches:
            gated(model, gates)
    assert paths.sizes == (2, 2)
    assert torch.equal(paths.gates, torch.cat(batches))


@pytest.mark.parametrize("training", [True, False])
def test_recording_changes_no_output(converted, training):
    model = converted[0].train(training)
    x = images(4)
    outputs = []
    for record in (False, True):
        torch.manual_seed(3)
        if record:
            with record_paths(model):
                outputs.append(model(x))
        else:
            outputs.append(model(x))
    assert type(outputs[1]) is torch.Tensor
    assert torch.equal(*outputs)


class Detector(nn.Module):
    """Runs a converted backbone twice among other things."""

    def __init__(self, backbone):
        super().__init__()
        self.parts = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(5, 2)})

    def forward(self, x):
        once = self.parts["backbone"](x)
        return {"scores": self.parts["head"](once + self.parts["backbone"](x.flip(-1)))}


@pytest.mark.parametrize(
    ("wrap", "passes"),
    [
        (lambda model: nn.Sequential(nn.Identity(), nn.Sequential(model)), 1),
        (Detector, 2),
    ],
)
def test_records_inside_bigger_models(converted, wrap, passes):
    model, table = converted
    wrapper, gates = wrap(model), random_gates(3, 4)
    with record_paths(wrapper) as paths, force_gates(wrapper, gates), torch.no_grad():
        wrapper(images(3))
    assert torch.equal(paths.gates, gates.repeat(passes, 1))
    assert paths.table == table


def test_only_what_runs_inside_is_recorded(converted):
    model, _ = converted
    gated(model, torch.ones(2, 4))
    with record_paths(model) as paths:
        gated(model, torch.zeros(3, 4))
    gated(model, torch.ones(2, 4))
    assert torch.equal(paths.gates, torch.zeros(3, 4))


def test_recording_stops_after_an_exception(converted):
    model, _ = converted
    with pytest.raises(KeyError), record_paths(model) as paths:
        raise KeyError
    gated(model, torch.ones(2, 4))
    with pytest.raises(RecordingError):
        _ = paths.gates


def test_the_inner_recorder_takes_over(converted):
    model, _ = converted
    with record_paths(model) as outer:
        gated(model, torch.ones(1, 4))
        with record_paths(model) as inner:
            gated(model, torch.zeros(2, 4))
        gated(model, torch.ones(3, 4))
    assert torch.equal(inner.gates, torch.zeros(2, 4))
    assert torch.equal(outer.gates, torch.ones(4, 4))


def test_two_models_are_recorded_at_once(converted):
    first, second = converted[0], dynamize(basic_net(), 3, input_size=IMAGE).model.eval()
    with record_paths(first) as paths, record_paths(second) as others:
        gated(first, torch.zeros(2, 4))
        gated(second, torch.ones(3, 6))
    assert torch.equal(paths.gates, torch.zeros(2, 4))
    assert torch.equal(others.gates, torch.ones(3, 6))


def test_each_thread_sees_its_own_gates_and_outputs(converted):
    model, _ = converted
    for controller in (model.b1.multi_path.controller, model.b2.multi_path.controller):
        nn.init.normal_(controller.w3.weight, std=20)
    given = [images(5, seed=7), images(5, seed=8)]

    def run(x):
        with torch.no_grad(), record_paths(model) as paths:
            return model(x), paths.gates

    alone = [run(x) for x in given]
    assert not torch.equal(alone[0][1], alone[1][1])
    barrier, together = threading.Barrier(2, timeout=20), {}

    def meet(*_):
        barrier.wait()

    for block in (model.b1, model.b2):  # each thread's blocks run among the other's
        block.register_forward_pre_hook(meet)
        block.register_forward_hook(meet)
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: run(given[i])})) for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        assert torch.equal(together[i][1], alone[i][1])
        torch.testing.assert_close(together[i][0], alone[i][0])


def test_category_logits_are_recorded_in_training_only():
    model, _ = dynamize(basic_net(), 2, input_size=IMAGE, num_categories=3)
    with record_paths(model.train()) as paths:
        model(images(4))
        model(images(2))
    assert [logits.shape for logits in paths.category_logits] == [(6, 3)] * 2
    with record_paths(model.eval()) as paths:
        model(images(4))
    with pytest.raises(RecordingError, match="num_categories"):
        _ = paths.category_logits


# --- what cannot be answered ------------------------------------------------------------------

QUESTIONS = {
    "gates": lambda paths: paths.gates,
    "execution_rates": Paths.execution_rates,
    "flops_ratio": Paths.flops_ratio,
    "network_flops_ratio": Paths.network_flops_ratio,
    "category_loss": lambda paths: category_loss(paths, torch.zeros(1), [1, 1]),
    "resource_loss": lambda paths: DMNNLoss(paths.table, target=0.5)(
        torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), paths
    ),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_without_a_forward_pass_there_is_no_answer(converted, ask):
    with record_paths(converted[0]) as paths:
        pass
    with pytest.raises(RecordingError, match="forward pass"):
        ask(paths)


def test_a_pass_that_missed_a_block_gives_no_answer(converted):
    model, _ = converted
    with record_paths(model) as paths, torch.no_grad():
        model.b1(model.stem(images(2)))
    with pytest.raises(RecordingError, match="did not reach every block"):
        _ = paths.gates


@pytest.mark.parametrize("ask", ["flops_ratio", "network_flops_ratio"])
def test_a_part_has_no_table_and_says_what_to_use(converted, ask):
    with record_paths(converted[0].b1) as paths, torch.no_grad():
        converted[0].b1(torch.zeros(1, 8, 8, 8))
    with pytest.raises(RecordingError, match=r"table\.flops\(paths\.gates\)"):
        getattr(paths, ask)()


# --- rates and ratios -------------------------------------------------------------------------


def by_hand(gates):
    rows = [("a", 0, 10), ("a", 1, 20), ("b", 0, 3), ("b", 1, 4), ("b", 2, 5)]
    table = FlopsTable(
        tuple(Row(block, n, macs, 1, (1,), (1,), 0) for block, n, macs in rows),
        (Trunk("b", 100, 1),),
        (FixedRow("stem", 58, 1),),
        dense_total=400,
        dense_params=1,
        input_size=(1,),
    )
    paths = Paths(table.sizes, table)
    for position, part in enumerate(gates.split(table.sizes, 1)):
        paths.add(position, part, None)
    return paths


GATES = torch.tensor([[1.0, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 1, 1, 1]])


def test_rates_and_ratios_by_hand():
    paths = by_hand(GATES)
    assert paths.execution_rates().tolist() == pytest.approx([4 / 8, 4 / 12])
    mean = (10 + (30 + 104) + 0 + (10 + 112)) / 4
    assert paths.flops_ratio().item() == pytest.approx(mean / 142)
    assert paths.network_flops_ratio().item() == pytest.approx((58 + mean) / 400)


def test_ratios_of_all_on_and_all_off():
    assert by_hand(torch.ones(2, 5)).flops_ratio() == 1
    assert by_hand(torch.zeros(2, 5)).flops_ratio() == 0
    assert by_hand(torch.zeros(2, 5)).network_flops_ratio().item() == pytest.approx(58 / 400)


@pytest.mark.parametrize("ask", ["execution_rates", "flops_ratio", "network_flops_ratio"])
def test_rates_and_ratios_pass_gradcheck(ask):
    gates = torch.rand(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: getattr(by_hand(g), ask)(), gates)


@pytest.mark.parametrize("ask", ["execution_rates", "flops_ratio", "network_flops_ratio"])
def test_gradients_reach_the_controllers(converted, ask):
    model, _ = converted
    with record_paths(model.train()) as paths:
        model(images(8))
    answer = getattr(paths, ask)()
    assert answer.dtype == torch.float32
    answer.sum().backward()
    for controller in (model.b1.multi_path.controller, model.b2.multi_path.controller):
        assert controller.w3.bias.grad.abs().sum() > 0
    assert all(p.grad is not None for p in gate_parameters(model))
    assert model.fc.weight.grad is None


def test_a_converted_models_ratios_are_its_tables(converted):
    model, table = converted
    gates = random_gates(6, 4)
    with record_paths(model) as paths:
        gated(model, gates)
    mean = table.flops(gates).mean().item()
    assert paths.flops_ratio().item() == pytest.approx(mean / table.gated)
    expected = (table.fixed + mean) / table.dense_total
    assert paths.network_flops_ratio().item() == pytest.approx(expected)
