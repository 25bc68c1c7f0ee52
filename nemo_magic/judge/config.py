"""Configuration of the judge: where it is, how patient the client is, what the server accepts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from nemo_magic.config_checks import CheckedConfig, Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_magic.net.endpoint import EndpointConfig
from nemo_magic.net.hosts import is_loopback


@dataclass
class JudgeServerConfig(CheckedConfig):
    """Where a server listens and what it accepts.

    ``port`` 0 lets the system choose. ``max_items`` per request, ``max_chars`` per item (all texts together) and
    ``max_body_mb`` per request body (10^6 bytes) are answered with 413 when exceeded. While ``max_pending`` items are
    under judgement, or when judging takes more than ``request_timeout`` seconds, a request is answered with 503: come
    again. So is a connection while ``max_connections`` are open. ``drain_timeout``: seconds that requests in flight get
    to finish at shutdown. ``probe_interval``: seconds between looks at whether the guard still judges. ``log_texts``:
    write the conversations to the log too; they may be harmful.
    """

    KEY: ClassVar[str] = "judge.server"

    host: str = "127.0.0.1"
    port: Annotated[int, Interval(ge=0, le=65535)] = 0
    max_items: PositiveInt = 256
    max_chars: PositiveInt = 100_000
    max_body_mb: PositiveFloat = 32.0
    max_pending: PositiveInt = 8192
    max_connections: PositiveInt = 4096
    request_timeout: PositiveFloat = 300.0
    drain_timeout: NonNegativeInt = 10
    probe_interval: PositiveFloat = 30.0
    log_texts: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


@dataclass
class JudgeClientConfig(EndpointConfig):
    """Judges that run somewhere, and how patient a client of theirs is: the keys of EndpointConfig and these.

    Every rank has a client, which sends ``batch_size`` items a request. The items of an answer that breaks the protocol
    each time are unknown. ``expect``: the guard that has to judge, as ``name@revision``; null: whichever answers first.
    Replicas that are another are refused. ``hedge``: a request that takes longer than 95 % of those before it is sent
    to a second replica too, and the first answer is used.
    """

    KEY: ClassVar[str] = "judge"

    batch_size: PositiveInt = 64
    expect: str | None = None
    hedge: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hedge and len(self.urls) == 1:
            raise ValueError(
                f"{self.KEY}.hedge asks a second replica: {self.KEY}.urls={list(self.urls)} names only one"
            )


@dataclass
class JudgeAuditConfig(JudgeClientConfig):
    """The second judge, which gets ``judge.audit_fraction`` of the samples. Nobody waits for it.

    Figures are over the last ``window`` samples of every rank. While ``max_pending`` samples of a rank wait for it,
    further ones are not sent.
    """

    KEY: ClassVar[str] = "judge.audit"

    max_concurrency: PositiveInt = 2
    window: PositiveInt = 1024
    max_pending: PositiveInt = 1024


@dataclass
class JudgeConfig(JudgeClientConfig):
    """The judge of a run.

    ``launch``: start one on this machine with the run, instead of ``urls``. ``guard``: the guard that judges, with
    ``guard_config`` as its settings (``rules``: ``world``, the sandbox's world file). More than ``max_unknown_share``
    of a step's samples unknown stops the run. ``audit_fraction``: share of the samples that ``audit`` judges as well,
    for the record only.
    """

    launch: bool = False
    guard: str = "rules"
    guard_config: dict[str, Any] = field(default_factory=dict)
    max_unknown_share: Fraction = 0.1
    audit_fraction: Fraction = 0.0
    audit: JudgeAuditConfig = field(default_factory=JudgeAuditConfig)
    server: JudgeServerConfig = field(default_factory=JudgeServerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.audit, dict):  # as JSON has it, for a server in a process of its own
            self.audit = JudgeAuditConfig(**self.audit)
        if self.urls and self.launch:
            raise ValueError(f"judge.launch starts a judge with the run: judge.urls={list(self.urls)} must be empty")
        if self.audit_fraction and not self.audit.urls:
            raise ValueError(
                f"judge.audit_fraction={self.audit_fraction} asks a second judge: name it in judge.audit.urls"
            )

    def at(self, url: str) -> JudgeConfig:
        """The same judge, already running at ``url``."""
        return replace(self, urls=[url], launch=False)
