#!/bin/sh
# Starts one rank of a job under test: notes its pid in $ON_RANK_DIR, and traces it with "strace $ON_RANK_STRACE" when it
# is among $ON_RANK_TRACED. With $ON_RANK_CODES it notes the exit code instead of leaving with it, because a launcher
# stops the other ranks as soon as one has left with an error. On rank 1 it sets the variable "$ON_RANK_1_SETS" (NAME=value).
rank=${OMPI_COMM_WORLD_RANK:-0}
if [ "$rank" = 1 ] && [ -n "$ON_RANK_1_SETS" ]; then
  # shellcheck disable=SC2163 # the name is in the value
  export "$ON_RANK_1_SETS"
fi
case " $ON_RANK_TRACED " in
  # -D: the tracer is the child, so the program keeps this pid and stays the launcher's own child.
  *" $rank "* | *" all "*)
    # shellcheck disable=SC2086 # the options are words
    set -- strace -D -ff --seccomp-bpf -q -y -s 0 -o "$ON_RANK_DIR/trace.$rank" $ON_RANK_STRACE "$@"
    ;;
esac
# shellcheck disable=SC2016 # for the shell that notes its own pid
note_pid='echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"'
if [ -n "$ON_RANK_CODES" ]; then
  sh -c "$note_pid" "$ON_RANK_DIR/pid.$rank" "$@"
  echo $? >"$ON_RANK_DIR/code.$rank"
  exit 0
fi
exec sh -c "$note_pid" "$ON_RANK_DIR/pid.$rank" "$@"
