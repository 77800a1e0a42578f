#!/bin/bash
# A Jupyter kernel whose transport is "ipc" talks through socket files in a folder.
#
# One would expect: such a kernel opens no TCP port, so it runs where ports are forbidden or counted,
#   and a test may assert that its process listens to none.
# Instead: it listens on one port of loopback all the same. Its five channels are socket files, but
#   ipykernel binds "tcp://127.0.0.1" at a random port besides, for what forked children print; no
#   setting of the transport reaches that line.
# With: ipykernel 7.4.0, jupyter_client 8.10.0, pyzmq 27.3.0.
# For a user: check the channels in the connection file, not the number of ports; where loopback is
#   missing altogether (a sandbox without a network namespace's "lo"), "ipc" alone does not help.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'ipykernel==7.4.0' 'jupyter_client==8.10.0' 'pyzmq==27.3.0' 'psutil==7.2.2'
"$folder/venv/bin/python" - "$folder" <<'EOF'
import os
import sys

import ipykernel
import jupyter_client
import psutil
from jupyter_client.manager import KernelManager

print(f"ipykernel {ipykernel.__version__}, jupyter_client {jupyter_client.__version__}")
manager = KernelManager(transport="ipc", connection_file=f"{sys.argv[1]}/kernel.json")
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
process = psutil.Process(manager.provisioner.pid)
files = {one.laddr for one in process.net_connections("unix") if one.laddr}
ports = [one.laddr for one in process.net_connections("tcp") if one.status == "LISTEN"]
channels = manager.get_connection_info()
client.stop_channels()
manager.shutdown_kernel(now=True)
print("transport:", channels["transport"])
print("socket files:", sorted(map(os.path.basename, files)))
print("ports that it listens on:", ports)
numbers = {channels[f"{name}_port"] for name in ("shell", "iopub", "stdin", "control", "hb")}
seen = (len(files), len(ports), {one.ip for one in ports}, {one.port for one in ports} & numbers)
if seen != (5, 1, {"127.0.0.1"}, set()):
    sys.exit(f"changed: expected five socket files and one port of loopback, got {seen}")
EOF
