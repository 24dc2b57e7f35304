"""A browser for the tests: headless Chromium, controlled by chromedriver (W3C WebDriver)."""

import base64
import contextlib
import json
import shutil
import subprocess
import urllib.request

CHROMEDRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
MISSING = (
    None if CHROMEDRIVER and CHROMIUM else "no browser: apt-get install chromium chromium-driver"
)


class Browser:
    """A window of this size in pixels, with this preferred language. A context manager."""

    def __init__(self, width=1000, height=900, language="en"):
        self.driver = subprocess.Popen(
            [CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in self.driver.stdout:
            if "successfully on port" in line:
                self.base = f"http://127.0.0.1:{line.rstrip().rstrip('.').split()[-1]}"
                break
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--lang={language}",
            f"--window-size={width},{height}",
            "--hide-scrollbars",
        ]
        options = {
            "binary": CHROMIUM,
            "args": arguments,
            "prefs": {"intl.accept_languages": language},
        }
        options_of_session = {
            "capabilities": {
                "alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}
            }
        }
        self.base += f"/session/{self.ask('POST', '/session', options_of_session)['sessionId']}"

    def ask(self, method, path, body=None):
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url):
        self.ask("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """Run a script, the body of a function, in the page. Returns what it returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def drag(self, *points, kind="mouse"):
        """Press at the first point, move to the others and release: (x, y) in pixels of the window.
        A single point is a click. kind: "mouse" or "touch"."""
        moves = [
            {"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)} for x, y in points
        ]
        press, lift = ({"type": f"pointer{way}", "button": 0} for way in ("Down", "Up"))
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}}
        pointer["actions"] = [moves[0], press, *moves[1:], lift]
        self.ask("POST", "/actions", {"actions": [pointer]})

    def type(self, text):
        """Press these keys."""
        keys = [{"type": f"key{way}", "value": key} for key in text for way in ("Down", "Up")]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def command(self, name, **parameters):
        """A command of the DevTools protocol."""
        self.ask("POST", "/goog/cdp/execute", {"cmd": f"Emulation.{name}", "params": parameters})

    @contextlib.contextmanager
    def phone(self, width, height, language):
        """Until the end of the block, a window of this size, which may be narrower than Chromium's
        smallest, 500 pixels, and another preferred language for the pages that are opened."""
        agent, before = self.run("return [navigator.userAgent, navigator.language]")
        self.command("setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("setDeviceMetricsOverride", **size)
        try:
            yield
        finally:
            self.command("clearDeviceMetricsOverride")
            self.command("setUserAgentOverride", userAgent=agent, acceptLanguage=before)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.ask("DELETE", "")
        finally:
            self.driver.kill()
            self.driver.wait()
            self.driver.stdout.close()
