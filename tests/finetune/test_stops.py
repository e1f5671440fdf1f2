"""Early ends of a run."""

import multiprocessing
import os
import signal

import pytest

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
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours:
        with pytest.raises(TrainingError, match=r"died \(EOFError\).*--workers"), workers_watched():
            ours.recv()
        with pytest.raises(TrainingError, match=r"Broken pipe.*--workers"), workers_watched():
            ours.send(0)


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
