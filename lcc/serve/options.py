"""What `serve.key=value` may say: where to listen, and how much a client may ask for."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lcc.core.decode import card
from lcc.core.errors import DataError, SafetyError

KEY_VARIABLE = "LCC_API_KEY"
MIN_KEY = 16  # characters
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


@card
class ServeOptions:
    """Where to listen and what is too much.

    `port` 0 takes a free one. The key comes from the environment variable LCC_API_KEY or from
    `key_file`, never from the command line, which other users of a machine can read. `origins` are
    those of other sites whose pages may ask (CORS); `hosts` names by which this server may be
    called beside its own address. At most `slots` answers are written at once and `queue` wait.
    A request must have arrived within `read_seconds`; a client must take what is written within
    `write_seconds`; an answer waits at most `queue_seconds` for a slot; after SIGTERM open answers
    have `drain_seconds`. `context` is the most tokens of prompt and answer (null: the model's).
    `prefix_mb` megabytes of what was read are kept for prompts that begin so (0: nothing).
    `temperature` is that of requests that name none (null: OpenAI's 1, if the engine samples).
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    name: str | None = None
    key_file: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    page: bool = True
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    slots: Annotated[int, Field(ge=1, le=1024)] = 16
    queue: Annotated[int, Field(ge=0)] = 64
    context: Count | None = None
    prefix_mb: Annotated[int, Field(ge=0)] = 256
    max_prompt_tokens: Count | None = None
    max_tokens: Count = 2048
    max_choices: Annotated[int, Field(ge=1, le=128)] = 8
    max_inputs: Annotated[int, Field(ge=1, le=2048)] = 64
    max_body_bytes: Annotated[int, Field(ge=1024)] = 2**20
    max_header_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**10
    max_connections: Count = 1024
    read_seconds: Seconds = 15.0
    write_seconds: Seconds = 30.0
    queue_seconds: Seconds = 30.0
    keep_alive_seconds: Count = 15
    drain_seconds: Count = 30

    def key(self) -> str | None:
        """The key that clients must show; raises SafetyError where one is needed and absent."""
        found = self._given_key()
        if found is not None and len(found) < MIN_KEY:
            raise SafetyError(
                f"the API key has fewer than {MIN_KEY} characters; make one with "
                "python -c 'import secrets; print(secrets.token_hex(32))'."
            )
        if found is None and not self.is_loopback:
            raise SafetyError(f"serve.host={self.host} can be reached by other machines, and no "
                              f"key is set; set {KEY_VARIABLE} or serve.key_file, or listen on "
                              "127.0.0.1.")  # fmt: skip
        return found

    def _given_key(self) -> str | None:
        if self.key_file is None:
            return os.environ.get(KEY_VARIABLE) or None
        path = Path(self.key_file)
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"serve.key_file: cannot read {path}: {error}.") from None
        # A group may read it: so do systemd's credentials and secrets shared with one service.
        if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            raise SafetyError(
                f"serve.key_file: others can read or change {path}; say chmod 600 {path}."
            )
        return text

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name may mean any address

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names in a Host header that are this server: another's page may rebind its own name."""
        return frozenset({*LOOPBACK_NAMES, self.host, *self.hosts})
