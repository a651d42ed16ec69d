#!/usr/bin/env bash
# box.sh COMMAND…: runs a command in namespaces of its own (processes, mounts, network, names, IPC), with a loopback
# interface, and a private /run that temporary files go to. Whatever the command starts, mounts or makes there goes with
# it: the kernel ends all processes of the box when the command ends, when this script is killed, or when who started it
# is. Leaves with the command's exit code; 77 after "skipped: REASON" where there can be no box.
set -euo pipefail

# unshare dies with who started it, and the first process of the box with unshare.
readonly enter=(setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount --propagation private --mount-proc
  --net --uts --ipc --)

obstacle() {
  local program
  for program in ip unshare nsenter setpriv setsid; do
    command -v "$program" >/dev/null || { echo "$program is not installed"; return; }
  done
  [[ $(id -u) == 0 ]] || { echo "network namespaces need root"; return; }
  "${enter[@]}" sh -c 'ip link add bridge0 type bridge && ip link add cable0 type veth peer name cable1' >/dev/null 2>&1 ||
    echo "namespaces, or network devices in them, cannot be made here"
}

# In the box. /run goes with it; its path is short enough for Unix sockets.
furnish() {
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir /run/tmp
  ip link set lo up
  hostname box
}

if [[ ${1:-} == --inside ]]; then
  shift
  furnish
  code=0
  TMPDIR=/run/tmp "$@" || code=$?  # not exec: the first process takes in those whose parents are gone
  exit "$code"
fi
reason=$(obstacle)
if [[ -n $reason ]]; then
  echo "skipped: $reason"
  exit 77
fi
exec "${enter[@]}" "${BASH_SOURCE[0]}" --inside "$@"
