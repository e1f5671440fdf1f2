"""Early ends of a run."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dmnn_convert import data
from dmnn_convert.data import DataOptions
from dmnn_convert.distributed import Processes
from dmnn_convert.errors import TrainingError
from dmnn_convert.finetune import workers_watched
from dmnn_convert.finetune.stops import stop_requests


def test_the_first_signal_asks_and_the_second_stops():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loader_process_that_died_is_told():
    with pytest.raises(TrainingError, match=r"\(pid 7\).*--workers\. So."), workers_watched(" So."):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def broken_pipes(loader):
    """Yield a batch, then find out that a pipe is closed at its other end, reading or writing."""
    yield "a batch"
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours:
        ours.send(0) if loader.batch_size > 1 else ours.recv()


@pytest.mark.parametrize(("batch_size", "words"), [(1, r"died \(EOFError\)"), (2, "Broken pipe")])
def test_a_pipe_to_a_loader_process_that_breaks_is_told(monkeypatch, batch_size, words):
    monkeypatch.setattr(DataLoader, "__iter__", broken_pipes)
    options = DataOptions(batch_size=batch_size, workers=1)
    alone = Processes(0, 1, torch.device("cpu"))
    loader = data.test_loader(options, TensorDataset(torch.zeros(4)), None, alone)
    with pytest.raises(TrainingError, match=rf"{words}.*--workers"), workers_watched():
        list(loader)


@pytest.mark.parametrize("kind", [RuntimeError, EOFError, ConnectionResetError])
def test_an_error_of_a_loader_process_stays_what_it_is(kind):
    caught = f"Caught {kind.__name__} in DataLoader worker process 0.\nOriginal Traceback"
    with pytest.raises(kind, match=r"^Caught"), workers_watched():
        raise kind(caught)


def test_output_that_nobody_reads_is_not_taken_for_a_loader_process():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe:
        with pytest.raises(BrokenPipeError), workers_watched():
            print("top-1", file=pipe)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), writer)  # closing writes what is left
