"""Several processes estimate together what one process finds with all their images."""

import copy

import pytest
import torch
from small_nets import IMAGE, basic_net, bottleneck_net, images, seasoned
from two_processes import in_two_processes, needs_gloo

from dmnn_convert import ArgumentError, calibrate, dynamize, reconstruct, reestimate_norms

BATCHES = [images(8, seed=i) for i in range(4)]


def networks(net):
    torch.manual_seed(0)
    source = seasoned(net()).eval()
    return source, dynamize(source, 2, input_size=IMAGE).model


def estimated(share):
    """Return the states of networks after each function that looks at images."""
    (_, exact), (source, approximate) = networks(basic_net), networks(bottleneck_net)
    states = {}
    for function in (calibrate, reestimate_norms):
        model = copy.deepcopy(exact)
        function(model, share)
        states[function.__name__] = model.state_dict()
    errors = reconstruct(approximate, source, share)
    states["reconstruct"] = approximate.state_dict()
    states["errors"] = {k: torch.tensor(v) for k, v in errors.items()}
    return states


def on_one_of_two(rank, folder):
    torch.save(estimated(BATCHES[rank::2]), f"{folder}/{rank}.pt")
    words = []
    for function in (calibrate, reestimate_norms):
        with pytest.raises(ArgumentError) as error:
            function(networks(basic_net)[1], [])
        words.append(str(error.value))
    source, model = networks(bottleneck_net)
    with pytest.raises(ArgumentError, match="in 1 of 2 processes"):
        reconstruct(model, source, BATCHES[:1] if rank else [])
    torch.save(words, f"{folder}/words.{rank}.pt")
    calibrate(networks(basic_net)[1], BATCHES if rank else [])


@needs_gloo
@pytest.mark.slow
def test_two_processes_estimate_what_one_does(tmp_path):
    in_two_processes(on_one_of_two, tmp_path)
    expected = estimated(BATCHES[0::2] + BATCHES[1::2])
    first, second = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in (0, 1))
    for function, state in expected.items():
        for name, value in state.items():
            assert torch.equal(first[function][name], second[function][name])
            torch.testing.assert_close(first[function][name], value, rtol=1e-4, atol=1e-5)
    for rank in (0, 1):
        words = torch.load(tmp_path / f"words.{rank}.pt", weights_only=True)
        assert all("gave no batch" in text for text in words)
