#!/usr/bin/python
"""What the controller knows of VMs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Read VMs of the fleet
description: Reads one VM, or those that all the options fit. Nothing is changed.
extends_documentation_fragment: [fleetward.fleet.connection]
options:
  name:
    description: Only this VM; none of that name gives an empty list.
    type: str
  host:
    description: Only VMs on this host.
    type: str
  labels:
    description: Only VMs with all these labels.
    type: dict
    default: {}
  tpm:
    description: Only VMs with a TPM, or without one.
    type: bool
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author: [Fleetward]
"""

EXAMPLES = r"""
- name: Desktops without a TPM
  fleetward.fleet.vm_info:
    labels: {role: desktop}
    tpm: false
  register: desktops
"""

RETURN = r"""
vms:
  description: The VMs, as C(fleetward vm list -o json) shows them.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.fleetward.fleet.plugins.module_utils.fleet import Fleet, module_of

OPTIONS = {
    "name": {"type": "str"},
    "host": {"type": "str"},
    "labels": {"type": "dict", "default": {}},
    "tpm": {"type": "bool"},
}


def main() -> None:
    module = module_of(OPTIONS, supports_check_mode=True, mutually_exclusive=[("name", "host"), ("name", "tpm")])
    fleet, wanted = Fleet(module), module.params
    if wanted["name"]:
        found = fleet.vm(wanted["name"])
        vms = [found] if found else []
    else:
        query = {"label": [f"{key}={value}" for key, value in wanted["labels"].items()]}
        if wanted["host"]:
            query["host"] = wanted["host"]
        if wanted["tpm"] is not None:
            query["tpm"] = str(wanted["tpm"]).lower()
        vms = fleet.pages("/v1/vms", query, lambda vm: f"{vm['name']}/{vm['host']}/{vm['id']}")
    module.exit_json(changed=False, vms=vms)


if __name__ == "__main__":
    main()
