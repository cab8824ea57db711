"""Who works on what: the pictures that were admitted, and the workers with what each has in hand."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from server.admission import Admitted
from server.errors import ServerError
from server.generation import Image, ImageRequest
from server.router import Load
from server.supervisor import State, Supervisor

MAX_FAILED_STARTS: Final = 5  # in a row: then nobody should wait for this worker any longer


@dataclass(eq=False, slots=True)
class Pending:
    """One admitted picture. `deadline` is on the loop's clock; `worker` is None while it waits for one."""

    request_id: str
    image: ImageRequest
    admitted: Admitted
    deadline: float | None
    answer: "asyncio.Future[Image]"
    attempts: int = 0
    worker: int | None = None


@dataclass(eq=False, slots=True)
class Worker:
    """A supervised process and the pictures that it has in hand."""

    supervisor: Supervisor
    in_hand: dict[str, Pending] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)  # cancelled, and not yet said to be forgotten
    alone: bool = False  # it is running a suspect, and nothing else may join
    quiet_since: float = 0.0  # when it last said something, or got something to do after having nothing

    def owes_an_answer(self) -> bool:
        """Whether silence is suspicious."""
        return bool(self.in_hand or self.owed)

    def load(self, index: int) -> Load:
        return Load(
            worker=index,
            backlog_s=sum(pending.admitted.cost_s for pending in self.in_hand.values()),
            sizes=frozenset((pending.image.width, pending.image.height) for pending in self.in_hand.values()),
        )


def is_hopeless(supervisor: Supervisor) -> bool:
    gone = supervisor.state in (State.REFUSED, State.STOPPED)
    return gone or (supervisor.state is State.LOST and supervisor.failures >= MAX_FAILED_STARTS)


def is_finished(pending: Pending) -> bool:
    """Whether it was answered with its picture."""
    answer = pending.answer
    return answer.done() and not answer.cancelled() and answer.exception() is None


def fail(pending: Pending, error: ServerError) -> None:
    if not pending.answer.done():
        pending.answer.set_exception(error)
