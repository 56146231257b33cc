"""Calls of the controller's API, for all modules: errors as the controller says them, and jobs until they end."""

from __future__ import annotations

import json
import time
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible.module_utils.urls import open_url

CONNECTION = {
    "controller": {"type": "str", "fallback": (env_fallback, ["FLEETWARD_CONTROLLER"])},
    "token_file": {
        "type": "path",
        "no_log": False,
        "fallback": (env_fallback, ["FLEETWARD_TOKEN_FILE"]),
    },
    "ca_path": {"type": "path", "fallback": (env_fallback, ["FLEETWARD_CA"])},
    "socket": {
        "type": "path",
        "default": "/var/lib/fleetward-controller/controller.sock",
        "fallback": (env_fallback, ["FLEETWARD_SOCKET"]),
    },
    "wait_timeout": {"type": "int", "default": 900},
}

# Seconds that an answer may take; the controller waits for a host no longer than that.
ANSWER = 200
# The longest text that is a token, with blanks around it.
LONGEST_TOKEN = 256
ENDED = ("done", "undone", "failed")


def module_of(options: dict, **more) -> AnsibleModule:
    """A module with these options beside the common ones."""
    return AnsibleModule(argument_spec={**CONNECTION, **options}, **more)


class Refused(Exception):
    """What the controller answered instead: a Failure of its API."""

    def __init__(self, failure: dict):
        super().__init__(failure.get("what", ""))
        self.failure = failure

    @property
    def code(self) -> str:
        return self.failure.get("code", "INTERNAL")


class Fleet:
    """The controller, as one module reaches it."""

    def __init__(self, module: AnsibleModule):
        self.module = module
        options = module.params
        # The controller sends nobody elsewhere, and a token must not follow.
        self.how = {"timeout": ANSWER, "use_proxy": False, "follow_redirects": "none", "http_agent": "ansible-fleetward"}
        if options["controller"]:
            self.base = options["controller"].rstrip("/")
            if not self.base.startswith("https://"):
                self.fail("INVALID_ARGUMENT", f"{self.base!r} is no address of a controller",
                          "it does not begin with https://", "name the listener that the controller's status shows as Console")
            self.headers = {"Authorization": f"Bearer {self.token()}"}
            self.how["ca_path"] = options["ca_path"]
        else:
            self.base = "http://controller"
            self.headers = {}
            self.how["unix_socket"] = options["socket"]

    def token(self) -> str:
        """The text in the token's file."""
        path = self.module.params["token_file"]
        if not path:
            self.fail("CREDENTIALS_MISSING", "controller needs token_file", "",
                      "make one with: fleetward token create ansible --role operator --out .")
        try:
            with open(path, encoding="ascii") as file:
                return file.read(LONGEST_TOKEN).strip()
        except (OSError, ValueError) as error:
            self.fail("INVALID_ARGUMENT", f"{path} cannot be used", str(error),
                      "name the file that fleetward token create wrote")

    def fail(self, code: str, what: str, because: str = "", fix: str = "") -> None:
        """Ends the module with an error of the same form as the controller's."""
        self.end_with({"code": code, "what": what, "because": because, "fix": fix})

    def end_with(self, failure: dict) -> None:
        """Ends the module with what the controller said."""
        parts = [f"error[{failure.get('code', 'INTERNAL')}]: {failure.get('what', '')}"]
        parts += [f"{key}: {failure[key]}" for key in ("because", "fix") if failure.get(key)]
        told = {key: failure.get(key) or "" for key in ("code", "because", "fix")}
        self.module.fail_json(msg="; ".join(parts), **told)

    def ask(self, method: str, path: str, body=None):
        """The answer, as JSON; None if there is none. Raises Refused."""
        data = None if body is None else json.dumps(body)
        headers = dict(self.headers)
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = open_url(self.base + path, method=method, data=data, headers=headers, **self.how)
            text = response.read()
        except HTTPError as error:
            raise Refused(self.failure_of(error)) from error
        except (URLError, OSError, ValueError) as error:
            where = self.base if self.headers else self.module.params["socket"]
            self.fail("CONTROLLER_UNREACHABLE", f"the controller at {where} does not answer", str(error),
                      "start it with fleetward controller run, or give controller, ca_path or socket")
        return json.loads(text) if text else None

    @staticmethod
    def failure_of(error: HTTPError) -> dict:
        """The Failure in an answer, or one that tells of an answer without."""
        text = error.read()
        try:
            failure = json.loads(text)
            if isinstance(failure, dict) and "code" in failure:
                return failure
        except ValueError:
            pass
        return {"code": "INTERNAL", "what": f"the controller answered {error.code}",
                "because": text[:200].decode(errors="replace")}

    def call(self, method: str, path: str, body=None):
        """The same; what is refused ends the module."""
        try:
            return self.ask(method, path, body)
        except Refused as refused:
            self.end_with(refused.failure)

    def vm(self, name: str):
        """What is known of a VM; None if there is none of that name."""
        try:
            return self.ask("GET", f"/v1/vms/{quote(name, safe='')}")
        except Refused as refused:
            if refused.code == "VM_NOT_FOUND":
                return None
            self.end_with(refused.failure)

    def pages(self, path: str, query: dict, cursor) -> list:
        """All rows of a list."""
        rows, after = [], None
        while True:
            asked = {**query, "limit": 500, **({"after": after} if after else {})}
            page = self.call("GET", f"{path}?{urlencode(asked, doseq=True)}")
            rows += page
            if len(page) < 500:
                return rows
            after = cursor(page[-1])

    def done(self, answer) -> dict | None:
        """Waits for the job of an answer, and gives it; None if nothing had to be done."""
        job = (answer or {}).get("job")
        if job is None:
            return None
        end = time.monotonic() + self.module.params["wait_timeout"]
        pause = 0.1
        while True:
            view = self.call("GET", f"/v1/jobs/{job}")
            if view["state"] in ENDED:
                break
            if time.monotonic() > end:
                self.fail("JOB_GOES_ON", f"job {job} ({view['kind']} of {view['target']}) goes on",
                          view.get("waiting") or "it takes longer than wait_timeout", f"fleetward job watch {job}")
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)
        for warning in view.get("warnings") or []:
            self.module.warn(warning)
        if view["state"] != "done":
            failure = dict(view.get("failure") or {"what": f"job {job} ended {view['state']}"})
            self.end_with(failure)
        return view


def path_of(name: str, act: str = "") -> str:
    """The path of a VM, or of what is asked of it."""
    return f"/v1/vms/{quote(name, safe='')}{act}"
