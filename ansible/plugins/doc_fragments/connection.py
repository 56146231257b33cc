"""What all modules take: where the controller is, and who one is."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  controller:
    description:
      - Address of the controller's listener for programs, C(https://HOST:7480).
      - Without it the local socket is used, for which the play runs on the controller's machine as root.
    type: str
  token_file:
    description:
      - File with an API token (C(fleetward token create)), on the machine where the module runs. Needed with I(controller).
      - There is no option for the token itself, because Ansible writes options into files.
    type: path
  ca_path:
    description:
      - File with the certificates to believe (PEM). Without it those that the machine believes.
    type: path
  socket:
    description: The controller's Unix socket.
    type: path
    default: /var/lib/fleetward-controller/controller.sock
  wait_timeout:
    description: Seconds after which a job that goes on fails the task; the job itself goes on.
    type: int
    default: 900
notes:
  - The environment variables E(FLEETWARD_CONTROLLER), E(FLEETWARD_TOKEN_FILE), E(FLEETWARD_CA) and E(FLEETWARD_SOCKET) are read where an option is not given.
  - A module fails with the controller's own error, as RV(code), RV(because) and RV(fix).
"""
