#!/bin/sh
# Starts one rank of a job under test: notes its pid in $ON_RANK_DIR, and when it is among $ON_RANK_TRACED, traces it with
# "strace $ON_RANK_STRACE" (or $ON_RANK_STRACE_2, for rank 2), where %PID0% stands for the pid of rank 0, or starts it
# under $ON_RANK_UNDER. With $ON_RANK_CODES it notes the exit code instead of leaving with it, because a launcher stops
# the other ranks as soon as one has left with an error. On rank 1 it sets the variable "$ON_RANK_1_SETS" (NAME=value).
rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${SLURM_PROCID:-0}}}
if [ "$rank" = 1 ] && [ -n "$ON_RANK_1_SETS" ]; then
  # shellcheck disable=SC2163 # the name is in the value
  export "$ON_RANK_1_SETS"
fi
if [ -n "$ON_RANK_CODES" ]; then
  ON_RANK_CODES='' "$0" "$@"
  echo $? >"$ON_RANK_DIR/code.$rank"
  exit 0
fi

eval "options=\${ON_RANK_STRACE_$rank:-\$ON_RANK_STRACE}"
case "$options" in
  *%PID0%*)
    pid0=$$ # it stays that of the program
    if [ "$rank" != 0 ]; then
      while [ ! -e "$ON_RANK_DIR/pid.0" ]; do sleep 0.01; done
      pid0=$(cat "$ON_RANK_DIR/pid.0")
    fi
    options=$(printf '%s' "$options" | sed "s/%PID0%/$pid0/g")
    ;;
esac
# shellcheck disable=SC2016 # for the shell that notes its own pid
note_pid='echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"'
set -- sh -c "$note_pid" "$ON_RANK_DIR/pid.$rank" "$@"
case " $ON_RANK_TRACED " in
  *" $rank "* | *" all "*)
    # shellcheck disable=SC2086 # the options are words
    if [ -n "$options" ]; then
      # A filter makes strace quick, but loses the signals that it is to inject.
      case "$options" in *signal=*) filter='' ;; *) filter=--seccomp-bpf ;; esac
      # -D: the tracer is the child, so the program keeps this pid and stays the launcher's own child.
      set -- strace -D -ff $filter -q -y -s 0 -o "$ON_RANK_DIR/trace.$rank" $options "$@"
    fi
    # shellcheck disable=SC2086 # words, too
    set -- $ON_RANK_UNDER "$@"
    ;;
esac
exec "$@"
