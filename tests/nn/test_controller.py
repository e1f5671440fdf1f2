"""Gates are exact zeros and ones with a soft gradient; controllers and their chain keep eq. 5-8."""

import copy
import math
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import IMAGE, basic_net, images
from torch import nn

from dmnn_convert import (
    ArgumentError,
    GateChain,
    GateConfig,
    GateController,
    Paths,
    dynamize,
    force_gates,
    gate_parameters,
    record_paths,
    strip_category_heads,
)
from dmnn_convert.nn import controller as gate
from dmnn_convert.nn.gumbel import gumbel_noise, hard_gates, straight_through_gates
from dmnn_convert.nn.start_rates import start_rates


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def controllers_of(model):
    return [m for m in model.modules() if isinstance(m, GateController)]


# --- Gumbel noise and the straight-through estimator -------------------------------------------


def test_noise_is_gumbel():
    noise = gumbel_noise(torch.empty(100_000, dtype=torch.float16), seeded())
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    # P(noise <= 0) = exp(-1)
    assert (noise <= 0).float().mean().item() == pytest.approx(math.exp(-1), abs=0.01)


def test_noise_is_finite_where_the_exponential_draw_is_zero(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x, generator=None: x.zero_())
    assert gumbel_noise(torch.empty(3)).isfinite().all()


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 5.0]), st.integers(1, 4))
def test_gates_are_exact_and_their_gradient_is_the_soft_ones(seed, tau, N):
    logits = normal(5, N, 2, seed=seed).requires_grad_()
    noisy = logits + gumbel_noise(logits, seeded(seed + 1))
    difference = noisy[..., 1] - noisy[..., 0]
    weights = normal(5, N, seed=seed + 2)
    (expected,) = torch.autograd.grad((torch.sigmoid(difference / tau) * weights).sum(), logits)

    gates = straight_through_gates(logits, tau, generator=seeded(seed + 1))
    (got,) = torch.autograd.grad((gates * weights).sum(), logits)
    assert torch.equal(gates, (difference > 0).float())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tau", [0, -1.0, float("nan")])
def test_temperatures_that_are_not_positive_are_rejected(tau):
    with pytest.raises(ArgumentError, match="tau"):
        straight_through_gates(torch.zeros(1, 2, 2), tau)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e3])
def test_extreme_logits_give_no_nan(dtype, tau):
    high, low = 6e4, -6e4
    pairs = [[low, high], [high, low], [high, high], [low, low], [0, 0]]
    logits = torch.tensor([pairs], dtype=dtype, requires_grad=True)
    gates = straight_through_gates(logits, tau, generator=seeded())
    gates.sum().backward()
    assert gates.dtype == torch.float32
    assert gates[0, :2].tolist() == [1, 0]
    assert ((gates == 0) | (gates == 1)).all()
    assert logits.grad.isfinite().all()


def test_the_same_generator_gives_the_same_gates():
    logits = torch.zeros(200, 3, 2)
    draws = [straight_through_gates(logits, generator=seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(5)
    first = straight_through_gates(logits)
    torch.manual_seed(5)
    assert torch.equal(first, straight_through_gates(logits))


def test_hard_gates_are_the_argmax():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]])
    assert hard_gates(logits).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("decide", [hard_gates, straight_through_gates])
def test_keep_one_turns_on_the_largest_margin_of_rows_that_are_all_off(decide):
    margins = torch.tensor([[-300.0, -100.0, -200.0], [-200.0, -300.0, -100.0], [300, -1e3, 200]])
    logits = torch.stack([torch.zeros(3, 3), margins], -1)
    assert decide(logits, keep_one=True).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 1]]
    assert decide(logits).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1]]


def test_keep_one_leaves_the_gradient_alone():
    logits = torch.full((4, 2, 2), -1.0).requires_grad_()
    gradients = []
    for keep_one in (True, False):
        gates = straight_through_gates(logits, keep_one=keep_one, generator=seeded())
        gradients += torch.autograd.grad(gates.sum(), logits)
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


# --- the controller ---------------------------------------------------------------------------


def two_controllers(config=None, **options):
    config = config or GateConfig(**options)
    chain = GateChain([2, 3])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair = [GateController(6, 2, config, chain, 0), GateController(4, 3, config, chain, 1)]
        for controller in pair:
            nn.init.normal_(controller.w3.weight)
            nn.init.normal_(controller.w3.bias)
    return nn.ModuleList(pair).eval()


@pytest.fixture
def seen_logits(monkeypatch):
    seen = []

    def spy(logits, **options):
        seen.append(logits)
        return hard_gates(logits, **options)

    monkeypatch.setattr(gate, "hard_gates", spy)
    return seen


def test_layers_are_the_papers():
    first, second = two_controllers()
    assert first.w2 is None
    assert first.w1.weight.shape == (32, 6)
    assert second.w2.weight.shape == (32, 32)
    assert second.w3.weight.shape == (6, 32)
    biased = {name for name, _ in second.named_parameters() if name.endswith("bias")}
    assert biased == {"w3.bias"}


def test_two_chained_controllers_follow_equations_5_to_8(seen_logits):
    first, second = two_controllers()
    x, y = normal(7, 6, 5, 4), normal(7, 4, 3, 2, seed=1)
    gates = first(x), second(y)
    h1 = (x.mean((2, 3)) @ first.w1.weight.T).clamp(min=0)
    h2 = (y.mean((2, 3)) @ second.w1.weight.T).clamp(min=0)
    h2 = h2 + (h1 @ second.w2.weight.T).clamp(min=0)
    for controller, h, got, logits in zip(
        (first, second), (h1, h2), gates, seen_logits, strict=True
    ):
        expected = (h @ controller.w3.weight.T + controller.w3.bias).reshape(7, -1, 2)
        torch.testing.assert_close(logits, expected)
        assert torch.equal(got, (expected[..., 1] > expected[..., 0]).float())


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 5, 4), (3, 6, 2, 5, 4)])
def test_any_number_of_spatial_dimensions_is_pooled(shape, seen_logits):
    first, _ = two_controllers()
    x = normal(*shape)
    first(x)
    first(x.flatten(2).mean(-1) if len(shape) > 2 else x)
    torch.testing.assert_close(*seen_logits)


def test_evaluation_is_deterministic_and_without_noise():
    first, _ = two_controllers()
    x = normal(64, 6, 5, 4)
    state = torch.random.get_rng_state()
    assert torch.equal(first(x), first(x))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32_under_autocast(dtype, seen_logits):
    pair = two_controllers()
    x, y = normal(7, 6, 5, 4), normal(7, 4, 3, 2, seed=1)
    pair[0](x), pair[1](y)
    with torch.autocast("cpu", dtype):
        pair[0](x), pair[1](y)
    plain, autocast = seen_logits[:2], seen_logits[2:]
    assert all(torch.equal(a, b) for a, b in zip(plain, autocast, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_low_precision_modules_give_float32_gates_and_gradients(dtype, training):
    pair = two_controllers().to(dtype).train(training)
    gates = torch.cat(
        [pair[0](normal(9, 6, 5, 4).to(dtype)), pair[1](normal(9, 4, 3, 2).to(dtype))], 1
    )
    assert gates.dtype == torch.float32
    assert ((gates == 0) | (gates == 1)).all()
    if training:
        gates.sum().backward()
        assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in pair.parameters())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("tau", "scale"), [(1.0, 1.0), (0.1, 100.0), (10.0, 0.0)])
def test_starts_at_the_given_rate_whatever_the_input_and_temperature(rate, tau, scale):
    chain = GateChain([2])
    controller = GateController(3, 2, GateConfig(init_rate=rate, tau=tau), chain, 0)
    controller.generator = seeded()
    rates = controller(scale * normal(20_000, 3)).mean(0)
    sigma = math.sqrt(rate * (1 - rate) / 20_000)
    assert rates.tolist() == pytest.approx([rate, rate], abs=3 * sigma)


@pytest.mark.parametrize(
    ("N", "rate", "certainty", "expected"),
    [
        (2, 0.5, 0.9, [0.9, 0.1]),
        (2, 0.7, 0.95, [0.95, 0.45]),
        (2, 0.3, 0.95, [0.55, 0.05]),
        (4, 0.5, 0.95, [0.95, 0.95, 0.05, 0.05]),
        (1, 0.4, 0.9, [0.4]),
        (3, 0.5, 0.9, [0.9, 0.5, 0.1]),
        (2, 0.9, 0.9, [0.9, 0.9]),
        (2, 0.1, 0.9, [0.1, 0.1]),
        (3, 0.95, 0.9, [0.95, 0.95, 0.95]),
        (2, 0.02, 0.95, [0.02, 0.02]),
        (3, 0.9, 0, [0.9, 0.9, 0.9]),
    ],
)
def test_rates_to_start_at(N, rate, certainty, expected):
    assert start_rates(N, rate, certainty) == pytest.approx(expected)


@given(
    N=st.integers(1, 12),
    rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
    certainty=st.floats(0.5, 1, exclude_min=True, exclude_max=True),
)
def test_rates_to_start_at_fall_around_their_mean(N, rate, certainty):
    rates = start_rates(N, rate, certainty)
    assert sum(rates) / N == pytest.approx(rate)
    assert rates == sorted(rates, reverse=True)
    least, most = min(rate, 1 - certainty), max(rate, certainty)
    assert all(least - 1e-9 <= q <= most + 1e-9 for q in rates)
    assert all(0 < q < 1 for q in rates)


@pytest.mark.parametrize(("N", "rate"), [(2, 0.5), (3, 0.5), (2, 0.7), (1, 0.4)])
def test_sub_blocks_start_at_rates_of_their_own(N, rate):
    config = GateConfig(init_rate=rate, certainty=0.9)
    controller = GateController(3, N, config, GateChain([N]), 0)
    controller.generator = seeded()
    found = controller(normal(20_000, 3)).mean(0)
    assert found.tolist() == pytest.approx(start_rates(N, rate, 0.9), abs=0.012)


def test_unchained_controllers_ignore_the_one_before(seen_logits):
    first, second = two_controllers(chained=False)
    assert second.w2 is None
    y = normal(7, 4, 3, 2)
    for seed in (0, 1):
        first(normal(7, 6, 5, 4, seed=seed))
        second(y)
    assert torch.equal(seen_logits[1], seen_logits[3])


def test_a_generator_of_its_own_decides_the_draws():
    first, _ = two_controllers().train()
    x, draws = normal(50, 6, 2, 2), []
    for seed in (1, 1, 2):
        first.generator = seeded(seed)
        draws.append(first(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- the chain --------------------------------------------------------------------------------


def test_a_state_is_taken_once_by_whoever_comes_next():
    chain, h = GateChain([2, 2, 2]), normal(1, 4)
    assert chain.take(0) is None
    chain.put(0, h)
    assert chain.take(1) is h
    assert chain.take(1) is None


def test_the_last_leaves_none():
    chain = GateChain([2, 2])
    chain.put(1, normal(1, 4))
    assert chain.take(2) is None


def test_the_first_starts_anew_after_a_pass_that_broke_off():
    chain = GateChain([2, 2, 2])
    chain.put(1, normal(1, 4))
    assert chain.take(0) is None
    chain.put(1, normal(1, 4))
    assert chain.take(1) is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_share_one_new_chain_without_state(duplicate):
    model, _ = dynamize(basic_net(), input_size=IMAGE)
    chain = controllers_of(model)[0].chain
    chain.put(0, normal(1, 32).requires_grad_() * 2)
    copied = duplicate(model)
    (new,) = {controller.chain for controller in controllers_of(copied)}
    assert new is not chain
    assert new.sizes == chain.sizes == (2, 2)
    assert new.take(1) is None
    assert chain.take(1) is not None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_the_gates(duplicate):
    model, _ = dynamize(basic_net(), input_size=IMAGE)
    for controller in controllers_of(model):
        nn.init.normal_(controller.w3.weight)
        controller.generator = seeded(3)
    copied = duplicate(model)
    recorded = []
    for m in (model, copied):
        with record_paths(m) as paths:
            m.train()(images(16))
        recorded.append(paths.gates)
    assert torch.equal(*recorded)


def test_interleaved_threads_do_not_mix():
    chain, barrier = GateChain([2, 2, 2]), threading.Barrier(2, timeout=20)
    states, taken = [normal(1, 4), normal(1, 4, seed=1)], {}

    def walk(i):
        chain.take(0)
        chain.put(0, states[i])
        barrier.wait()
        taken[i] = chain.take(1)
        barrier.wait()
        chain.put(1, taken[i])
        barrier.wait()
        taken[i] = chain.take(2)

    threads = [threading.Thread(target=walk, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken[0] is states[0]
    assert taken[1] is states[1]


# --- the controllers of a model ---------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return dynamize(basic_net(), input_size=IMAGE).model.eval()


def test_gate_parameters_are_exactly_the_controllers(model):
    own = {id(p) for p in gate_parameters(model)}
    named = {name for name, p in model.named_parameters() if id(p) in own}
    assert named == {name for name, _ in model.named_parameters() if ".controller." in name}
    assert len(list(gate_parameters(model))) == len(own) == 3 + 4


def test_category_heads_can_be_dropped():
    model, _ = dynamize(basic_net(), input_size=IMAGE, num_categories=7)
    heads = {name for name in model.state_dict() if "category_head" in name}
    assert len(heads) == 4
    before = set(model.state_dict())
    strip_category_heads(model)
    assert set(model.state_dict()) == before - heads
    strip_category_heads(model)
    with record_paths(model) as paths:
        model.train()(images(4))
    assert paths.gates.shape == (4, 4)


def use_record(model):
    with record_paths(model):
        pass


def use_force(model):
    with force_gates(model, True):
        pass


USES = {
    "record_paths": use_record,
    "force_gates": use_force,
    "gate_parameters": lambda model: list(gate_parameters(model)),
    "strip_category_heads": strip_category_heads,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_unconverted_models_are_told_to_convert(use):
    with pytest.raises(ArgumentError, match="dynamize"):
        use(basic_net())


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_two_converted_models_in_one_are_ambiguous(use, model):
    with pytest.raises(ArgumentError, match="two converted models"):
        use(nn.ModuleList([model, copy.deepcopy(model)]))


def test_normalized_controllers_see_what_differs_between_images(seen_logits):
    first, _ = two_controllers(normalized=True)
    x = normal(64, 6, 2, 2) + 100.0
    first.train()
    for _ in range(200):
        first(x)
    first.eval()
    first(x)
    pooled = x.mean((2, 3))
    expected = (pooled - pooled.mean(0)) / pooled.std(0)
    alike = nn.functional.relu(expected @ first.w1.weight.T) @ first.w3.weight.T + first.w3.bias
    assert torch.allclose(seen_logits[-1].flatten(1), alike, atol=0.05)
    assert first.train()(x[:1]).shape == (1, 2)


def spread_out(spread, rate=0.9):
    gate = GateConfig(spread=spread, init_rate=rate)
    return dynamize(basic_net(), input_size=IMAGE, gate=gate).model.train()


def margins(model, x):
    with record_paths(model) as paths, force_gates(model, True), torch.no_grad():
        model(x)
    return torch.cat(paths.gate_logits, 1).diff(dim=-1).squeeze(-1)


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_margins_are_normalised_to_the_spread(spread):
    model = spread_out(spread)
    found = margins(model, images(64))
    biases = torch.cat([c.w3.bias.view(-1, 2).diff(dim=-1) for c in controllers_of(model)])
    torch.testing.assert_close(found.mean(0), biases.squeeze(-1), rtol=1e-3, atol=1e-3)
    expected = torch.full_like(found[0], spread)
    torch.testing.assert_close(found.std(0, correction=0), expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_normalised_margins_start_near_the_initial_rate(rate):
    model = spread_out(3.0, rate)
    with record_paths(model) as paths:
        for seed in range(8):
            model(images(128, seed))
    assert paths.gates.mean().item() == pytest.approx(rate, abs=0.07)


def test_normalised_margins_start_near_rates_of_their_own():
    gate = GateConfig(spread=3.0, init_rate=0.5, certainty=0.9)
    model = dynamize(basic_net(), input_size=IMAGE, gate=gate).model.train()
    with record_paths(model) as paths:
        for seed in range(8):
            model(images(128, seed))
    assert paths.gates.mean(0).tolist() == pytest.approx([0.9, 0.1, 0.9, 0.1], abs=0.07)


def test_normalised_margins_in_evaluation_are_those_of_training():
    chain = GateChain([2])
    controller = GateController(6, 2, GateConfig(spread=2.0), chain, 0)
    paths, x = Paths(chain.sizes, None), normal(32, 6, 2, 2)
    with chain.recording(paths), torch.no_grad():
        for _ in range(100):
            controller.train()(x)
        # PyTorch corrects the running variance for the mean being its own.
        controller.margin_norm.running_var *= 31 / 32
        controller.eval()(x)
        controller(x[:1])
    found = paths.gate_logits[0]
    torch.testing.assert_close(found[100 * 32 : 101 * 32], found[:32], rtol=0, atol=5e-3)
    torch.testing.assert_close(found[-1], found[-33])


def test_one_image_alone_has_no_statistics():
    model = spread_out(2.0).eval()
    for controller in controllers_of(model):
        controller.train()
    before = copy.deepcopy(model.state_dict())
    assert margins(model, images(1)).isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_weights_let_a_normalised_gate_decide_alike_for_all():
    model = spread_out(3.0, 0.5)
    with torch.no_grad():
        for controller in controllers_of(model):
            controller.w3.weight.mul_(100)
    with record_paths(model) as paths:
        model(images(512))
    rates = paths.gates.mean(0)
    assert ((rates > 0.2) & (rates < 0.8)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_norms_of_controllers_stay_in_float32(dtype):
    gate = GateConfig(spread=2.0, normalized=True)
    model = dynamize(basic_net(), input_size=IMAGE, gate=gate).model.to(dtype)
    model.train()(images(8).to(dtype))
    for controller in controllers_of(model):
        assert controller.margin_norm.running_var.dtype == torch.float32
        assert controller.norm.running_mean.dtype == torch.float32
    assert model.eval()(images(8).to(dtype)).isfinite().all()
