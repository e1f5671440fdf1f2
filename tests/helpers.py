"""Checks and counts that tests of several files share."""

import warnings

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import addmm_flop_jit, conv_flop_jit, linear_flop_jit, matmul_flop_jit
from nets import images, off_by

from dmnn_convert import dynamize, find_blocks, force_gates, set_execution

SIZE = (3, 8, 8)
HANDLES = {
    "aten::_convolution": conv_flop_jit,
    "aten::linear": linear_flop_jit,
    "aten::addmm": addmm_flop_jit,
    "aten::matmul": matmul_flop_jit,
}


def fvcore_macs(model, size):
    """What fvcore counts for one image in convolutions and matrix products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, *size))
        analysis.clear_op_handles().set_op_handle(**HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return analysis.total()


def run(model, x, gates=True, execution="skip"):
    """Return what the model gives in this execution, under these gates."""
    set_execution(model, execution)
    with torch.no_grad(), force_gates(model, gates):
        return model(x)


def patterns(batch, N):
    """Random gates with an image of none and an image of one; none at all; all."""
    generator = torch.Generator().manual_seed(batch)
    drawn = (torch.rand(batch, N, generator=generator) < 0.5).float()
    drawn[0] = 0
    if batch > 1:
        drawn[1] = torch.eye(N)[-1]
    return drawn, torch.zeros(batch, N), torch.ones(batch, N)


def check_masked_is_skipping(model, size, N):
    """Hold skipping to the masked form: one image, and a batch of five."""
    for batch in (1, 5):
        x = images(model, size, batch)
        for gates in patterns(batch, N):
            skipped, masked = (run(model, x, gates, how) for how in ("skip", "masked"))
            assert off_by(skipped, masked) <= 1e-5, gates


def reasons(model):
    """Return why blocks stay dense, as one string."""
    return " | ".join(str(b.reason) for b in find_blocks(model) if b.reason)


def converts(source, split="exact"):
    """Convert a network of maps of 8 by 8, check it, and return how many blocks there are."""
    model, table = dynamize(source, 2, split=split, input_size=SIZE)
    x = images(source, SIZE, 3)
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-5
    gates = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).repeat(1, len(table.blocks))
    outputs = []
    for execution in ("skip", "masked"):
        set_execution(model, execution)
        with torch.no_grad(), force_gates(model, gates):
            outputs.append(model(x))
    assert off_by(*outputs) <= 1e-5
    return len(table.blocks)


def statistics(x):
    """Mean and (unbiased) variance of each channel, by hand."""
    values = x.movedim(1, 0).flatten(1).double()
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square().sum(1) / (values.shape[1] - 1)


def assert_statistics(norm, x):
    """Check that the norm's running statistics are those of x."""
    mean, variance = statistics(x)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-5)
