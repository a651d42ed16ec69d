#!/usr/bin/env bash
# rsh.sh [-OPTION]… [USER@]HOST COMMAND…: what mpirun starts its daemons on other hosts with. As with rsh, the words of
# the command are joined, and read by a shell.
set -euo pipefail
while [[ ${1:-} == -* ]]; do shift; done
host=${1#*@}
shift
exec "$(dirname "${BASH_SOURCE[0]}")/hosts.sh" on "$host" sh -c "$*"
