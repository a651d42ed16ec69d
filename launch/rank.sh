#!/usr/bin/env bash
# Starts one rank for launch/mpirun.sh, which is what to call. Environment, exit code and output are the program's.
#
#   launch/rank.sh LOG_DIR PROGRAM [ARGUMENT…]      LOG_DIR: for rank-00000.log and so on; or -
set -uo pipefail

# Open MPI answers SIGTERM by killing what is not gone a second later, and reports 1. It passes on SIGUSR1 and SIGUSR2, as
# MPICH does, so these stand for SIGTERM and SIGINT. All processes of a rank get them.
readonly signals=(TERM INT USR1 USR2)
program=
requested=
# shellcheck disable=SC2317 # the traps call it
stop() {
  requested=$1
  interrupted=true
  if [[ -n $program ]]; then kill -s "$1" "$program" 2>/dev/null; fi
}
trap 'stop TERM' TERM USR1
trap 'stop INT' INT USR2

log_dir=$1
shift
logs=()
if [[ $log_dir != - ]]; then
  printf -v log '%s/rank-%05d.log' "$log_dir" "${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}"
  mkdir -p "$log_dir" && : >"$log" || exit 73
  # The terminal and the log get what the program says to the last word: tee ends with the program, not by a signal.
  exec > >(trap '' "${signals[@]}" && exec tee -a "$log")
  logs+=($!)
  exec 2> >(trap '' "${signals[@]}" && exec tee -a "$log" >&2)
  logs+=($!)
fi

# In the background, since the shell runs no trap while it waits for a program in the foreground, which ignores SIGINT there
# unless it is set back.
(trap '' USR1 USR2 && trap - INT TERM && exec "$@") &
program=$!
if [[ -n $requested ]]; then kill -s "$requested" "$program"; fi

# wait ends early where a trap runs.
interrupted=true
while $interrupted; do
  interrupted=false
  wait "$program"
  code=$?
done

# Whether PID is the parent of ranks that have not ended.
has_ranks() {
  local file child children words
  for file in "/proc/$1/task"/*/children; do
    read -r -d '' -a children <"$file"
    for child in "${children[@]}"; do
      mapfile -d '' -t words <"/proc/$child/cmdline"
      if [[ " ${words[*]} " == *" $0 "* ]]; then return; fi
      words=()
    done
    children=()
  done
  return 1
}

# A host whose link is down may keep its launcher's daemon for as long as the kernel tries to send what the daemon has to
# say of this: a quarter of an hour. Without ranks it has nothing left to do.
end_daemon_that_waits() {
  local fd
  # MPICH's daemon leaves the ends of its pipes to all ranks of a host, and waits until nobody has them any more.
  for fd in "/proc/$BASHPID/fd"/*; do
    fd=${fd##*/}
    if ((fd < 255)); then exec {fd}>&-; fi
  done
  [[ $(cat "/proc/$PPID/comm") =~ ^(orted|prted|hydra_pmi_proxy)$ ]] || return 0
  while ((SECONDS < ${MPIRUN_GRACE_SECONDS:-30})); do
    sleep 1
    kill -0 "$PPID" || return 0
    if has_ranks "$PPID"; then SECONDS=0; fi
  done
  kill -s KILL "$PPID"
}
if ((code != 0)); then (SECONDS=0 && exec 2>/dev/null && end_daemon_that_waits) & fi

exec >&- 2>&-
if ((${#logs[@]})); then wait "${logs[@]}"; fi
exit "$code"
