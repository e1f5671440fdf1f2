"""A multi-path block: masked and skipping give the same numbers, and skipping really skips."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import IMAGE, NETS, basic_net, conv_bn, images, random_gates, seasoned
from torch import nn

from dmnn_convert import (
    ArgumentError,
    DMNNLoss,
    GateChain,
    GateConfig,
    GateController,
    MultiPathBlock,
    dynamize,
    force_gates,
    gate_parameters,
    record_paths,
    set_execution,
)
from dmnn_convert.nn import Parts

FORMS = list(itertools.product([False, True], repeat=3))


class Scale(nn.Module):
    """Maps zeros to zeros, as a block's last part must."""

    def forward(self, x):
        return 0.5 * x


def block(N=2, trunk=False, post=False, keep_one=False, execution="skip"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        controller = GateController(4, N, GateConfig(), GateChain([N]), 0, keep_one=keep_one)
        sub_blocks = [nn.Sequential(*conv_bn(4, 6, 3), nn.ReLU()) for _ in range(N)]
        shared = nn.Sequential(*conv_bn(4, 4, 1), nn.ReLU()) if trunk else None
        parts = Parts(tuple(sub_blocks), shared, post=Scale() if post else None)
        made = MultiPathBlock(controller, parts)
    made.execution = execution
    return seasoned(made)


def run(block, gates, execution, with_shortcut=True):
    x, shortcut = images(len(gates), 1, (4, 5, 5)), images(len(gates), 2, (6, 5, 5))
    set_execution(block, execution)
    with torch.no_grad(), force_gates(block, gates):
        return block(x, shortcut if with_shortcut else None)


def by_hand(block, gates, with_shortcut=True):
    """Equation 4, one image after the other."""
    x, shortcut = images(len(gates), 1, (4, 5, 5)), images(len(gates), 2, (6, 5, 5))
    rows = []
    with torch.no_grad():
        for image, skip, on in zip(x, shortcut, gates, strict=True):
            inner = image[None] if block.trunk is None else block.trunk(image[None])
            chosen = [sub(inner) for sub, g in zip(block.sub_blocks, on, strict=True) if g]
            total = sum(chosen, torch.zeros(1, 6, 5, 5))
            total = total if block.post is None else block.post(total)
            rows.append(total + skip if with_shortcut else total)
    return torch.cat(rows)


def patterns(batch, N, keep_one):
    """Every gate pattern of a batch."""
    images_gates = [g for g in itertools.product([0.0, 1.0], repeat=N) if any(g) or not keep_one]
    for gates in itertools.product(images_gates, repeat=batch):
        yield torch.tensor(gates)


@pytest.mark.parametrize(("trunk", "post", "with_shortcut"), FORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_masked_and_skipping_agree_for_every_pattern(batch, trunk, post, with_shortcut):
    b = block(2, trunk, post, keep_one=not with_shortcut)
    for gates in patterns(batch, 2, not with_shortcut):
        expected = by_hand(b, gates, with_shortcut)
        for execution in ("masked", "skip"):
            got = run(b, gates, execution, with_shortcut)
            torch.testing.assert_close(got, expected, msg=f"{execution} {gates.tolist()}")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(FORMS),
    st.integers(0, 99),
    st.floats(0, 1),
)
def test_masked_and_skipping_agree_for_random_patterns(batch, N, form, seed, rate):
    trunk, post, with_shortcut = form
    b = block(N, trunk, post)
    gates = random_gates(batch, N, rate, seed)
    if not with_shortcut:
        gates[:, 0] = 1
    got = run(b, gates, "skip", with_shortcut)
    torch.testing.assert_close(got, run(b, gates, "masked", with_shortcut))
    torch.testing.assert_close(got, by_hand(b, gates, with_shortcut))


@pytest.mark.parametrize("execution", ["masked", "skip"])
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_an_empty_batch_gives_an_empty_output(execution, with_shortcut):
    out = run(block(), torch.ones(0, 2), execution, with_shortcut)
    assert out.shape == (0, 6, 5, 5)


@pytest.mark.parametrize("execution", ["masked", "skip"])
def test_without_a_shortcut_images_with_all_gates_off_keep_their_place(execution):
    gates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = block()
    torch.testing.assert_close(run(b, gates, execution, False), by_hand(b, gates, False))


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("split", ["matched", "exact"])
def test_converted_nets_agree_too(kind, split):
    model, table = dynamize(seasoned(NETS[kind]()), 2, split=split, input_size=IMAGE)
    for seed, batch in enumerate((1, 3, 5)):
        x = images(batch)
        outputs = []
        for execution in ("masked", "skip"):
            set_execution(model, execution)
            with (
                torch.no_grad(),
                force_gates(model, random_gates(batch, len(table.rows), 0.5, seed)),
            ):
                outputs.append(model(x))
        torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("execution", ["masked", "skip"])
@pytest.mark.parametrize("gates", [True, False])
def test_the_output_is_no_view_of_the_shortcut(execution, gates):
    b = block(execution=execution)
    x, shortcut = images(2, 1, (4, 5, 5)), images(2, 2, (6, 5, 5))
    before = shortcut.clone()
    with torch.no_grad(), force_gates(b, gates):
        b(x, shortcut).fill_(7)
    assert torch.equal(shortcut, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_forms_agree_for_a_shortcut_of_another_dtype(dtype):
    b = block()
    x, shortcut = images(2, 1, (4, 5, 5)), images(2, 2, (6, 5, 5)).to(dtype)
    for gates in patterns(2, 2, False):
        outputs = []
        for execution in ("masked", "skip"):
            set_execution(b, execution)
            with torch.no_grad(), force_gates(b, gates):
                outputs.append(b(x, shortcut))
        # Without any sub-block there is nothing that could promote the shortcut.
        torch.testing.assert_close(*outputs, check_dtype=bool(gates.any()), rtol=0.01, atol=0.01)


def test_only_the_rows_that_are_on_are_computed():
    b, seen = block(3, trunk=True), {}
    for name in ("trunk", "sub_blocks.0", "sub_blocks.1", "sub_blocks.2"):
        b.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, []).append(len(inputs[0]))
        )
    gates = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0]])
    run(b, gates, "skip")
    assert seen == {"trunk": [3], "sub_blocks.0": [3], "sub_blocks.2": [1]}
    seen.clear()
    run(b, torch.zeros(4, 3), "skip")
    assert seen == {}
    run(b, gates, "masked")
    assert seen == {"trunk": [4], **{f"sub_blocks.{n}": [4] for n in range(3)}}


def test_training_computes_everything():
    b, calls = block(2), []
    for sub_block in b.sub_blocks:
        sub_block.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    b.train()
    run(b, torch.zeros(4, 2), "skip")
    assert calls == [4, 4]


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("split", ["matched", "exact"])
def test_one_training_step_reaches_every_parameter(kind, split):
    torch.manual_seed(0)
    gate = GateConfig(init_rate=0.6)
    model, table = dynamize(
        NETS[kind](), 2, split=split, gate=gate, input_size=IMAGE, num_categories=2
    )
    for name, parameter in model.named_parameters():
        if "w3.weight" in name:  # starts at zero, through which nothing passes
            nn.init.normal_(parameter)
    labels = torch.arange(16) % 5
    with record_paths(model.train()) as paths:
        logits = model(images(16))
    DMNNLoss(table, target=0.5, categories=[0, 0, 1, 1, 1])(logits, labels, paths).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


def test_every_parameter_has_a_gradient_even_with_all_gates_off():
    model, _ = dynamize(basic_net(), 2, input_size=IMAGE)
    owned = {id(p) for p in gate_parameters(model)}
    with force_gates(model.train(), False):
        model(images(4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if id(p) not in owned)


@pytest.mark.parametrize("execution", ["fast", "", None])
def test_other_executions_are_rejected(execution):
    with pytest.raises(ArgumentError, match=r"execution=.*'masked', 'skip'"):
        set_execution(block(), execution)


def test_executions_are_for_converted_models():
    with pytest.raises(ArgumentError, match="dynamize"):
        set_execution(basic_net(), "skip")


def test_set_execution_reaches_every_block():
    model, _ = dynamize(basic_net(), 2, input_size=IMAGE)
    set_execution(model, "masked")
    assert [m.execution for m in model.modules() if isinstance(m, MultiPathBlock)] == ["masked"] * 2
