#!/usr/bin/env python3
"""Checks the status page in a real browser, and takes its picture.

Serves page and fixtures on 127.0.0.1, on a port of the system's choice and under the
Content-Security-Policy that the daemon sends; drives chromium over its debugging pipe. Asserts: the
checks of check.js pass; the page itself, in each state, reaches the expected state word, breaks no
policy, logs no error, is not wider than the window at 1280, 390 and 360 pixels; old and hanging
answers turn it grey; without scripts it points to /status. Python's standard library only; changes
nothing, and everything that it starts ends with it.
"""

import argparse
import base64
import contextlib
import fcntl
import functools
import http.server
import json
import math
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
PAGE = REPOSITORY / "crates/node/src/http/page"
# As CONTENT_SECURITY_POLICY in http/page.rs.
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".json": "application/json"}
# The expected state word of each fixture.
STATES = {"healthy": "good", "lagging": "attention", "failed-over": "attention",
          "no-majority": "bad", "loss-to-accept": "bad"}
PICTURED = list(STATES)
WINDOWS = {"desktop": (1280, 900, False), "phone": (390, 844, True)}
NARROWEST = (360, 740, True)
# Milliseconds of the page's own time in which its plots fill; the browser makes them pass at once.
FILLING_MS = 130_000
SETTLING_MS = 15_000
ANSWER_TIMEOUT_S = 60
CONTRAST = (HERE / "contrast.js").read_text()


class Site(http.server.ThreadingHTTPServer):
    """The page with one fixture behind /status, which moves on by a second with each answer."""

    daemon_threads = True

    def __init__(self, fixture, stops_after=None, hangs_after=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fixture = json.loads((HERE / f"fixtures/{fixture}.json").read_text())
        self.stops_after, self.hangs_after = stops_after, hangs_after
        self.answers = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        # A browser that has seen enough closes its connections.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def status(self):
        with self.lock:
            count, self.answers = self.answers, self.answers + 1
        if self.hangs_after is not None and count >= self.hangs_after:
            self.ended.wait(ANSWER_TIMEOUT_S)
            return None
        if self.stops_after is not None:
            count = min(count, self.stops_after)
        return vary(self.fixture, count)


def vary(fixture, count):
    """The fixture as it would be `count` seconds later: what moves in a real cluster moves."""
    status = json.loads(json.dumps(fixture))
    status["at_unix_us"] += count * 1_000_000
    wave = 1 + 0.35 * math.sin(count / 5) + 0.25 * math.sin(count * 2.1)
    burst = 6 if 40 <= count % 97 <= 46 else 1
    # What is far behind grows; what is close trembles.
    grow = lambda value, far: value * (0.5 + min(count, 130) / 260) if far else value * wave * burst
    far = status.get("exposure_seconds", 0) > 10
    for name in ("exposure_seconds", "exposure_bytes"):
        if name in status:
            status[name] = type(status[name])(grow(status[name], far))
    for node in status["nodes"]:
        far = node.get("durable_lag_seconds", 0) > 10
        for name in ("durable_lag_seconds", "replay_lag_seconds", "durable_lag_bytes", "replay_lag_bytes"):
            if name in node:
                node[name] = type(node[name])(grow(node[name], far))
        if "lease_left_seconds" in node:
            node["lease_left_seconds"] = 2.0 + 0.9 * abs(math.sin(count * 1.7))
        if node.get("state") == "unreachable":
            node["heard_seconds_ago"] += count
        if "progress" in node:
            node["progress"]["done_bytes"] += count * 94371840
    return status


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the daemon's HTTP door does; below /repository/ lies what check.html needs."""

    protocol_version = "HTTP/1.1"
    # In one packet and at once: half an answer would wait for the browser to acknowledge it.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/status":
            status = self.server.status()
            if status is not None:
                self.answer(200, TYPES[".json"], json.dumps(status).encode())
            return
        file = self.file(path)
        if file is None or not file.is_file():
            self.answer(404, "text/plain", b"no such path\n")
        else:
            self.answer(200, TYPES[file.suffix], file.read_bytes())

    @staticmethod
    def file(path):
        if path == "/ui":
            return PAGE / "index.html"
        for prefix, folder in (("/ui/", PAGE), ("/repository/", REPOSITORY)):
            if path.startswith(prefix):
                file = (folder / path.removeprefix(prefix)).resolve()
                allowed = any(file.is_relative_to(root) for root in (PAGE, HERE))
                return file if allowed and file.suffix in TYPES else None
        return None

    def answer(self, code, kind, body):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Browser:
    """One chromium, spoken to over a pipe: no port, nobody else can reach it."""

    def __init__(self, program, folder):
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # The pipe has to be descriptors 3 and 4 in the child; high copies cannot collide with them.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 40) for fd in (to_read, from_write)]

        def place():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        arguments = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                     f"--user-data-dir={folder}/profile", "--no-first-run", "--disable-extensions",
                     "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                     "--no-proxy-server", "about:blank"]
        self.process = subprocess.Popen(arguments, preexec_fn=place, pass_fds=(3, 4), start_new_session=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=open(f"{folder}/chromium.log", "wb"))
        for fd in (*high, to_read, from_write):
            os.close(fd)
        self.out, self.into = to_write, from_read
        self.buffer, self.number = b"", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Its own session: its helpers end with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def next(self, deadline):
        while b"\0" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.into], [], [], left)[0]:
                raise TimeoutError("chromium does not answer")
            data = os.read(self.into, 1 << 20)
            if not data:
                raise ConnectionError("chromium has ended; is it installed and complete?")
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, session=None, events=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            got = self.next(deadline)
            if got.get("id") == self.number:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']['message']}")
                return got["result"]
            if events is not None and got.get("sessionId") == session:
                events.append(got)


class Tab:
    """One page in the browser, with what it complained about."""

    def __init__(self, browser, width, height, phone, dark=False, scripts=True):
        self.browser, self.events = browser, []
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.target, self.session = target, attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"}])
        if not scripts:
            self.call("Emulation.setScriptExecutionDisabled", value=True)

    def call(self, method, **params):
        return self.browser.call(method, session=self.session, events=self.events, **params)

    def open(self, url, budget_ms=None):
        """Goes there; with a budget, so much of the page's own time passes at once."""
        if budget_ms is None:
            self.call("Page.navigate", url=url)
            return
        self.call("Emulation.setVirtualTimePolicy", policy="pause")
        self.call("Page.navigate", url=url)
        self.call("Emulation.setVirtualTimePolicy", policy="pauseIfNetworkFetchesPending", budget=budget_ms,
                  maxVirtualTimeTaskStarvationCount=1_000_000)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while not any(event["method"] == "Emulation.virtualTimeBudgetExpired" for event in self.events):
            got = self.browser.next(deadline)
            if got.get("sessionId") == self.session:
                self.events.append(got)

    def eval(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression, seconds):
        deadline = time.monotonic() + seconds
        while not self.eval(expression):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def picture(self, file, whole=False):
        params = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            params = {"captureBeyondViewport": True, "clip": {
                "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        data = self.call("Page.captureScreenshot", format="png", **params)["data"]
        file.write_bytes(base64.b64decode(data))

    def complaints(self):
        """Errors and broken policies that the browser told of."""
        found = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                details = event["params"]["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                entry = event["params"]["entry"]
                found.append(f"{entry['text']} {entry.get('url', '')}")
        return found

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)


class Run:
    """What was asserted so far."""

    def __init__(self):
        self.failures, self.passed = [], 0

    def check(self, holds, what):
        if holds:
            self.passed += 1
        else:
            self.failures.append(what)
            print(f"FAILED  {what}", file=sys.stderr)


def modules(run, browser):
    with Site("healthy") as site:
        tab = Tab(browser, 1280, 900, False)
        tab.open(f"{site.url}/repository/tests/page/check.html")
        done = tab.wait("document.title === 'passed' || document.title === 'failed'", ANSWER_TIMEOUT_S)
        text = tab.eval("document.getElementById('result').textContent") if done else ""
        result = json.loads(text) if text else {"passed": 0, "failed": 1, "failures": ["check.js did not end"]}
        run.passed += result["passed"]
        for failure in result["failures"]:
            run.check(False, f"check.js: {failure}")
        for complaint in tab.complaints():
            run.check(False, f"check.html: {complaint}")
        tab.close()


def states(run, browser, folder):
    for name, word in STATES.items():
        for window, (width, height, phone) in {**WINDOWS, "narrowest": NARROWEST}.items():
            for dark in (False, True):
                if dark and window == "narrowest":
                    continue
                pictured = folder is not None and name in PICTURED and window in WINDOWS
                budget_ms = FILLING_MS if pictured else SETTLING_MS
                with Site(name) as site:
                    tab = Tab(browser, width, height, phone, dark)
                    tab.open(f"{site.url}/ui", budget_ms)
                    label = f"{name}-{window}-{'dark' if dark else 'light'}"
                    run.check(tab.eval("document.body.dataset.state") == word,
                              f"{label}: the state is {tab.eval('document.body.dataset.state')}, not {word}")
                    run.check(not tab.eval("document.body.classList.contains('old')"), f"{label}: is greyed")
                    wide = tab.eval("document.documentElement.scrollWidth")
                    run.check(wide <= width, f"{label}: is {wide} px wide in a window of {width}")
                    expected = budget_ms / 1000
                    run.check(expected / 2 < site.answers < expected * 1.5, f"{label}: asked {site.answers} times")
                    faint = tab.eval(CONTRAST)
                    run.check(not faint, f"{label}: too little contrast: {faint}")
                    for complaint in tab.complaints():
                        run.check(False, f"{label}: {complaint}")
                    if pictured:
                        tab.picture(folder / f"{label}.png")
                        tab.picture(folder / f"{label}-whole.png", whole=True)
                    tab.close()


def old(run, browser, folder):
    """A node that stands still, one that hangs, one that is gone: grey in each case, in real time."""
    for label, options in {"stands-still": {"stops_after": 2}, "hangs": {"hangs_after": 2}, "gone": {}}.items():
        with Site("healthy", **options) as site:
            tab = Tab(browser, 1280, 900, False, dark=label == "hangs")
            tab.open(f"{site.url}/ui")
            run.check(tab.wait("document.body?.dataset.state === 'good'", ANSWER_TIMEOUT_S), f"{label}: never was good")
            if label == "gone":
                site.status = functools.partial(lambda: None)
            grey = "document.body.classList.contains('old') && document.getElementById('stale').textContent.startsWith('OLD')"
            run.check(tab.wait(grey, ANSWER_TIMEOUT_S), f"{label}: is not marked as old")
            run.check(tab.eval("document.body.dataset.state") == "unknown", f"{label}: still has a state word")
            faint = tab.eval(CONTRAST)
            run.check(not faint, f"{label}: too little contrast: {faint}")
            if folder:
                tab.picture(folder / f"{label}.png")
            tab.close()


def copying(run, browser):
    with Site("loss-to-accept") as site:
        tab = Tab(browser, 1280, 900, False)
        tab.open(f"{site.url}/ui")
        run.check(tab.wait("document.querySelector('button.copy:enabled') !== null", 10), "there is no command to copy")
        tab.eval("document.querySelector('button.copy').click()")
        run.check(tab.wait("document.querySelector('button.copy').textContent !== 'Copy'", 5), "the copy button does nothing")
        tab.close()


def without_scripts(run, browser):
    with Site("healthy") as site:
        tab = Tab(browser, 390, 844, True, scripts=False)
        tab.open(f"{site.url}/ui")
        shown = "document.querySelector('noscript a')?.getAttribute('href')"
        time.sleep(0.3)
        run.check(tab.eval(shown) == "/status", "without scripts the page does not point to /status")
        tab.close()


def live(run, browser, url, words):
    """The page of a real node, in real time: nothing but the node answers."""
    for width, height, phone in WINDOWS.values():
        tab = Tab(browser, width, height, phone)
        tab.open(url)
        shown = "document.body?.dataset.state === 'good' && !document.body.classList.contains('old')"
        for word in words:
            shown += f" && document.body.innerText.includes({json.dumps(word)})"
        run.check(tab.wait(shown, ANSWER_TIMEOUT_S), f"{url} becomes good and says {words}")
        run.check(not tab.complaints(), f"{url}: {tab.complaints()}")
        tab.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--screenshots", type=pathlib.Path, metavar="DIR", help="write pictures of the states there")
    parser.add_argument("--chromium", default=None, metavar="PROGRAM", help="the browser (default: the one in PATH)")
    parser.add_argument("--live", metavar="URL", help="only look at the page of a node that runs")
    parser.add_argument("--says", action="append", default=[], metavar="TEXT", help="what that page has to say")
    options = parser.parse_args()
    program = options.chromium or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        parser.error("no chromium in PATH: install it, or name it with --chromium")
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    run = Run()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Browser(program, folder) as browser:
        if options.live:
            live(run, browser, options.live, options.says)
            print(f"{run.passed} passed, {len(run.failures)} failed")
            return 1 if run.failures else 0
        modules(run, browser)
        copying(run, browser)
        without_scripts(run, browser)
        old(run, browser, options.screenshots)
        states(run, browser, options.screenshots)
    print(f"{run.passed} passed, {len(run.failures)} failed")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
