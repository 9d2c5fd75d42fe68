"""What a person does: types `/preview` on the pull request's page, sees the conversation change, clicks the URL."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from prevue.local.client import LocalGitHub, wait_for
from prevue.local.cluster.packages import ensure_installed

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.browser, pytest.mark.timeout(600)]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1200,1000", "--no-proxy-server",
)  # fmt: skip
SCREENSHOTS = Path(".prevue") / "screenshots"


class Page:
    """One tab of Chromium, driven by its own debugging protocol over a pipe.

    https://chromedevtools.github.io/devtools-protocol/
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._session = ""

    async def open(self, url: str) -> None:
        """Open the tab."""
        target = await self._call("Target.createTarget", url=url)
        self._session = (await self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = await self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait(self, expression: str, *, seconds: float = 20) -> Any:
        """Wait until a JavaScript expression is true."""

        async def look() -> Any | None:
            return await self.evaluate(expression) or None

        return await wait_for(look, seconds=seconds, what=expression)

    async def click(self, element: str) -> None:
        """Click with the mouse in the middle of what a JavaScript expression names."""
        await self.wait(f"!!({element})")
        place = await self.evaluate(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            " return {x: r.left + r.width / 2, y: r.top + r.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self._call("Input.insertText", text=text)

    async def screenshot(self, path: Path) -> None:
        """Save what is to be seen."""
        shown = await self._call("Page.captureScreenshot", format="png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shown["data"]))  # noqa: ASYNC240 -- a small file

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": parameters, **({"sessionId": self._session} if self._session else {})}
        self._writer.write(json.dumps(request).encode() + b"\0")
        async with asyncio.timeout(30):
            while True:
                answer = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    result: dict[str, Any] = answer["result"]
                    return result


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """A Chromium with one tab, which is gone afterwards."""
    ensure_installed({"chromium": "chromium"}, print)
    commands_in, commands = os.pipe()
    answers, answers_in = os.pipe()
    browser = await asyncio.create_subprocess_exec(
        "/bin/bash", "-c", f'exec chromium "$@" 3<&{commands_in} 4>&{answers_in}', "chromium",
        *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={tmp_path / 'profile'}", "about:blank",
        pass_fds=(commands_in, answers_in), start_new_session=True, env={**os.environ, "HOME": str(tmp_path)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(commands_in)
    os.close(answers_in)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    incoming, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answers, "rb"))
    outgoing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(commands, "wb"))
    try:
        yield Page(reader, asyncio.StreamWriter(outgoing, protocol, None, loop))
    finally:
        incoming.close()
        outgoing.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, 9)
        await browser.wait()


async def test_a_person_asks_for_a_preview_and_looks_at_it(github: LocalGitHub, page: Page) -> None:
    pull = await github.open_pull()
    await page.open(f"{github.url}/{pull.repo}/pull/{pull.number}")

    await page.click("document.querySelector('textarea[name=body]')")
    await page.type("/preview")
    await page.click("[...document.querySelectorAll('form button.primary')].find(b => b.textContent === 'Comment')")

    link = "[...document.querySelectorAll('a')].find(a => a.closest('article, .comment, li, section') && a.textContent === a.href"
    link += " && /Preview ready/.test(a.parentElement.textContent))"
    await page.wait(f"!!({link})", seconds=90)
    await page.wait("document.getAnimations().every(animation => animation.playState !== 'running')")
    await page.screenshot(SCREENSHOTS / "conversation.png")
    url = await page.evaluate(f"({link}).href")
    await page.click(link)
    await page.wait(f"location.href === {json.dumps(url)}")

    assert await page.wait("document.querySelector('#commit')?.textContent") == pull.head_sha
    await page.screenshot(SCREENSHOTS / "preview.png")
