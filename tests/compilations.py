"""How many programs are compiled."""

import contextlib

import jax

_seen = []


def _listen(event, duration, **_):
    del duration
    if event.endswith("backend_compile_duration"):
        _seen.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def counted():
    """A list with one entry for each program that was compiled, filled at the end."""
    before, found = len(_seen), []
    yield found
    found.extend(_seen[before:])
