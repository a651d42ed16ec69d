#!/usr/bin/env bash
# Hosts in the box: each has a network interface, a name, System V IPC, /dev/shm and a folder for temporary files of its
# own. All files but those are shared, as on a cluster's file system. Their cables meet in a bridge of the box.
#
#   hosts.sh up N              makes node1 … nodeN, 10.77.0.1 … 10.77.0.N
#   hosts.sh on HOST COMMAND…  runs a command there, in the current folder
#   hosts.sh pids HOST         prints who runs there
#   hosts.sh cut HOST          pulls its cable, and `hosts.sh mend HOST` puts it back
#   hosts.sh freeze HOST       stops all that runs there, and `hosts.sh thaw HOST` lets it go on
#   hosts.sh off HOST          takes its power: all processes are killed, and nobody is told
#   hosts.sh boot HOST         switches it on again
set -euo pipefail

readonly state=/run/hosts  # HOST/init: the pid that holds its namespaces; HOST/net: its network; HOST/cut: it is cut off
readonly tmp=/run/host     # on each host its own

fail() {
  echo "hosts: $*" >&2
  exit 1
}

network_of() { readlink "/proc/$1/ns/net" 2>/dev/null || true; }

# Those that ended and were not waited for have no namespace any more.
pids() {
  local network process
  network=$(cat "$state/$1/net")
  for process in /proc/[0-9]*; do
    [[ $(network_of "${process#/proc/}") == "$network" ]] && echo "${process#/proc/}"
  done
  return 0
}

without_init() { grep -vx "$(cat "$state/$1/init")" || true; }

# signal_all HOST SIGNAL: until nobody is left whom it has not reached; they may be starting others.
signal_all() {
  local reached='' now
  while now=$(pids "$1") && [[ $now != "$reached" ]]; do
    # shellcheck disable=SC2086 # pids are words
    kill "-$2" $now 2>/dev/null || true
    reached=$now
  done
}

furnish() {
  hostname "$1"
  mount --bind "$state/hosts" /etc/hosts
  mount -t tmpfs -o mode=1777 tmpfs /dev/shm
  mount -t tmpfs -o mode=1777 tmpfs "$tmp"
}

boot() {
  local host=$1 init
  mkdir -p "$state/$host"
  rm -f "$state/$host/init" "$state/$host/cut"
  unshare --net --uts --ipc --mount --propagation private -- "${BASH_SOURCE[0]}" --init "$host" \
    </dev/null >"$state/$host/log" 2>&1 &
  until init=$(cat "$state/$host/init" 2>/dev/null) && [[ -n $init ]]; do
    kill -0 "$!" 2>/dev/null || fail "$host does not start: $(cat "$state/$host/log")"
    sleep 0.01
  done
  network_of "$init" >"$state/$host/net"
  ip link add "$host" type veth peer name eth0 netns "$init"
  ip link set "$host" master switch up
  in_network "$host" ip link set lo up
  in_network "$host" ip addr add "10.77.0.${host#node}/24" dev eth0
  in_network "$host" ip link set eth0 up
}

in_network() { nsenter --target "$(cat "$state/$1/init")" --net -- "${@:2}"; }

up() {
  local i
  mkdir -p "$state" "$tmp"
  { echo "127.0.0.1 localhost"; for ((i = 1; i <= $1; ++i)); do echo "10.77.0.$i node$i"; done; } >"$state/hosts"
  ip link add switch type bridge
  ip link set switch up
  for ((i = 1; i <= $1; ++i)); do boot "node$i"; done
}

on() {
  local host=$1
  shift
  # shellcheck disable=SC2016 # for the shell on the host, where the folder has to be entered again
  exec nsenter --target "$(cat "$state/$host/init")" --net --uts --ipc --mount -- \
    env "TMPDIR=$tmp" sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
}

# Pulled first, so that no connection is closed: nobody hears anything of it any more.
off() {
  if ip link show "$1" >/dev/null 2>&1; then ip link del "$1"; fi
  signal_all "$1" KILL
}

[[ -d /run/tmp ]] || fail "only in the box (box.sh)"
command=${1:-}
shift || true
case $command in
  up | boot | on | off) "$command" "$@" ;;
  --init) furnish "$1" && echo $$ >"$state/$1/init" && exec sleep infinity ;;
  pids) pids "$1" | without_init "$1" ;;
  cut) touch "$state/$1/cut" && ip link set "$1" down ;;
  mend) ip link set "$1" up && rm "$state/$1/cut" ;;
  freeze) signal_all "$1" STOP ;;
  thaw) signal_all "$1" CONT ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
