"""The protocol's words: requests read once into typed values, replies written once.

A request is ``{kind, head: {corrId, version}, data}``, its reply the same with
``head.status``; from 400 up `data` is a bare string. `param` and `value` are
carried as the JSON they came as: the engine never looks inside.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw
from resonate_base import PROTOCOL_VERSION

from service.engine.rules import Promise, PromiseState, Task, TaskState

__all__ = [
    "Action",
    "ActionHead",
    "Call",
    "CallbackRegister",
    "Heartbeat",
    "ListenerRegister",
    "Malformed",
    "Named",
    "PromiseCreate",
    "PromiseOut",
    "PromiseSearch",
    "PromiseSettle",
    "Reply",
    "ReplyEnvelope",
    "ScheduleCreate",
    "ScheduleOut",
    "ScheduleSearch",
    "TaskAcquire",
    "TaskCreate",
    "TaskFence",
    "TaskFulfill",
    "TaskOut",
    "TaskRef",
    "TaskSearch",
    "TaskSuspend",
    "Tick",
    "decode",
    "encode_reply",
    "execute_message",
    "promise_out",
    "read_call",
    "read_value",
    "reply_to",
    "task_out",
    "unblock_message",
]

_EMPTY: Final = Raw(b"{}")

#: SQLite's integers are 64 bits; half of that leaves room for sums.
_MS_MAX: Final = 1 << 62

type Id = Annotated[str, Meta(min_length=1)]
type Millis = Annotated[int, Meta(ge=0, le=_MS_MAX)]
type Ttl = Annotated[int, Meta(ge=1, le=_MS_MAX)]
type Version = Annotated[int, Meta(ge=0, le=_MS_MAX)]
type PageSize = Annotated[int, Meta(ge=1, le=1000)]


class Malformed(Exception):
    """A request does not have the shape of its kind; answered with status 400."""


# -- requests ---------------------------------------------------------------------------------------


class _In(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """A request's data. Unknown fields are let be, as the server does."""


class Named(_In, frozen=True):
    """``promise.get``, ``task.get``, ``task.halt``, ``task.continue``, ``schedule.get`` and ``.delete``."""

    id: Id


class PromiseCreate(_In, frozen=True):
    """``promise.create``, alone or inside ``task.create`` and ``task.fence``."""

    id: Id
    timeout_at: Millis
    param: Raw = _EMPTY
    tags: dict[str, str] = {}


class PromiseSettle(_In, frozen=True):
    """``promise.settle``, alone or inside ``task.fulfill`` and ``task.fence``."""

    id: Id
    state: str
    value: Raw = _EMPTY


class CallbackRegister(_In, frozen=True):
    """``promise.register_callback``, alone or inside ``task.suspend``."""

    awaited: Id
    awaiter: Id


class ListenerRegister(_In, frozen=True):
    """``promise.register_listener``."""

    awaited: Id
    address: str


class PromiseSearch(_In, frozen=True):
    """``promise.search``; pages are ordered by id."""

    state: PromiseState | None = None
    tags: dict[str, str] | None = None
    limit: PageSize | None = None
    cursor: str | None = None


class ActionHead(_In, frozen=True):
    """The head of a request carried inside another."""

    corr_id: str = ""


class Action[D](msgspec.Struct, frozen=True, gc=False):
    """A request carried inside another."""

    data: D
    kind: str = ""
    head: ActionHead = ActionHead()


class TaskCreate(_In, frozen=True):
    """``task.create``: a promise and the lease on its task in one step."""

    pid: Id
    ttl: Ttl
    action: Action[PromiseCreate]


class TaskAcquire(_In, frozen=True):
    """``task.acquire``."""

    id: Id
    version: Version
    pid: Id
    ttl: Ttl


class TaskRef(_In, frozen=True):
    """``task.release``, and one of a heartbeat's tasks."""

    id: Id
    version: Version


class TaskFence(_In, frozen=True):
    """``task.fence``: a create or a settle that only the task's holder may do."""

    id: Id
    version: Version
    action: Action[Raw]


class Heartbeat(_In, frozen=True):
    """``task.heartbeat``."""

    pid: Id
    tasks: list[TaskRef]


class TaskSuspend(_In, frozen=True):
    """``task.suspend``."""

    id: Id
    version: Version
    actions: list[Action[CallbackRegister]]


class TaskFulfill(_In, frozen=True):
    """``task.fulfill``."""

    id: Id
    version: Version
    action: Action[PromiseSettle]


class TaskSearch(_In, frozen=True):
    """``task.search``; pages are ordered by id."""

    state: TaskState | None = None
    limit: PageSize | None = None
    cursor: str | None = None


class ScheduleCreate(_In, frozen=True):
    """``schedule.create``; `promise_timeout` is a length of time in ms."""

    id: Id
    cron: Id
    promise_id: Id
    promise_timeout: Millis
    promise_param: Raw = _EMPTY
    promise_tags: dict[str, str] = {}


class ScheduleSearch(_In, frozen=True):
    """``schedule.search``; pages are ordered by id."""

    tags: dict[str, str] | None = None
    limit: PageSize | None = None
    cursor: str | None = None


class Tick(_In, frozen=True):
    """``debug.tick``: fire what is due at `time`."""

    time: Millis


class _Head(msgspec.Struct, frozen=True, rename="camel", gc=False):
    corr_id: str = ""
    version: str = PROTOCOL_VERSION
    debug_time: Millis | None = msgspec.field(default=None, name="resonate:debug_time")


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    kind: str
    head: _Head = _Head()
    data: Raw = _EMPTY


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request, its envelope read and its data not yet."""

    kind: str
    corr_id: str
    data: Raw
    debug_time: int | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}


def read_call(request: str | bytes) -> Call:
    """Read a request's envelope. Raises Malformed where even that can't be read."""
    try:
        envelope = _ENVELOPE.decode(request)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Malformed(f"not a request: {exc}") from exc
    head = envelope.head
    if head.version != PROTOCOL_VERSION:
        raise Malformed(f"version {head.version!r} is not {PROTOCOL_VERSION}")
    return Call(envelope.kind, head.corr_id, envelope.data, head.debug_time)


def decode[D: msgspec.Struct](data: Raw, shape: type[D]) -> D:
    """Read a request's data. Raises Malformed with the path of what is wrong."""
    decoder = _DECODERS.get(shape)
    if decoder is None:
        decoder = _DECODERS[shape] = msgspec.json.Decoder(shape)
    try:
        read: D = decoder.decode(data)
    except msgspec.DecodeError as exc:
        raise Malformed(f"Invalid request: {exc}") from exc
    return read


def read_value(value: Raw) -> bytes:
    """Return a value's JSON object; null reads as the empty one. Raises Malformed for anything else."""
    text = bytes(value)
    if text[:1] == b"{":
        return text
    if text == b"null":
        return b"{}"
    raise Malformed("Invalid request: a value is an object with `headers` and `data`")


# -- replies ----------------------------------------------------------------------------------------


class PromiseOut(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """A promise record as answered."""

    id: str
    state: PromiseState
    param: Raw
    value: Raw
    tags: Raw
    timeout_at: int
    created_at: int
    settled_at: int | None = None


class TaskOut(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """A task record as answered."""

    id: str
    state: TaskState
    version: int
    resumes: int
    ttl: int | None = None
    pid: str | None = None


class ScheduleOut(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """A schedule record as answered."""

    id: str
    cron: str
    promise_id: str
    promise_timeout: int
    promise_param: Raw
    promise_tags: Raw
    created_at: int
    next_run_at: int
    last_run_at: int | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A status and its data; from 400 up the data is a sentence."""

    status: int
    data: Any


class _ReplyHead(msgspec.Struct, frozen=True, rename="camel", gc=False):
    corr_id: str
    status: int
    version: str = PROTOCOL_VERSION


_ENCODER = msgspec.json.Encoder()


class ReplyEnvelope(msgspec.Struct, frozen=True, gc=False):
    """A reply with its head: a whole message, or the inner half of a fence's."""

    kind: str
    head: _ReplyHead
    data: Any


def reply_to(kind: str, corr_id: str, reply: Reply) -> ReplyEnvelope:
    """Return a reply in its envelope."""
    return ReplyEnvelope(kind, _ReplyHead(corr_id, reply.status), reply.data)


def encode_reply(kind: str, corr_id: str, reply: Reply) -> bytes:
    """Write a reply in its envelope."""
    return _ENCODER.encode(reply_to(kind, corr_id, reply))


def promise_out(promise: Promise) -> PromiseOut:
    """Return the record of a promise, which the caller has projected."""
    return PromiseOut(
        promise.id,
        promise.state,
        Raw(promise.param),
        Raw(promise.value),
        Raw(promise.tags),
        promise.timeout_at,
        promise.created_at,
        promise.settled_at,
    )


def task_out(id_: str, task: Task) -> TaskOut:
    """Return the record of a task, which the caller has viewed beside its promise."""
    return TaskOut(id_, task.state, task.version, task.resumes, task.ttl, task.pid)


def execute_message(id_: str, version: int) -> str:
    """Return the message that offers a task."""
    message = {"kind": "execute", "head": {}, "data": {"task": {"id": id_, "version": version}}}
    return _ENCODER.encode(message).decode()


def unblock_message(promise: PromiseOut) -> str:
    """Return the message that tells a listener what its promise became."""
    return _ENCODER.encode({"kind": "unblock", "head": {}, "data": {"promise": promise}}).decode()
