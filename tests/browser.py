"""A browser for the tests: headless Chromium, controlled by chromedriver (W3C WebDriver)."""

import base64
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
