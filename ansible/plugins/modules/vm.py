#!/usr/bin/python
"""A VM as it should be: made, changed, started, stopped, deleted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm
short_description: Make, change, start, stop and delete VMs
description:
  - Brings a VM into the state that the task describes. What the task does not name stays as it is.
  - In check mode the controller says what it would do, and whether it could.
extends_documentation_fragment: [fleetward.fleet.connection]
options:
  name:
    description: The VM's name, unique in the fleet.
    type: str
    required: true
  state:
    description:
      - V(present) is a VM that exists, running or not.
      - V(absent) deletes it with its disks and its TPM. A VM that runs is refused.
    type: str
    choices: [present, started, stopped, absent]
    default: present
  image:
    description: Image of the system disk, when the VM is made.
    type: str
  template:
    description: Template to make it from, instead of an image.
    type: str
  disk:
    description: Size of the system disk when the VM is made, such as V(64G).
    type: str
  profile:
    description: What it is for, when it is made.
    type: str
    choices: [windows-11, windows-server, linux]
  host:
    description: Its host, when it is made. A VM that is elsewhere is not moved.
    type: str
  group:
    description: Its group of hosts, when it is made.
    type: str
  secure_boot:
    description: Whether its firmware checks what it starts, when it is made.
    type: bool
  networks:
    description: Networks of its cards when it is made, one each; an empty list means no card.
    type: list
    elements: str
  cpus:
    description: Number of processors.
    type: int
  memory:
    description: Memory, such as V(4G).
    type: str
  description:
    description: A text of yours.
    type: str
  labels:
    description: Labels it has; others stay unless I(purge_labels).
    type: dict
  purge_labels:
    description: Whether labels that are not in I(labels) are taken away.
    type: bool
    default: false
  autostart:
    description: Whether its host starts it after a boot.
    type: bool
  tpm:
    description:
      - Whether it has a TPM. A new VM has one.
      - Only a stopped VM is changed; M(fleetward.fleet.tpm) stops and starts it.
    type: bool
  force_stop:
    description: Whether V(stopped) cuts the power instead of asking the guest.
    type: bool
    default: false
  stop_timeout:
    description: Seconds that the guest has to shut down.
    type: int
    default: 120
  keep_tpm_state:
    description: Whether V(absent) leaves the TPM with its host.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author: [Fleetward]
"""

EXAMPLES = r"""
- name: A desktop with a TPM
  fleetward.fleet.vm:
    name: desk-1
    image: debian
    cpus: 2
    memory: 4G
    labels: {owner: kim}
    state: started

- name: It is not needed any more
  fleetward.fleet.vm:
    name: desk-1
    state: absent
"""

RETURN = r"""
vm:
  description: The VM as the controller shows it afterwards; none after V(absent), and in check mode of a new one.
  returned: success
  type: dict
steps:
  description: What was or would be changed of a VM that exists, in the words of the API.
  returned: when the VM existed
  type: list
  elements: dict
code:
  description: The error's code.
  returned: failure
  type: str
because:
  description: Why it failed.
  returned: failure
  type: str
fix:
  description: What helps.
  returned: failure
  type: str
"""

from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible_collections.fleetward.fleet.plugins.module_utils.fleet import Fleet, module_of, path_of

OPTIONS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "default": "present", "choices": ["present", "started", "stopped", "absent"]},
    "image": {"type": "str"},
    "template": {"type": "str"},
    "disk": {"type": "str"},
    "profile": {"type": "str", "choices": ["windows-11", "windows-server", "linux"]},
    "host": {"type": "str"},
    "group": {"type": "str"},
    "secure_boot": {"type": "bool"},
    "networks": {"type": "list", "elements": "str"},
    "cpus": {"type": "int"},
    "memory": {"type": "str"},
    "description": {"type": "str"},
    "labels": {"type": "dict"},
    "purge_labels": {"type": "bool", "default": False},
    "autostart": {"type": "bool"},
    "tpm": {"type": "bool"},
    "force_stop": {"type": "bool", "default": False},
    "stop_timeout": {"type": "int", "default": 120},
    "keep_tpm_state": {"type": "bool", "default": False},
}


class Vm:
    """One VM, and what the task wants of it."""

    def __init__(self, module, fleet: Fleet):
        self.module, self.fleet, self.wanted = module, fleet, module.params
        self.name = self.wanted["name"]
        self.found = fleet.vm(self.name)

    def bytes_of(self, option: str):
        """A size in bytes; None if it is not given."""
        text = self.wanted[option]
        if text is None:
            return None
        try:
            return human_to_bytes(text)
        except ValueError as error:
            self.fleet.fail("INVALID_ARGUMENT", f"{option}: {text!r} is no size", str(error), "write it like 4G")

    def labels(self, before: dict) -> dict:
        """Labels that get another value, or go (None)."""
        if self.wanted["labels"] is None:
            return {}
        labels = {key: str(value) for key, value in self.wanted["labels"].items()}
        if self.wanted["purge_labels"]:
            labels.update({key: None for key in before if key not in labels})
        return labels

    def can_change(self) -> dict:
        """What a VM that exists may be asked to become."""
        same = {key: self.wanted[key] for key in ("cpus", "description", "autostart", "tpm")}
        asked = {**same, "memory_bytes": self.bytes_of("memory")}
        return {key: value for key, value in asked.items() if value is not None}

    def is_new(self) -> dict:
        """The request that makes it."""
        asked = self.can_change()
        asked.update({key: self.wanted[key] for key in ("image", "template", "profile", "host", "group", "secure_boot")
                      if self.wanted[key] is not None})
        if self.wanted["disk"] is not None:
            asked["disk_bytes"] = self.bytes_of("disk")
        if self.wanted["networks"] is not None:
            asked["nics"] = [{"network": network} for network in self.wanted["networks"]]
        return {**asked, "name": self.name, "labels": self.labels({}), "start": self.wanted["state"] == "started"}

    def shown(self) -> dict:
        """What --diff compares."""
        vm = self.found
        if vm is None:
            return {"state": "absent"}
        return {"state": vm["state"], "cpus": vm["cpus"], "memory_bytes": vm["memory_bytes"],
                "description": vm["description"], "autostart": vm["autostart"], "labels": vm["labels"],
                "tpm": vm["tpm"]["enabled"]}

    def make(self) -> bool:
        asked = {**self.is_new(), "dry_run": self.module.check_mode}
        self.fleet.done(self.fleet.call("POST", "/v1/vms", asked))
        return True

    def change(self) -> list:
        """Changes what differs, and gives the steps."""
        asked = self.can_change()
        labels = self.labels(self.found["labels"])
        if labels:
            asked["labels"] = labels
        if not asked:
            return []
        # The controller knows what differs.
        steps = self.fleet.call("PATCH", path_of(self.name), {**asked, "dry_run": True})["steps"]
        if steps and not self.module.check_mode:
            self.fleet.done(self.fleet.call("PATCH", path_of(self.name), asked))
        return steps

    def power(self) -> bool:
        """Starts or stops it, where it is not so."""
        state, now = self.wanted["state"], self.found["state"]
        if state == "started" and now not in ("running", "migrating"):
            act, body = ("/resume" if now == "paused" else "/start"), {}
        elif state == "stopped" and now != "stopped":
            act = "/stop"
            body = {"force": self.wanted["force_stop"], "deadline_seconds": self.wanted["stop_timeout"]}
        else:
            return False
        if not self.module.check_mode:
            self.fleet.done(self.fleet.call("POST", path_of(self.name, act), body))
        return True

    def delete(self) -> bool:
        if self.found is None:
            return False
        if not self.module.check_mode:
            keep = "?keep_tpm_state=true" if self.wanted["keep_tpm_state"] else ""
            self.fleet.done(self.fleet.call("DELETE", path_of(self.name) + keep))
        return True

    def expected(self, steps: list, moves: bool) -> dict:
        """What it would be, in check mode."""
        state = self.wanted["state"]
        if state == "absent":
            return {"state": "absent"}
        after = dict(self.shown())
        if steps or self.found is None:
            after.update(self.can_change())
            after["labels"] = {**after.get("labels", {}), **self.labels(after.get("labels", {}))}
            after["labels"] = {key: value for key, value in after["labels"].items() if value is not None}
        if moves or self.found is None:
            after["state"] = "running" if state == "started" else "stopped"
        return after


def main() -> None:
    module = module_of(OPTIONS, supports_check_mode=True, mutually_exclusive=[("image", "template")])
    vm = Vm(module, Fleet(module))
    before, steps, moves = vm.shown(), [], False
    if vm.wanted["state"] == "absent":
        changed = vm.delete()
    elif vm.found is None:
        changed = vm.make()
    else:
        steps = vm.change()
        moves = vm.power()
        changed = bool(steps) or moves
    after = vm.expected(steps, moves) if changed else before
    if changed and not module.check_mode:
        vm.found = vm.fleet.vm(vm.name)
        after = vm.shown()
    module.exit_json(changed=changed, vm=vm.found, steps=steps, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
