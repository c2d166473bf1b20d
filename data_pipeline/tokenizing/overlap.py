"""Work on items in the order in which they come, some of it done ahead in threads.

    with ThreadPoolExecutor(4) as threads:
        for picture in in_order(threads, decode, samples, ahead=8):     # samples' own order
            ...

Threads, not processes: decoding, resizing, hashing and a model's layers leave Python's lock, and
nothing has to be copied from one process to the other. Without threads each item is worked on when
it is asked for. What comes out is the same.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    threads: Executor | None, call: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`map(call, items)`, of which up to `ahead` items are taken and worked on beforehand."""
    if threads is None:
        yield from map(call, items)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(call, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
