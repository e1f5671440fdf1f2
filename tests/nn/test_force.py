"""Gates decided from outside: all on, all off, at a rate, or as given."""

import copy
import threading

import pytest
import torch
from small_nets import IMAGE, basic_net, images, inverted_net, random_gates

from dmnn_convert import (
    ArgumentError,
    GateConfig,
    GateMismatchError,
    dynamize,
    force_gates,
    record_paths,
)


@pytest.fixture(scope="module")
def model():
    return dynamize(basic_net(), input_size=IMAGE).model.eval()


def recorded_gates(model, batch):
    with record_paths(model) as paths, torch.no_grad():
        model(images(batch))
    return paths.gates


@pytest.mark.parametrize(
    ("given", "value"), [(True, 1), (False, 0), (1.0, 1), (0.0, 0), (1, 1), (0, 0)]
)
@pytest.mark.parametrize("training", [True, False])
def test_forces_all_on_or_all_off(model, given, value, training):
    forced = copy.deepcopy(model).train(training)
    with force_gates(forced, given):
        assert torch.equal(recorded_gates(forced, 3), torch.full((3, 4), float(value)))


def test_forces_a_rate_from_a_seed(model):
    draws = []
    for seed in (1, 1, 2):
        with force_gates(model, 0.3, seed=seed):
            draws.append(recorded_gates(model, 1000))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].mean(0).tolist() == pytest.approx([0.3] * 4, abs=0.05)
    # The sub-blocks are drawn independently of each other.
    assert (draws[0].T.corrcoef() - torch.eye(4)).abs().max() < 0.12


def test_a_rate_is_drawn_anew_for_every_batch(model):
    with force_gates(model, 0.5):
        assert not torch.equal(recorded_gates(model, 50), recorded_gates(model, 50))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_forces_given_gates_in_order(model, dtype):
    given = random_gates(6, 4)
    with force_gates(model, given.to(dtype)):
        assert torch.equal(recorded_gates(model, 6), given)


def test_one_row_of_gates_is_for_all_images_alike(model):
    given = torch.tensor([1.0, 0, 0, 1])
    with force_gates(model, given):
        for batch in (1, 3, 4):
            assert torch.equal(recorded_gates(model, batch), given.expand(batch, -1))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (torch.ones(3), GateMismatchError, r"shape \(3,\).*\(B, 4\).*\(4,\)"),
        (torch.tensor(1.0), GateMismatchError, r"shape \(\).*\(B, 4\)"),
        (torch.full((4,), 0.5), GateMismatchError, "zeros and ones"),
        (torch.ones(2, 3), GateMismatchError, r"shape \(2, 3\).*\(B, 4\)"),
        (torch.ones(2, 2, 2), GateMismatchError, r"\(B, 4\)"),
        (torch.full((2, 4), 0.5), GateMismatchError, "zeros and ones"),
        (torch.full((2, 4), float("nan")), GateMismatchError, "zeros and ones"),
        (1.5, ArgumentError, "gates=1.5"),
        (-0.1, ArgumentError, "gates=-0.1"),
        (2, ArgumentError, "gates=2"),
        (float("nan"), ArgumentError, "gates=nan"),
        ("on", ArgumentError, "gates='on'"),
        (None, ArgumentError, "gates=None"),
    ],
)
def test_gates_that_do_not_fit_are_rejected(model, given, error, match):
    with pytest.raises(error, match=match), force_gates(model, given):
        pass


def test_gates_for_another_batch_are_rejected(model):
    with (
        pytest.raises(GateMismatchError, match=r"2 images.*batch of 3"),
        force_gates(model, torch.ones(2, 4)),
    ):
        recorded_gates(model, 3)


def test_gates_come_back_after_an_exception(model):
    before = recorded_gates(model, 5)
    with pytest.raises(KeyError), force_gates(model, False):
        raise KeyError
    assert torch.equal(recorded_gates(model, 5), before)
    assert before.any()


def test_forcing_nests(model):
    with force_gates(model, False):
        with force_gates(model, True):
            assert recorded_gates(model, 2).all()
        assert not recorded_gates(model, 2).any()


def test_forcing_stays_in_its_thread(model):
    seen = []
    with force_gates(model, False):
        thread = threading.Thread(target=lambda: seen.append(recorded_gates(model, 2)))
        thread.start()
        thread.join()
    assert seen[0].all()


def test_blocks_without_a_shortcut_keep_one_even_when_forced_off():
    model = dynamize(inverted_net(), input_size=IMAGE).model.eval()
    with force_gates(model, False):
        gates = recorded_gates(model, 5)
    assert not gates[:, :2].any()
    assert torch.equal(gates[:, 2:].sum(1), torch.ones(5))


def test_a_model_without_shortcuts_keeps_one_in_training_too():
    model = dynamize(inverted_net(), input_size=IMAGE, gate=GateConfig(init_rate=0.05)).model
    gates = recorded_gates(model.train(), 200)
    assert (gates[:, :2].sum(1) == 0).any()
    assert (gates[:, 2:].sum(1) >= 1).all()


@pytest.mark.parametrize("what", ["x", dynamize(basic_net(), input_size=IMAGE)])
def test_what_is_no_model_is_told(what):
    with pytest.raises(ArgumentError, match="dynamize returns two things"), force_gates(what, True):
        pass
