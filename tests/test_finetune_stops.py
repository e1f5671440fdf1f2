"""What ends a run before its time."""

import os
import signal

import pytest

from dmnn_convert.finetune import TrainingError
from dmnn_convert.finetune.stops import stop_requests, workers_watched


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
    with pytest.raises(TrainingError, match=r"reset by peer.*--workers"), workers_watched():
        raise ConnectionResetError(104, "Connection reset by peer")


def test_an_error_of_a_loader_process_stays_what_it_is():
    caught = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"
    with pytest.raises(RuntimeError, match=r"^Caught"), workers_watched():
        raise RuntimeError(caught)
