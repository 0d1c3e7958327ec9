"""A waiting room with a worker and a model that echoes, and one who hears the news."""

from __future__ import annotations

import contextlib
import threading

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.local import LocalRequests
from edge_runtime.daemon.requests import Parser
from edge_runtime.daemon.worker import Worker


class News:
    def __init__(self):
        self.told, self.hints, self.retained = [], [], {}
        self.changed = threading.Condition()

    def tell(self, topic, body):
        with self.changed:
            self.told.append((topic, body))
            self.changed.notify_all()

    def hint(self, topic, body):
        self.hints.append((topic, body))

    def retain(self, topic, payload):
        with self.changed:
            self.retained[topic] = payload
            self.changed.notify_all()

    def wait(self, count):
        self.wait_for(lambda: len(self.told) >= count)
        return self.told

    def wait_for(self, ready):
        with self.changed:
            assert self.changed.wait_for(ready, 20), (self.told, self.retained)


class House:
    def __init__(self, settings, model):
        self.settings = settings
        self.news = News()
        self.room = Admission(8, 4)
        self.parser = Parser(settings, "fake", 128)
        self.local = LocalRequests(self.room, self.parser)
        self.senses = None

    def work(self, model):
        worker = Worker(self.room, model, self.settings.limits, self.senses)
        self.thread = threading.Thread(target=worker.run, daemon=True)
        self.thread.start()


@contextlib.contextmanager
def house(settings, model, senses=None):
    """`senses` makes them, given the house."""
    built = House(settings, model)
    if senses is not None:
        built.senses = senses(built)
    built.work(model)
    try:
        yield built
    finally:
        model.gate.set()
        built.room.close()
        built.thread.join(20)
        assert not built.thread.is_alive()
