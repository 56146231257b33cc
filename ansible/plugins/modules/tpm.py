#!/usr/bin/python
"""The TPM of a VM that exists: on or off."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tpm
short_description: Switch the TPM of a VM on or off
description:
  - A VM that is switched on gets a new TPM with a key of its own. One that is switched off keeps its TPM in the history, from
    which C(fleetward tpm restore) brings it back.
extends_documentation_fragment: [fleetward.fleet.connection]
options:
  name:
    description: The VM's name.
    type: str
    required: true
  state:
    description: Whether it has a TPM.
    type: str
    choices: [enabled, disabled]
    default: enabled
  stop_and_restart:
    description: Whether a VM that runs is asked to shut down, and started again. Without it, one that runs is refused.
    type: bool
    default: false
  stop_timeout:
    description: Seconds that the guest has to shut down; its power is never cut.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author: [Fleetward]
"""

EXAMPLES = r"""
- name: All desktops have a TPM
  fleetward.fleet.tpm:
    name: "{{ item.name }}"
    stop_and_restart: true
  loop: "{{ desktops.vms }}"
"""

RETURN = r"""
tpm:
  description: The VM's TPM as the controller shows it afterwards.
  returned: success
  type: dict
"""

from ansible_collections.fleetward.fleet.plugins.module_utils.fleet import Fleet, module_of, path_of

OPTIONS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "default": "enabled", "choices": ["enabled", "disabled"]},
    "stop_and_restart": {"type": "bool", "default": False},
    "stop_timeout": {"type": "int", "default": 120},
}


def main() -> None:
    module = module_of(OPTIONS, supports_check_mode=True)
    fleet, wanted = Fleet(module), module.params
    name, on = wanted["name"], wanted["state"] == "enabled"
    vm = fleet.vm(name)
    if vm is None:
        fleet.fail("VM_NOT_FOUND", f"there is no VM {name}", "", "fleetward vm list")
    before = vm["tpm"]["enabled"]
    changed = before != on
    if changed and module.check_mode and vm["state"] == "stopped":
        # Only of a stopped VM the controller can say it without doing it.
        fleet.call("PATCH", path_of(name), {"tpm": on, "dry_run": True})
    if changed and not module.check_mode:
        act = "/tpm/enable" if on else "/tpm/disable"
        body = {"stop_and_restart": wanted["stop_and_restart"], "deadline_seconds": wanted["stop_timeout"]}
        fleet.done(fleet.call("POST", path_of(name, act), body))
        vm = fleet.vm(name)
    module.exit_json(changed=changed, tpm=vm["tpm"], diff={"before": {"tpm": before}, "after": {"tpm": on}})


if __name__ == "__main__":
    main()
