"""Reading ahead and writing behind: the order, how many items are alive, errors, Ctrl-C."""

import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.hanging import HANG

from rdsnet.prediction.threads import Ahead, Behind, several_ahead


class Item:
    """Something whose life can be watched."""

    def __init__(self, number):
        self.number = number


def items(numbers, alive=None, delays=None):
    for number in numbers:
        if delays is not None:
            time.sleep(delays.random() / 200)
        item = Item(number)
        if alive is not None:
            alive.add(item)
        yield item
        del item


def settled(is_so):
    """Wait for other threads to do what they are bound to do."""
    end = time.monotonic() + HANG
    while not is_so():
        assert time.monotonic() < end, "nothing happens any more"
        time.sleep(0.001)


# -------------------------------------------------------------------------------- ahead


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.mark.parametrize("most", [1, 3])
def test_items_keep_their_order_whatever_each_takes(most, thread):
    delays = random.Random(0)
    ahead = Ahead(items(range(40), delays=delays), most, thread)
    assert [item.number for item in ahead] == list(range(40))
    assert list(ahead) == []  # and it stays at its end
    ahead.close()


def test_no_more_items_than_asked_for_are_made_ahead(thread):
    made = []

    def numbers():
        for number in range(20):
            made.append(number)
            yield number

    ahead = Ahead(numbers(), 3, thread)
    for k in range(10):
        assert next(ahead) == k
        settled(lambda k=k: len(made) >= k + 4)
        assert made == list(range(k + 4))  # the one in hand and three more
    ahead.close()
    thread.shutdown()
    assert len(made) == 13


def test_an_item_that_was_given_away_is_not_kept(thread):
    alive = weakref.WeakSet()
    ahead = Ahead(items(range(10), alive), 2, thread)
    for _ in range(6):
        item = next(ahead)
        del item
        # The two that wait; the thread may be about to leave the generator with the last of them.
        settled(lambda: len(alive) <= 2)
    ahead.close()
    thread.shutdown()
    assert len(alive) == 0


def test_an_error_comes_behind_the_items_before_it_and_is_the_end(thread):
    def broken():
        yield 0
        yield 1
        raise OSError("the disk is gone")

    ahead = Ahead(broken(), 5, thread)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert list(ahead) == []
    ahead.close()


def test_closing_ends_the_generator_in_the_middle(thread):
    ended = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            ended.append(True)

    ahead = Ahead(endless(), 2, thread)
    next(ahead)
    ahead.close()
    thread.shutdown()
    assert ended == [True]


def test_several_generators_run_at_once_and_come_in_turn():
    delays, running = random.Random(1), []

    def numbers(first):
        running.append(first)
        yield from (item.number for item in items(range(first, first + 3), delays=delays))

    taken = []
    for k, ahead in enumerate(several_ahead((numbers(10 * n) for n in range(6)), 3, 2)):
        settled(lambda k=k: len(running) >= min(k + 3, 6))
        assert sorted(running) == [10 * n for n in range(min(k + 3, 6))]
        taken += ahead
    assert taken == [10 * n + i for n in range(6) for i in range(3)]


def test_generators_that_wait_for_each_other_meet():
    """Only because they run at the same time."""
    meeting = threading.Barrier(3)

    def one(number):
        meeting.wait()
        yield number

    assert [list(ahead) for ahead in several_ahead(map(one, range(6)), 3, 1)] == [
        [number] for number in range(6)
    ]


def test_all_that_have_begun_are_closed_when_the_rest_is_not_wanted():
    begun, ended = [], []

    def endless(number):
        begun.append(number)
        try:
            while True:
                yield number
        finally:
            ended.append(number)

    running = several_ahead(map(endless, range(9)), 3, 1)
    for number, ahead in enumerate(running):
        assert next(ahead) == number
        if number == 2:
            break
    running.close()
    assert sorted(ended) == sorted(begun) and {0, 1, 2} <= set(begun) <= {0, 1, 2, 3, 4}


# ------------------------------------------------------------------------------- behind


def test_calls_are_made_in_order_and_all_at_the_end():
    delays, done = random.Random(2), []

    def write(number):
        time.sleep(delays.random() / 200)
        done.append(number)

    with Behind(write, 2) as behind:
        for number in range(30):
            behind(number)
            assert len(done) >= number - 2
    assert done == list(range(30))


def test_calls_that_wait_are_bounded():
    alive, permits, handed = weakref.WeakSet(), threading.Semaphore(0), []

    def hand_over():
        with Behind(lambda item: permits.acquire(), 3) as behind:
            for item in items(range(20), alive):
                handed.append(item.number)
                behind(item)

    producer = threading.Thread(target=hand_over)
    producer.start()
    for done in range(16):
        # Three were handed over, and one more is in the producer's hand.
        settled(lambda done=done: len(handed) >= done + 4)
        assert len(handed) == done + 4 and len(alive) <= 5
        permits.release()
    for _ in range(4):
        permits.release()
    producer.join()
    assert len(alive) == 0


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_what_was_handed_over_before_an_error_is_done(error):
    done, go_on = [], threading.Event()

    def write(number):
        go_on.wait()
        done.append(number)

    with pytest.raises(type(error)):
        with Behind(write, 5) as behind:
            for number in range(4):
                behind(number)
            go_on.set()
            raise error
    assert done == [0, 1, 2, 3]


def test_after_a_call_that_fails_none_is_made_and_its_error_is_raised():
    done = []

    def write(number):
        if number == 2:
            raise OSError("the disk is full")
        done.append(number)

    with pytest.raises(OSError, match="the disk is full"):
        with Behind(write, 2) as behind:
            for number in range(10):
                behind(number)
    assert done == [0, 1]


def test_the_error_of_the_last_call_is_raised_too():
    with pytest.raises(ZeroDivisionError):
        with Behind(lambda: 1 / 0, 5) as behind:
            behind()


def test_a_second_interrupt_drops_what_waits_but_not_the_call_under_way(monkeypatch):
    started, go_on, done = threading.Event(), threading.Event(), []

    def write(number):
        started.set()
        go_on.wait()
        done.append(number)

    behind = Behind(write, 5)
    shutdown = behind._thread.shutdown

    def interrupted(**options):
        if not options:  # the first wait for the thread
            raise KeyboardInterrupt
        go_on.set()
        shutdown(**options)

    monkeypatch.setattr(behind._thread, "shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with behind:
            for number in range(4):
                behind(number)
            started.wait()
    assert done == [0]
