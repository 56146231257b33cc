#!/usr/bin/python
"""What the controller knows of hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Read hosts of the fleet
description: Reads one host, or all of them. Nothing is changed.
extends_documentation_fragment: [fleetward.fleet.connection]
options:
  name:
    description: Only this host; none of that name gives an empty list.
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author: [Fleetward]
"""

EXAMPLES = r"""
- name: Hosts that do not answer
  fleetward.fleet.host_info:
  register: fleet
- ansible.builtin.debug:
    msg: "{{ fleet.hosts | selectattr('state', 'equalto', 'unreachable') | map(attribute='name') }}"
"""

RETURN = r"""
hosts:
  description: The hosts, as C(fleetward host list -o json) shows them.
  returned: success
  type: list
  elements: dict
"""

from urllib.parse import quote

from ansible_collections.fleetward.fleet.plugins.module_utils.fleet import Fleet, Refused, module_of


def main() -> None:
    module = module_of({"name": {"type": "str"}}, supports_check_mode=True)
    fleet, name = Fleet(module), module.params["name"]
    if not name:
        module.exit_json(changed=False, hosts=fleet.pages("/v1/hosts", {}, lambda host: host["name"]))
    try:
        hosts = [fleet.ask("GET", f"/v1/hosts/{quote(name, safe='')}")]
    except Refused as refused:
        if refused.code != "HOST_NOT_FOUND":
            fleet.end_with(refused.failure)
        hosts = []
    module.exit_json(changed=False, hosts=hosts)


if __name__ == "__main__":
    main()
