"""Chat templates and tokenization of a server's prompts: conversations through a confined process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import LccError
from lcc.serving.protocol import Refusal
from lcc.tasks.encode import needs_bos, plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_SECONDS = 5.0
START_SECONDS = 120.0
LINE_BYTES = 64 * 2**20
SHORT = 2000  # characters that the event loop tokenizes by itself


class ChatTemplateProcess:
    """Keeps one `template_process` process; another is started where it was killed."""

    def __init__(self, folder: Path, *, seconds: float = TEMPLATE_SECONDS) -> None:
        self._folder, self._seconds = folder, seconds
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Start the process and wait until it answers."""
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "HOME": os.environ.get("HOME", "/"),
            "USE_TORCH": "0",
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "lcc.serving.template_process",
            str(self._folder),
            stdin=PIPE,
            stdout=PIPE,
            env=environment,
            limit=LINE_BYTES,
        )
        if not await self._line(START_SECONDS):
            await self.close()
            raise LccError("the process that renders chat templates does not start.")

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The conversation's tokens, an answer's beginning last; raises Refusal where it cannot."""
        # A client that leaves must not leave its answer to the next one's question.
        return await asyncio.shield(asyncio.ensure_future(self._ids(messages)))

    async def _ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        async with self._turn:
            if self._process is None:
                await self.open()
            answer = await self._request(json.dumps(messages).encode() + b"\n")
            if answer is None:
                await self.close()
                raise Refusal(
                    400,
                    f"the model's chat template did not finish on these messages within {self._seconds:g} s.",
                    param="messages",
                )
        if "error" in answer:
            raise Refusal(
                400, f"the model's chat template refuses these messages: {answer['error']}", param="messages"
            )
        return list(answer["ids"])

    async def _request(self, line: bytes) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line)
        try:
            await self._process.stdin.drain()
        except ConnectionError:
            return None
        return await self._line(self._seconds)

    async def _line(self, seconds: float) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds)
        except (TimeoutError, ValueError):
            return None
        reply: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return reply


async def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text to go on with, one BOS where one is due."""
    ids = await elsewhere(len(text), plain_ids, text, tokenizer)
    return [int(tokenizer.bos_token_id), *ids] if needs_bos(tokenizer) else ids


async def elsewhere(size: int, call: Any, *arguments: Any) -> Any:
    """`call` of a long text in a thread, as the event loop must go on; of a short one here."""
    return call(*arguments) if size <= SHORT else await asyncio.to_thread(call, *arguments)
