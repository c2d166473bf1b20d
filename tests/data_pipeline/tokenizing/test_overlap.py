"""Items come out in the order they went in, however long each takes, and not too many at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipeline.tokenizing.overlap import in_order


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_the_order_is_kept_and_few_are_taken_ahead(num_threads: int) -> None:
    threads = ThreadPoolExecutor(num_threads) if num_threads else None
    taken, done = [], 0

    def items():
        for number in range(30):
            taken.append(number)
            assert len(taken) - done <= 7
            yield number

    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    for place, result in enumerate(in_order(threads, slow, items(), ahead=5)):
        assert result == place * place
        done += 1
    assert done == 30


def test_an_error_comes_at_its_place_and_ends_the_work() -> None:
    started, lock = [], threading.Lock()

    def call(number: int) -> int:
        with lock:
            started.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    with ThreadPoolExecutor(1) as threads:
        results = in_order(threads, call, range(100), ahead=4)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)
    assert max(started) < 20
