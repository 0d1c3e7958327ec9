"""A desk with a real store and a real waiting room; the line is a list of what was said on it."""

from __future__ import annotations

import json

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.desk import Desk
from edge_runtime.daemon.messages import Message
from edge_runtime.daemon.requests import Parser
from edge_runtime.daemon.store import Store
from edge_runtime.daemon.topics import Topics
from edge_runtime.settings import LimitsSettings, Settings

SETTINGS = Settings(limits=LimitsSettings(queue=2, payload_bytes=100_000, attempts=2))


class Line:
    """What the desk publishes and acknowledges, in order; `fails` is raised by the next publication."""

    def __init__(self):
        self.topics = Topics("p", "box")
        self.said = []
        self.deltas = []

    def publish(self, topic, body, correlation=None, token=None):
        self.said.append(("publish", topic, json.loads(body), correlation, token))

    def publish_delta(self, topic, body, correlation=None):
        self.deltas.append((topic, json.loads(body)))

    def acknowledge(self, message):
        self.said.append(("ack", message.mid))

    @property
    def answers(self):
        return [(said[1], said[2]) for said in self.said if said[0] == "publish"]

    @property
    def tokens(self):
        return [said[4] for said in self.said if said[0] == "publish"]

    @property
    def acks(self):
        return [said[1] for said in self.said if said[0] == "ack"]


class Office:
    """A desk that works when it is told to; `restart` is another process with the same file."""

    def __init__(self, folder, settings=SETTINGS):
        self.folder, self.settings = folder, settings
        self.mid = 0
        self.store = None
        self.restart()

    def restart(self):
        if self.store:
            self.store.close()
        self.store = Store(self.folder / "requests.db", 100, 3600)
        self.room = Admission(self.settings.limits.queue, self.settings.limits.per_client)
        self.line = Line()
        self.desk = Desk(self.store, self.room, Parser(self.settings, "fake", 128))
        self.desk.restore(self.line)

    def message(self, body, name="ask", **more):
        self.mid += 1
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"response_topic": None, "correlation": None, "expiry_s": None, "mid": self.mid, "size": len(payload)}
        return Message(name, payload, answer_topic="p/box/answer", **(fields | more))

    def send(self, *messages):
        for message in messages:
            self.desk.arrived(message)
        self.work()

    def work(self):
        events = list(self.desk._inbox)
        self.desk._inbox.clear()
        self.desk._work(events)
        self.desk._held = 0

    def ask(self, body, **more):
        message = self.message(body, **more)
        self.send(message)
        return message

    def serve(self):
        """Answers everything that waits; the ids in order."""
        served = []
        while self.room._heap:
            ticket = self.room.next().ticket
            self.desk.begin(ticket)
            self.desk.finish(ticket, {"id": ticket.id, "text": "done"})
            self.room.done(0.1)
            served.append(ticket.id)
        return served

    def deliver_all(self, problem=None):
        for token in self.line.tokens:
            self.desk.delivered(token, problem)
        self.work()


def code(answer):
    return answer[1]["error"]["code"]
