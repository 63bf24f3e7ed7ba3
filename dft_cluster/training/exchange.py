"""Equal ranks of the two groups meet: deltas go one way, the core comes back, in chunks of bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 21  # elements under way at once: 8 MiB of fp32


class Pair:
    """A process group of two: 0 is the old group's rank, 1 the new group's."""

    def __init__(self, name: str, address: str, port: int, side: int, timeout: float) -> None:
        from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, TCPStore

        wait = timedelta(seconds=timeout)
        store = TCPStore(address, port, 2, is_master=side == 0, timeout=wait)
        self._group: Any = ProcessGroupGloo(PrefixStore(name, store), side, 2, wait)
        self._store = store
        self.side, self._other = side, 1 - side

    def send(self, tensor: Tensor) -> Any:
        """Starts sending; the tensor must stay as it is until the returned work is waited for."""
        return self._group.send([tensor], self._other, 0)

    def receive(self, tensor: Tensor) -> Any:
        return self._group.recv([tensor], self._other, 0)


def chunks(buffers: Sequence[Tensor]) -> Iterator[tuple[int, int, int]]:
    """(buffer, start, stop) of every chunk, the same on both sides of a pair."""
    for number, buffer in enumerate(buffers):
        for start in range(0, buffer.numel(), CHUNK):
            yield number, start, min(start + CHUNK, buffer.numel())


def send_all(pair: Pair, tensors: Iterable[Tensor]) -> None:
    """Sends one after the other; the next is made while the last is under way."""
    waiting: tuple[Any, Tensor] | None = None
    for tensor in tensors:
        leaving = tensor.cpu()
        work = pair.send(leaving)
        if waiting is not None:
            waiting[0].wait()
        waiting = (work, leaving)
    if waiting is not None:
        waiting[0].wait()


def receive_all(pair: Pair, into: Sequence[Tensor]) -> Iterator[tuple[int, int, int]]:
    """Receives into buffers laid out like the sender's, and yields each chunk as it has come."""
    places = list(chunks(into))
    landing = [into[n][a:b] if into[n].device.type == "cpu" else torch.empty(b - a) for n, a, b in places[:1]]
    work: Any = pair.receive(landing[0]) if places else None
    for index, (number, start, stop) in enumerate(places):
        work.wait()
        arrived = landing.pop()
        if index + 1 < len(places):
            n, a, b = places[index + 1]
            landing.append(into[n][a:b] if into[n].device.type == "cpu" else torch.empty(b - a))
            work = pair.receive(landing[0])
        if into[number].device.type != "cpu":
            into[number][start:stop].copy_(arrived)
        yield number, start, stop


class SparseSender:
    """Sends chosen elements of every chunk, as a bitmap and the packed values; one chunk is under way while the next is made."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._waiting: list[tuple[Any, Tensor]] = []

    def send(self, mask: np.ndarray, values: Tensor) -> None:
        self.finish()
        for tensor in (torch.from_numpy(np.packbits(mask)), values):
            if tensor.numel():
                self._waiting.append((self._pair.send(tensor), tensor))

    def finish(self) -> None:
        """Waits for what is under way."""
        for work, _ in self._waiting:
            work.wait()
        self._waiting.clear()


def receive_sparse(pair: Pair, into: Sequence[Tensor]) -> None:
    """Writes what a `SparseSender` sent over the elements it names."""
    for number, start, stop in chunks(into):
        bits = torch.empty((stop - start + 7) // 8, dtype=torch.uint8)
        pair.receive(bits).wait()
        mask = np.unpackbits(bits.numpy(), count=stop - start).view(bool)
        picked = torch.empty(int(np.count_nonzero(mask)))
        if picked.numel():
            pair.receive(picked).wait()
            scatter(into[number][start:stop], torch.from_numpy(np.flatnonzero(mask)), picked)


def gather(values: Tensor, places: Tensor) -> Tensor:
    """values[places], as a copy."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().take(places.numpy()))
    return values[places.to(values.device)]


def scatter(target: Tensor, places: Tensor, values: Tensor) -> None:
    """target[places] = values, in place."""
    if target.device.type == "cpu":
        target.numpy()[places.cpu().numpy()] = values.cpu().numpy()  # masters lie here where they are offloaded
    else:
        target[places.to(target.device)] = values.to(target.device)
