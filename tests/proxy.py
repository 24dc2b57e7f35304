"""A reverse proxy for the tests: it forwards only requests below a prefix to a page."""

import asyncio
import threading

from aiohttp import ClientSession, WSMsgType, web

PREFIX = "/cams/gate"


class Proxy:
    """A context manager. Forwards http://127.0.0.1:PORT/cams/gate/... to a page's /...

    keep_host: the page gets the Host header of the request, not its own address.
    """

    def __init__(self, page, keep_host):
        self.target, self.keep_host = f"http://127.0.0.1:{page.port}", keep_host
        self.started, self.loop = threading.Event(), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.listen())
        self.started.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())
        self.loop.close()

    async def listen(self):
        app = web.Application()
        app.router.add_get(PREFIX, self.answer)
        app.router.add_get(PREFIX + "/{path:.*}", self.answer)
        app.router.add_post(PREFIX + "/{path:.*}", self.answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def answer(self, request):
        url = f"{self.target}/{request.match_info.get('path', '')}"
        kept = ("Authorization", "Cookie", "Origin", "Content-Type") + self.keep_host * ("Host",)
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        async with ClientSession() as session:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self.pass_on(request, session.ws_connect(url, headers=headers))
            body = await request.read()
            async with session.request(request.method, url, headers=headers, data=body) as answer:
                dropped = ("Connection", "Content-Encoding", "Content-Length", "Transfer-Encoding")
                headers = [pair for pair in answer.headers.items() if pair[0] not in dropped]
                body = await answer.read()
                response = web.Response(body=body, status=answer.status)
                response.headers.extend(headers)
                return response

    async def pass_on(self, request, connecting):
        async with connecting as page:
            browser = web.WebSocketResponse()
            await browser.prepare(request)

            async def carry(source, sink):
                async for message in source:
                    if message.type == WSMsgType.TEXT:
                        await sink.send_str(message.data)
                    else:
                        await sink.send_bytes(message.data)

            await asyncio.wait(
                [
                    asyncio.ensure_future(carry(page, browser)),
                    asyncio.ensure_future(carry(browser, page)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
            return browser

    def __enter__(self):
        self.thread.start()
        assert self.started.wait(30)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
