"""Every request of a batch is answered, whenever it comes and whatever fails, and every stop is heeded. No test waits without end."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from paged import PROMPTS, config, greedy, one_by_one, then, three
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from hf_eft.decoding.continuous import BatchEnded, EFTBatchingManager
from hf_eft.decoding.continuous.answers import Answers, Intake
from hf_eft.decoding.continuous.paged import PagedMembers

SOON = 30  # seconds, after which what should have happened has not


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Once it is set, forwards fail."""
    now, forward = threading.Event(), PagedMembers.__call__

    def run(members: PagedMembers, **inputs: Any) -> Any:
        if now.is_set():
            raise FloatingPointError("The member 'tuned' returned NaN")
        return forward(members, **inputs)

    monkeypatch.setattr(PagedMembers, "__call__", run)
    return now


def wait(event: threading.Event) -> None:
    assert event.wait(SOON), "it did not happen"


def answer_of(manager: EFTBatchingManager) -> Any:
    return manager.output_router.output_queue.get(timeout=SOON)


@contextmanager
def running(**options: Any) -> Iterator[EFTBatchingManager]:
    """A manager whose thread ends with the test, whatever the test finds."""
    manager = three().init_continuous_batching(greedy(**options), config())
    try:
        manager.start()
        yield manager
    finally:
        super(EFTBatchingManager, manager).stop(timeout=SOON, hard_stop=True)


def test_a_request_that_comes_while_the_batch_fails_is_answered(
    failing: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared, added = threading.Event(), threading.Event()
    with running() as manager:
        # The thread fails all requests that it knows of, and goes on when another one has come, which was let in before.
        clear = then(manager._fail_all_remaining_requests, lambda: (cleared.set(), wait(added)))
        monkeypatch.setattr(manager, "_fail_all_remaining_requests", clear)
        failing.set()
        first = manager.add_request(PROMPTS[0])
        wait(cleared)
        monkeypatch.setattr(manager.background_thread_status, "can_accept_new_requests", lambda: None)
        late = manager.add_request(PROMPTS[1])
        added.set()
        answers = {answer.request_id: answer for answer in (answer_of(manager), answer_of(manager))}
        assert answers.keys() == {first, late}
        assert all(answer.status == RequestStatus.FAILED and "NaN" in answer.error for answer in answers.values())


@pytest.mark.parametrize("let_in", [False, True], ids=["refused at once", "let in before"])
def test_a_request_that_comes_after_the_end_is_refused(
    failing: threading.Event, monkeypatch: pytest.MonkeyPatch, let_in: bool
) -> None:
    with running() as manager:
        failing.set()
        manager.add_request(PROMPTS[0])
        assert "NaN" in answer_of(manager).error
        manager._generation_thread.join(SOON)
        if let_in:  # and put into the queue only now
            monkeypatch.setattr(manager.background_thread_status, "can_accept_new_requests", lambda: None)
        with pytest.raises(BatchEnded, match="NaN"):
            manager.add_request(PROMPTS[1])
        assert manager.input_queue.empty()


def test_a_request_on_its_way_into_the_batch_is_answered_when_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes requests out of the queue, and looks for a stop before it keeps them."""
    taken, stopped = threading.Event(), threading.Event()
    with running() as manager:
        monkeypatch.setattr(manager.input_queue, "get_nowait", then(manager.input_queue.get_nowait, taken.set))
        empty = manager.cancel_queue.empty  # looked at next
        monkeypatch.setattr(manager.cancel_queue, "empty", lambda: (taken.is_set() and wait(stopped)) or empty())
        late = manager.add_request(PROMPTS[0])
        wait(taken)
        manager.stop(block=False, hard_stop=True)
        stopped.set()
        answer = answer_of(manager)
        assert (answer.request_id, answer.status, answer.error) == (late, RequestStatus.FAILED, "It was stopped.")


def test_forks_that_were_never_made_are_answered(failing: threading.Event) -> None:
    failing.set()
    with running(do_sample=True, num_return_sequences=3) as manager:
        first = manager.add_request(PROMPTS[0])
        answers = {answer_of(manager).request_id for _ in range(3)}
        assert answers == {first, f"{first}__child#0", f"{first}__child#1"}


def test_what_fails_and_fails_again_as_it_is_cleared_up_is_told(
    failing: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_again(error: Exception) -> None:
        raise KeyError("blocks")

    monkeypatch.setattr("threading.excepthook", lambda *args: None)
    with running() as manager:
        monkeypatch.setattr(manager.batch_processor, "fail_all_requests", fail_again)
        failing.set()
        manager.add_request(PROMPTS[0])
        assert "NaN" in answer_of(manager).error
        manager._generation_thread.join(SOON)
        assert isinstance(manager.background_thread_status.fatal_error, FloatingPointError)


def test_a_manager_that_failed_can_be_started_again(failing: threading.Event) -> None:
    with running() as manager:
        failing.set()
        manager.add_request(PROMPTS[0], request_id="first")
        assert "NaN" in answer_of(manager).error
        manager._generation_thread.join(SOON)
        manager.input_queue.queue.append(RequestState("first", PROMPTS[0]))  # it was answered before it got there
        failing.clear()
        manager.start()
        manager.add_request(PROMPTS[1], request_id="first")
        assert answer_of(manager).generated_tokens == one_by_one(manager.model.model, PROMPTS[1:2], greedy())[0]


def test_a_stop_that_does_not_wait_lets_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    began, stopped = threading.Event(), threading.Event()
    with running() as manager:
        step = then(manager._generation_step, lambda: (began.set(), wait(stopped)))
        monkeypatch.setattr(manager, "_generation_step", step)
        manager.add_request(PROMPTS[1])
        wait(began)
        manager.stop(block=False)
        stopped.set()
        assert answer_of(manager).generated_tokens == one_by_one(manager.model.model, PROMPTS[1:2], greedy())[0]


@pytest.mark.parametrize("how", ["stop", "destroy"])
@pytest.mark.parametrize("where", ["another thread", "a handler of signals"])
def test_a_stop_during_the_start_is_heeded(monkeypatch: pytest.MonkeyPatch, how: str, where: str) -> None:
    manager = three().init_continuous_batching(greedy(), config())
    stopper = threading.Thread(target=getattr(manager, how), daemon=True)
    asked = threading.Event()
    warmup = manager.warmup

    def warm_up() -> None:
        if where == "another thread":
            stopper.start()
            wait(asked)
        else:
            getattr(manager, how)()
        warmup()

    lock = manager._starting

    class Watched:
        """The lock, which tells that the other thread has come to it."""

        def __enter__(self) -> None:
            if threading.current_thread() is stopper:
                asked.set()
            lock.acquire()

        def __exit__(self, *exception: object) -> None:
            lock.release()

    monkeypatch.setattr(manager, "_starting", Watched())
    monkeypatch.setattr(manager, "warmup", warm_up)
    starter = threading.Thread(target=manager.start, daemon=True)
    try:
        starter.start()
        starter.join(SOON)
        if where == "another thread":
            stopper.join(SOON)
        assert not (starter.is_alive() or stopper.is_alive() or manager.is_running())
        with pytest.raises(BatchEnded, match="stopped"):
            manager.add_request(PROMPTS[0])
        monkeypatch.setattr(manager, "warmup", warmup)
        manager.start()  # anew
        manager.add_request(PROMPTS[0])
        assert answer_of(manager).generated_tokens == one_by_one(manager.model.model, PROMPTS[:1], greedy())[0]
    finally:
        super(EFTBatchingManager, manager).stop(timeout=SOON, hard_stop=True)


def test_an_interrupt_during_the_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    manager = three().init_continuous_batching(greedy(), config())
    monkeypatch.setattr(threading.Thread, "start", then(threading.Thread.start, interrupted))
    with pytest.raises(KeyboardInterrupt):
        manager.start()
    running_on = manager.is_running()
    super(EFTBatchingManager, manager).stop(timeout=SOON, hard_stop=True)
    assert not running_on


def test_iterators_go_to_the_last_answer() -> None:
    with running() as manager:
        names = [manager.add_request(ids) for ids in PROMPTS[:3]]
        manager.stop(timeout=SOON)
        assert [result.request_id for result in manager.request_id_iter(names[1])] == [names[1]]
        assert {result.request_id for result in manager} == {names[0], names[2]}


def opened(answers: Answers, *names: str) -> list[RequestState]:
    states = [RequestState(name, [5, 6]) for name in names]
    for state in states:
        answers.open(state)
    return states


def test_a_handler_gets_what_came_before_it() -> None:
    answers = Answers()
    first, other = opened(answers, "first", "other")
    answers.deliver(first.to_generation_output())
    answers.fail_and_deliver(other, ValueError("wrong"))
    answers.fail_and_deliver(first, ValueError("wrong"))
    got: list[Any] = []

    async def register() -> None:
        answers.attach("first", got.append, asyncio.get_running_loop())
        await asyncio.sleep(0)

    asyncio.run(register())
    assert [(each.request_id, each.is_finished()) for each in got] == [("first", False), ("first", True)]
    assert answers.output_queue.get_nowait().request_id == "other"


def test_a_listener_that_has_gone_ends_no_batch() -> None:
    answers = Answers()
    first, other = opened(answers, "first", "other")

    async def register() -> None:
        answers.attach("first", print, asyncio.get_running_loop())

    asyncio.run(register())  # its loop is closed then
    for state in (first, other):
        state.status = RequestStatus.FINISHED
    answers.deliver_batch([first.to_generation_output(), other.to_generation_output()])
    assert answers.output_queue.get_nowait().request_id == "other"


def test_a_request_that_found_no_room_in_the_queue_is_not_waited_for() -> None:
    answers = Answers()
    intake = Intake(1, answers)
    intake.put(RequestState("first", [5]))
    with pytest.raises(queue.Full):
        intake.put(RequestState("second", [5], num_children=2), block=False)
    intake.get_nowait()
    intake.put(RequestState("second", [5], num_children=2))
