"""A stand-in for a CUDA device, whose streams carry out their work late and in any legal order."""

import random
import threading
import weakref
from collections import deque
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch")


class Late(torch.Tensor):
    """A tensor on the host whose asynchronous copies are left to the current stream."""

    machine = None

    def copy_(self, source, non_blocking=False):
        if not non_blocking:
            return super().copy_(source)
        target, data = self.as_subclass(torch.Tensor), source.as_subclass(torch.Tensor)
        self.machine.current_stream().add(lambda: target.copy_(data))
        return self


class Event:
    """Completed as often as the records of it have been carried out."""

    def __init__(self, machine):
        self.machine, self.recorded, self.completed = machine, 0, 0

    def record(self, stream):
        self.recorded += 1
        stream.add(self._complete)

    def _complete(self):
        self.completed += 1

    def synchronize(self):
        wanted = self.recorded
        self.machine.run_until(lambda: self.completed >= wanted)


class Stream:
    """Carries out what is added to it in order."""

    def __init__(self, machine):
        self.machine, self.work = machine, deque()
        machine.streams.append(self)

    def add(self, do, ready=lambda: True):
        with self.machine.lock:
            self.work.append((ready, do))
            self.machine.run_some()

    def wait_event(self, event):
        wanted = event.recorded
        self.add(lambda: None, lambda: event.completed >= wanted)

    def wait_stream(self, other):
        event = Event(self.machine)
        event.record(other)
        self.wait_event(event)


class Machine:
    """A device that is put into the place of ``torch.cuda`` and its memory.

    Parameters
    ----------
    monkeypatch : pytest.MonkeyPatch
        Takes it away again.
    seed : int
        Chooses the order in which streams go on.
    haste : float
        From 0, where work is carried out when it is waited for, to 1, where it is at once.
    n_floats : float
        Memory of the device, in entries of tensors that are alive.
    """

    def __init__(self, monkeypatch, seed, haste=0.5, n_floats=float("inf")):
        self.random, self.haste, self.lock = random.Random(seed), haste, threading.RLock()
        self.n_floats, self.most_in_use, self.tensors = n_floats, 0, []
        self.streams, self.local = [], threading.local()
        self.default = Stream(self)
        self.empty = torch.empty
        monkeypatch.setattr(Late, "machine", self)
        monkeypatch.setattr(torch, "empty", self.allocate)
        for name, value in {
            "Stream": lambda device: Stream(self),
            "Event": lambda: Event(self),
            "stream": self.stream,
            "current_stream": self.current_stream,
            "synchronize": lambda device: self.run_until(self.is_idle),
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @property
    def in_use(self):
        """Entries of the memory that is alive."""
        alive = [tensor for tensor in (each() for each in self.tensors) if tensor is not None]
        return sum(each.untyped_storage().nbytes() // each.itemsize for each in alive)

    def allocate(self, *size, dtype=None, device=None, pin_memory=False):
        """Return memory with nothing in it that one may rely on."""
        tensor = self.empty(*size, dtype=dtype).fill_(torch.nan).as_subclass(Late)
        if device != "cpu":
            if self.in_use + tensor.numel() > self.n_floats:
                raise torch.OutOfMemoryError("out of memory")
            self.tensors.append(weakref.ref(tensor))
            self.most_in_use = max(self.most_in_use, self.in_use)
            # Until the stream has got here, work of who had the memory before may be under way,
            # and once it is given back, that of who gets it next.
            stream, memory = self.current_stream(), tensor.as_subclass(torch.Tensor)
            stream.add(lambda: memory.fill_(torch.nan))
            weakref.finalize(tensor, self._give_back, stream, memory)
        return tensor

    def _give_back(self, stream, memory):
        if memory.untyped_storage().nbytes() and not self.is_idle():
            stream.add(lambda: memory.fill_(torch.nan))

    def computed(self, function, n_scratch=0):
        """Return a function whose results are there once the stream has got to them."""

        def start(block):
            scratch = torch.empty(len(block), n_scratch, dtype=torch.float64)
            result = torch.empty(len(block), dtype=torch.float64)
            data, target = (each.as_subclass(torch.Tensor) for each in (block, result))
            self.current_stream().add(lambda: target.copy_(function(data)))
            del scratch
            return result

        return start

    @contextmanager
    def stream(self, stream):
        before, self.local.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self.local.stream = before

    def current_stream(self, device=None):
        return getattr(self.local, "stream", self.default)

    def is_idle(self):
        return not any(stream.work for stream in self.streams)

    def run_some(self):
        while self.random.random() < self.haste and self._step():
            pass

    def run_until(self, done):
        while True:
            with self.lock:
                if done():
                    return
                assert self._step(), "everything waits"

    def _step(self):
        able = [stream for stream in self.streams if stream.work and stream.work[0][0]()]
        if able:
            self.random.choice(able).work.popleft()[1]()
        return bool(able)
