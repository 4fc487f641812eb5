"""A head that the workers of a Dask cluster hold, so that tasks carry only its name.

A task of `sklearn.model_selection.GridSearchCV` holds a whole estimator, and joblib sends once only
what is an argument by itself. So the head packs itself as a name while it is scattered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from skdice._compat.extras import import_extra

if TYPE_CHECKING:
    from skdice._head import LinearHead

# In the process of the client: names of the heads that are scattered.
_names: dict[LinearHead, str] = {}
# In the processes of the client and the workers: these heads.
_heads: dict[str, LinearHead] = {}


class _HeadElsewhere:
    """Stands for a head in a process that has none of its name, such as the scheduler's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _head_of_name, (self.name,)


def _head_of_name(name: str) -> LinearHead | _HeadElsewhere:
    return _heads.get(name) or _HeadElsewhere(name)


def _receive(name: str, head: LinearHead) -> None:
    _heads[name] = head


def _forget(name: str) -> None:
    _heads.pop(name, None)


def packed_by_name(head: LinearHead) -> tuple[Callable[..., Any], tuple[str]] | None:
    """Return how a head that is scattered is pickled, None for any other."""
    name = _names.get(head) if _names else None
    return None if name is None else (_head_of_name, (name,))


@contextmanager
def scattered(head: LinearHead, client: Any) -> Iterator[None]:
    """Give a head to the workers, also to those that come later, until the block ends."""
    distributed = import_extra("distributed", "dask")
    if not isinstance(client, distributed.Client):
        raise TypeError(f"client is a {type(client).__name__}, expected a distributed.Client")
    if head in _names:
        raise RuntimeError("this head is scattered already; leave the other block first")

    # Pickled as its code, and not as a name in this module: its globals would be copies.
    class HeadPlugin(distributed.WorkerPlugin):  # type: ignore[name-defined]
        def __init__(self, name: str, head: LinearHead) -> None:
            self.name, self.head = name, head

        def setup(self, worker: Any) -> None:
            _receive(self.name, self.head)

        def teardown(self, worker: Any) -> None:
            _forget(self.name)

    name = f"skdice-head-{uuid4().hex}"
    client.register_plugin(HeadPlugin(name, head))
    try:
        _names[head] = name
        _heads[name] = head
        yield
    finally:
        del _names[head], _heads[name]
        client.unregister_worker_plugin(name)
