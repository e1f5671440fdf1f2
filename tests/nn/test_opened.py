"""Forcing and recording by tasks, threads and generators, ended in any order."""

import asyncio
import contextlib
import threading

import pytest
import torch
from small_nets import IMAGE, basic_net, images, random_gates

from dmnn_convert import dynamize, force_gates, record_paths


@pytest.fixture(scope="module")
def model():
    return dynamize(basic_net(), input_size=IMAGE).model.eval()


def gates_of(model, batch=2):
    with record_paths(model) as paths, torch.no_grad():
        model(images(batch))
    return paths.gates


def run(model, batch):
    with torch.no_grad():
        model(images(batch))


def test_overlapping_tasks_keep_their_own_gates(model):
    free, seen = gates_of(model), {}

    async def task(name, gates, first, then):
        with force_gates(model, gates):
            await asyncio.sleep(first)
            seen[name] = gates_of(model)
            await asyncio.sleep(then)
            seen[name, "later"] = gates_of(model)

    async def both():
        await asyncio.gather(task("on", True, 0.01, 0), task("off", False, 0.02, 0.02))

    asyncio.run(both())
    assert seen["on"].all() and seen["on", "later"].all()
    assert not seen["off"].any() and not seen["off", "later"].any()
    assert torch.equal(gates_of(model), free)


def test_overlapping_tasks_record_their_own_passes(model):
    async def task(batch):
        with record_paths(model) as paths:
            for _ in range(2):
                run(model, batch)
                await asyncio.sleep(0)
        return paths.gates

    async def both():
        return await asyncio.gather(task(1), task(3))

    assert [len(gates) for gates in asyncio.run(both())] == [2, 6]


def test_what_a_task_is_given_to_do_is_forced_as_it_is(model):
    async def main():
        with force_gates(model, False):
            inner = asyncio.create_task(asyncio.to_thread(gates_of, model))
            return await inner

    assert not asyncio.run(main()).any()


def passes(model, batches):
    with record_paths(model) as paths:
        for batch in batches:
            run(model, batch)
            yield paths


def handed_on(model, batches):
    yield from passes(model, batches)


@pytest.mark.parametrize("generator", [passes, handed_on])
def test_a_generator_records_its_own_passes_only(model, generator):
    with record_paths(model) as mine:
        for theirs in generator(model, [1, 1, 1]):  # noqa: B007
            run(model, 4)
        run(model, 4)
    assert len(theirs.gates) == 3
    assert len(mine.gates) == 16


def test_a_generator_forces_its_own_passes_only(model):
    def forced():
        with force_gates(model, False):
            while True:
                yield gates_of(model)

    free = gates_of(model)
    generator = forced()
    for _ in range(2):
        assert not next(generator).any()
        assert torch.equal(gates_of(model), free)
    del generator
    assert torch.equal(gates_of(model), free)


def test_an_asynchronous_generator_records_its_own_passes_only(model):
    async def recorded():
        with record_paths(model) as paths:
            for _ in range(2):
                run(model, 1)
                await asyncio.sleep(0)
                yield paths

    async def main():
        with record_paths(model) as mine:
            async for theirs in recorded():  # noqa: B007
                run(model, 3)
        return theirs.gates, mine.gates

    theirs, mine = asyncio.run(main())
    assert (len(theirs), len(mine)) == (2, 6)


def test_a_generator_that_ends_late_leaves_nothing_behind(model):
    free, generator = gates_of(model), passes(model, [1, 1])
    with force_gates(model, False):
        next(generator)
    with record_paths(model) as mine:
        generator.close()
        run(model, 2)
    assert torch.equal(mine.gates, free)


def test_generators_for_a_with_are_around_what_it_holds(model):
    @contextlib.contextmanager
    def all_off():
        with force_gates(model, False):
            yield

    with all_off():
        assert not gates_of(model).any()
    with contextlib.ExitStack() as stack:
        stack.enter_context(all_off())
        stack.enter_context(force_gates(model, True))
        assert gates_of(model).all()
    assert gates_of(model).any()


@pytest.fixture
def _all_off(model):
    with force_gates(model, False):
        yield


@pytest.mark.usefixtures("_all_off")
def test_a_fixture_is_around_its_test(model):
    assert not gates_of(model).any()


def test_any_order_of_leaving(model):
    free = gates_of(model)
    first, second = force_gates(model, True), force_gates(model, False)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gates_of(model).any()
    second.__exit__(None, None, None)
    assert torch.equal(gates_of(model), free)


def test_what_another_thread_closes_is_closed(model):
    free, generator = gates_of(model), force_gates(model, False)
    generator.__enter__()
    thread = threading.Thread(target=generator.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert torch.equal(gates_of(model), free)


@pytest.mark.slow
def test_compiled_and_exported_models_are_forced_and_recorded(model):
    given, x = random_gates(3, 4), images(3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        free = model(x)
        torch.testing.assert_close(compiled(x), free)
        with force_gates(model, given), record_paths(model) as paths:
            wanted = model(x)
            torch.testing.assert_close(compiled(x), wanted)
        assert torch.equal(paths.gates, given.repeat(2, 1))
        torch.testing.assert_close(compiled(x), free)
        with force_gates(model, given):
            exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), wanted)
