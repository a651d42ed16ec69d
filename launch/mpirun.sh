#!/usr/bin/env bash
# Starts a program on many ranks, with the mpirun of the MPI library that the program is linked with.
set -euo pipefail
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly launch

usage() {
  cat <<'TEXT'
Usage: launch/mpirun.sh [OPTION…] -- PROGRAM [ARGUMENT…]

  -n N                 so many ranks; default: all that the hosts have room for
  --hosts FILE|LIST    where: a file with a host a line, "node1", "node1:4" or "node1 slots=4", or a list, node1:4,node2:4.
                       Default: this host, or what the batch system gave. Hosts without a number share the ranks evenly;
                       one that is named K times has room for K
  --per-node K         K ranks on each host
  --bind auto|core|numa|none
                       each rank to a core, or to a NUMA domain, filled one after the other. auto: cores where one host
                       has as many ranks as cores, nothing where it has more ranks, else domains
  --interfaces LIST    the network interfaces for TCP; default: what Open MPI was configured to use, or else all but loopback
                       and those of containers and virtual machines. With MPICH one, which the launcher uses, not the ranks
  --log-dir DIR        what each rank says goes to DIR/rank-00000.log and so on, too; DIR is made on each host
  --mpi openmpi|mpich  default: which one PROGRAM is linked with, or else whose mpirun is on PATH
  --dry-run            print the command, start nothing
  -x NAME[=VALUE]      take this variable along to all hosts. RANKSLICE_…, UCX_…, NCCL_… and LD_LIBRARY_PATH go along anyway,
                       and with MPICH all do
  -h, --help

PROGRAM and this folder have the same path on all hosts. It gets no standard input. OMPI_MCA_…, PRTE_MCA_…, HYDRA_… and
UCX_… of the environment are honoured, and win over what is chosen here. Signals: SIGTERM and SIGINT reach the program on
all ranks, which end in their own way; a second one, or 30 s ($MPIRUN_GRACE_SECONDS) without an end, ends the launcher. It is
also ended where it waits for a host so long after the ranks of this host have ended.

Exit codes: that of the ranks; 75 where mpirun waited in vain for a host; 143 and 130 after SIGTERM and SIGINT, with MPICH also
where the ranks had just ended with 0; 2 wrong usage, 66 FILE is missing, 69 no mpirun of that MPI library, 127 no PROGRAM;
others as mpirun leaves them, such as 205 where Open MPI lost a host.
TEXT
}

say() { printf 'mpirun.sh: %s\n' "$*" >&2; }

# fail CODE WORDS…
fail() {
  local code=$1
  shift
  say "$@"
  exit "$code"
}

# Which MPI, and its launcher ------------------------------------------------------------------------------------------

# Prints the path of the library that $program is linked with, if it is linked with MPI.
mpi_library() { ldd "$program" 2>/dev/null | awk '$1 ~ /^(libmpi|libmpich)\.so/ && $3 ~ /^\// { print $3; exit }' || true; }

# Prints openmpi or mpich, or nothing without a library. libmpi.so.12 is MPICH's own name for its library, libmpich.so.12 Debian's.
mpi_of_library() {
  case $(basename "$1") in
    libmpi.so.12* | libmpich.so*) echo mpich ;;
    libmpi.so*) echo openmpi ;;
  esac
}

# Prints openmpi or mpich, or nothing for other launchers.
mpi_of_launcher() {
  case $("$1" --version 2>/dev/null) in
    *"Open MPI"* | *OpenRTE*) echo openmpi ;;
    *HYDRA*) echo mpich ;;
  esac
}

find_launcher() {
  local library names name places
  library=$(mpi_library)
  if [[ -z $mpi && -n $library ]]; then mpi=$(mpi_of_library "$library"); fi
  if [[ -z $mpi ]]; then mpi=$(mpi_of_launcher mpirun); fi
  case $mpi in
    openmpi) names=(mpirun mpirun.openmpi) ;;
    mpich) names=(mpiexec.hydra mpirun.mpich mpirun) ;;
    *) fail 69 "$program is linked with no MPI library, and no mpirun of Open MPI or MPICH is on PATH; see --mpi" ;;
  esac
  for name in "${names[@]}"; do
    places=("$(command -v "$name" || true)")
    # A library of a module or of one's own has its launcher beside it.
    if [[ $(mpi_of_library "$library") == "$mpi" ]]; then places=("${library%/lib*}/bin/$name" "${places[@]}"); fi
    for launcher in "${places[@]}"; do
      if [[ -x $launcher && $(mpi_of_launcher "$launcher") == "$mpi" ]]; then return; fi
    done
  done
  fail 69 "there is no mpirun of ${mpi/openmpi/Open MPI} for $program: looked for ${names[*]}"
}

# Where ----------------------------------------------------------------------------------------------------------------

hosts=()          # in their order
declare -A room   # host -> how many ranks it was said to have room for
declare -A named  # host -> how often it was named

# add_host NAME [ROOM]
add_host() {
  if [[ -z ${named[$1]:-} ]]; then hosts+=("$1"); fi
  named[$1]=$((${named[$1]:-0} + 1))
  if [[ -n ${2:-} ]]; then room[$1]=$((${room[$1]:-0} + $2)); fi
}

readonly host_line='^([^[:space:]:]+)(:([0-9]+)|[[:space:]]+slots[[:space:]]*=[[:space:]]*([0-9]+))?([[:space:]]+max[-_]slots.*)?$'

# read_hosts: from standard input, one a line.
read_hosts() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line%%#*}
    read -r line <<<"$line"
    [[ -n $line ]] || continue
    [[ $line =~ $host_line ]] || fail 2 "not a host: $line"
    add_host "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]}${BASH_REMATCH[4]}"
  done
}

# Sets the room of every host, and $ranks.
share_ranks() {
  local host index open=() left=${ranks:-0}
  for host in "${hosts[@]}"; do
    if [[ -n $per_node ]]; then
      ((${room[$host]:-$per_node} >= per_node)) || fail 2 "$host has room for ${room[$host]} ranks, --per-node says $per_node"
      room[$host]=$per_node
    elif [[ -z ${room[$host]:-} ]]; then
      if ((named[$host] > 1)); then room[$host]=${named[$host]}; else open+=("$host"); fi
    fi
    left=$((left - ${room[$host]:-0}))
  done
  if ((${#open[@]})) && [[ -z $ranks ]]; then fail 2 "say -n or --per-node, or how many ranks ${open[0]} has room for"; fi
  left=$((left > 0 ? left : 0))
  for index in "${!open[@]}"; do
    room[${open[index]}]=$((left / ${#open[@]} + (index < left % ${#open[@]})))
  done
  left=0
  for host in "${hosts[@]}"; do left=$((left + room[$host])); done
  ranks=${ranks:-$left}
  ((ranks <= left)) || fail 2 "$ranks ranks, but the hosts have room for $left"
}

# Prints "node1:4,node2:3": who gets how many, those that get none left out.
host_list() {
  local host count left=$ranks list=()
  for host in "${hosts[@]}"; do
    count=$((room[$host] < left ? room[$host] : left))
    left=$((left - count))
    if ((count)); then list+=("$host:$count"); fi
  done
  (IFS=, && echo "${list[*]}")
}

choose_hosts() {
  if [[ -n $hosts_given ]]; then
    if [[ -f $hosts_given ]]; then
      read_hosts <"$hosts_given"
    elif [[ $hosts_given == */* ]]; then
      fail 66 "$hosts_given: no such file"
    else
      read_hosts < <(tr ',' '\n' <<<"$hosts_given")
    fi
    ((${#hosts[@]})) || fail 2 "--hosts $hosts_given names no host"
    where=hosts
    share_ranks
  elif [[ -n ${SLURM_JOB_ID:-}${PBS_NODEFILE:-}${LSB_JOBID:-}${PE_HOSTFILE:-} ]]; then
    where=allocation
  else
    where=here
    ranks=${ranks:-${per_node:-$cores}}
    if [[ -n $per_node ]] && ((ranks > per_node)); then fail 2 "-n $ranks on one host, --per-node says $per_node"; fi
  fi
}

# How ------------------------------------------------------------------------------------------------------------------

# Prints how many cores this process may use: their hardware threads list the same siblings.
usable_cores() {
  local range cpu ranges siblings=()
  IFS=, read -r -a ranges < <(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status)
  for range in "${ranges[@]}"; do
    for ((cpu = ${range%-*}; cpu <= ${range#*-}; ++cpu)); do
      siblings+=("/sys/devices/system/cpu/cpu$cpu/topology/thread_siblings_list")
    done
  done
  if [[ -r ${siblings[0]} ]]; then cat "${siblings[@]}" | sort -u | wc -l; else nproc; fi
}

choose_binding() {
  if [[ $bind == core && $where == here ]] && ((ranks > cores)); then
    fail 2 "--bind core: $ranks ranks, but this host has $cores cores"
  fi
  [[ $bind == auto ]] || return 0
  bind=numa
  if [[ $where == here ]]; then
    if ((ranks > cores)); then bind=none; elif ((ranks == cores)); then bind=core; fi
  fi
}

# Prints the interfaces that lead away from this host: to anywhere, and to the hosts that were named.
interfaces_in_use() {
  local host address
  awk '$2 == "00000000" { print $1 }' /proc/net/route
  command -v ip >/dev/null || return 0
  for host in "${hosts[@]}"; do
    read -r address _ < <(getent ahosts "$host") || continue
    ip -o route get "$address" 2>/dev/null | grep -oP '(?<= dev )\S+' || true
  done
}

# Prints the bridges and tunnels of containers and virtual machines: they are on every host under one name, often with one
# address, and lead nowhere.
interfaces_of_guests() {
  awk -F '[ :]+' 'NR > 2 { print $1 == "" ? $2 : $1 }' /proc/net/dev |
    grep -xE 'br-[0-9a-f]{12}|(cali|cni|docker|flannel|lxc|lxdbr|podman|veth|virbr).*' |
    grep -vxFf <(interfaces_in_use) || true
}

command=()

# mca OPTION NAME VALUE: OPTION is --mca or --prtemca; nothing where the environment says it.
mca() {
  local old=OMPI_MCA_$2 new=PRTE_MCA_$2
  if [[ -z ${!old+set}${!new+set} ]]; then command+=("$@"); fi
}

# is_configured INFO FRAMEWORK: whether a file says which interfaces to use or not to use. Open MPI refuses both at once.
is_configured() {
  local info=${launcher%/*}/$1
  if [[ ! -x $info ]]; then info=$1; fi
  { "$info" --param all all --level 9 --parsable || true; } 2>/dev/null |
    grep -E ":$2_if_(include|exclude):source:file" >/dev/null
}

# interfaces_of_openmpi OPTION INFO FRAMEWORK: those to use, or those not to use.
interfaces_of_openmpi() {
  local included=OMPI_MCA_$3_if_include guests
  if [[ -n $interfaces ]]; then
    mca "$1" "$3_if_include" "$interfaces"
  elif [[ -z ${!included+set} ]] && ! is_configured "$2" "$3"; then
    mapfile -t guests < <(interfaces_of_guests)
    # Open MPI leaves out the loopback by itself, but where it is told what to leave out.
    if ((${#guests[@]})); then mca "$1" "$3_if_exclude" "$(IFS=, && echo "lo,${guests[*]}")"; fi
  fi
}

between_hosts_by_openmpi() {
  local name of_daemons=--mca info=ompi_info daemons=oob_tcp
  if [[ $1 != 4.* ]]; then of_daemons=--prtemca info=prte_info daemons=prte; fi
  interfaces_of_openmpi --mca ompi_info btl_tcp
  interfaces_of_openmpi "$of_daemons" "$info" "$daemons"
  # A link that is down breaks no connection by itself: without this, mpirun waits for ever.
  mca "$of_daemons" oob_tcp_keepalive_time 10
  mca "$of_daemons" oob_tcp_keepalive_intvl 5
  mca "$of_daemons" oob_tcp_keepalive_probes 3
  for name in $(compgen -e | grep -E '^(LD_LIBRARY_PATH$|MPIRUN_GRACE_SECONDS$|RANKSLICE_|UCX_|NCCL_)'); do
    if [[ -n ${!name:-} ]]; then command+=(-x "$name"); fi
  done
}

# Sets `command` for Open MPI 4 or 5.
command_of_openmpi() {
  local version policy=slot name
  version=$("$launcher" --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
  command=("$launcher")
  if [[ $(id -u) == 0 ]]; then command+=(--allow-run-as-root); fi
  if [[ -n $ranks ]]; then command+=(-n "$ranks"); fi
  if [[ $where == hosts ]]; then command+=(--host "$(host_list)"); fi

  if [[ $bind != none ]]; then policy=$bind; fi
  if [[ $where == allocation && -n $per_node ]]; then policy=ppr:$per_node:node; fi
  # More ranks than cores is for trying things out; where hosts were named, their room is what counts.
  if [[ $where == here ]] && ((ranks > cores)); then policy+=:OVERSUBSCRIBE; fi
  command+=(--map-by "$policy")
  # Neighbours share a domain, as the GPUs of a domain have neighbouring numbers. Open MPI 5 does that by itself.
  if [[ $policy == numa* && $version == 4.* ]]; then command+=(--rank-by numa:fill); fi
  command+=(--bind-to "${bind/#numa/numa:overload-allowed}")

  if [[ $where != here ]]; then between_hosts_by_openmpi "$version"; fi
  for name in "${variables[@]}"; do command+=(-x "$name"); done
}

# Sets `command` for MPICH's Hydra, which takes the whole environment along.
command_of_mpich() {
  local variable
  command=("$launcher")
  if [[ -n $ranks ]]; then command+=(-n "$ranks"); fi
  if [[ $where == hosts ]]; then command+=(-hosts "$(host_list)"); fi
  if [[ $where == allocation && -n $per_node ]]; then command+=(-ppn "$per_node"); fi
  command+=(-bind-to "$bind")
  if [[ $bind != none ]]; then command+=(-map-by "$bind"); fi
  if [[ -n $interfaces && $where != here ]]; then command+=(-iface "$interfaces"); fi
  for variable in "${variables[@]}"; do
    if [[ $variable == *=* ]]; then command+=(-genv "${variable%%=*}" "${variable#*=}"); fi
  done
}

# The job --------------------------------------------------------------------------------------------------------------

# Prints a command so that a shell reads it back.
print_command() {
  local word words=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
  done
  echo "${words[*]}"
}

describe() {
  local at=here
  case $where in
    hosts) at="on $(host_list)" ;;
    allocation) at="on the hosts of this job" ;;
  esac
  say "${ranks:-all} ranks $at by $launcher, bound to ${bind/#numa/NUMA domains}"
}

job=
stopped_by=
interrupted=false
ends=()  # when, in $SECONDS, a job that was asked to stop is to end: by SIGTERM to the launcher, by SIGKILL

# Ranks get SIGUSR1 and SIGUSR2 for SIGTERM and SIGINT (launch/rank.sh). MPICH passes on no SIGUSR2.
pass_on() {
  local -A stand_in=([TERM]=USR1 [INT]=USR2)
  if [[ $mpi == mpich ]]; then stand_in[INT]=USR1; fi
  interrupted=true
  if [[ -n $stopped_by ]]; then
    ends[0]=$SECONDS
  else
    stopped_by=$1
    ends=($((SECONDS + ${MPIRUN_GRACE_SECONDS:-30})))
    if [[ -n $job ]]; then kill -s "${stand_in[$1]}" "$job" 2>/dev/null || true; fi
  fi
}

# Adds the processes that PID started, and theirs, to `found`. Forks nothing: it is asked again and again.
find_descendants() {
  local file child children
  for file in "/proc/$1/task"/*/children; do
    { read -r -d '' -a children <"$file" || true; } 2>/dev/null
    for child in "${children[@]}"; do
      found+=("$child")
      find_descendants "$child"
    done
    children=()
  done
}

# Sets `ranks_here` to the processes that are ranks of the job on this host.
find_ranks_here() {
  local found=() process words
  ranks_here=()
  find_descendants "$job"
  for process in "${found[@]}"; do
    { mapfile -d '' -t words <"/proc/$process/cmdline" || words=(); } 2>/dev/null
    if [[ " ${words[*]} " == *" $launch/rank.sh "* ]]; then ranks_here+=("$process"); fi
  done
}

has_ranks_here() {
  local process
  for process in "${ranks_here[@]}"; do
    if kill -0 "$process" 2>/dev/null; then return; fi
  done
  find_ranks_here
  ((${#ranks_here[@]}))
}

# The launcher with what it started here: an ssh to a host that does not answer outlives it.
kill_launcher() {
  local found=()
  find_descendants "$job"
  kill -s KILL "$job" "${found[@]}" 2>/dev/null || true
}

# Ends this process when there is nothing to watch any more: the job has ended, or the script was killed.
watch_on() {
  local parent
  sleep 1
  read -r _ _ _ parent _ </proc/self/stat
  if [[ $parent != "$$" ]] || ! kill -0 "$job" 2>/dev/null; then exit 0; fi
}

# A launcher outlives its ranks by moments, but where a host stands still, or a link went down after it sent something over
# it, it waits for that host: for ever, or for as long as the kernel tries to send. Exits with 75 when it had to be ended.
end_launcher_that_waits() {
  local grace=${MPIRUN_GRACE_SECONDS:-30} since ranks_here=()
  until has_ranks_here; do watch_on; done
  while has_ranks_here; do watch_on; done
  since=$SECONDS
  while ((SECONDS - since < grace)); do watch_on; done
  trap '' TERM
  say "all ranks of this host ended $grace s ago, ${launcher##*/} did not: a host does not answer"
  kill_launcher
  exit 75
}

# Until the job ends, which was asked to stop. A launcher that waits for a host behind a dead link ignores SIGTERM.
see_it_end() {
  local signals=(TERM KILL)
  while kill -0 "$job" 2>/dev/null; do
    if ((${#ends[@]} && SECONDS >= ends[0])); then
      say "the job has not ended: SIG${signals[0]} to ${launcher##*/}"
      if [[ ${signals[0]} == KILL ]]; then kill_launcher; else kill -s TERM "$job" 2>/dev/null || true; fi
      signals=("${signals[-1]}")
      ends=($((SECONDS + 10)))
    fi
    sleep 0.1
  done
}

# Returns the exit code of the launcher, or that of the signal which ended the ranks.
run_job() {
  local code=0 of_signal=143 with_us=() watch=
  # Where this script is killed, its launcher is not left alone.
  if command -v setpriv >/dev/null; then with_us=(setpriv --pdeathsig TERM --); fi
  trap 'pass_on TERM' TERM HUP
  trap 'pass_on INT' INT
  set -m  # a process group of its own: Ctrl-C comes to it once, from here
  "${with_us[@]}" "$@" </dev/null &
  job=$!
  set +m
  if [[ $where != here ]]; then (trap - TERM INT HUP && end_launcher_that_waits) & watch=$!; fi
  interrupted=true
  while $interrupted && [[ -z $stopped_by ]]; do
    interrupted=false
    wait "$job" 2>/dev/null && code=0 || code=$?
  done
  if [[ -n $stopped_by ]]; then
    see_it_end
    wait "$job" 2>/dev/null && code=0 || code=$?
    if [[ $stopped_by == INT ]]; then of_signal=130; fi
    # Launchers have codes of their own for this, and MPICH may say 0 where the ranks left with 143.
    if ((code == 1 || code >= 128)) || [[ $code == 0 && $mpi == mpich ]]; then code=$of_signal; fi
  fi
  if [[ -n $watch ]]; then
    kill "$watch" 2>/dev/null || true
    wait "$watch" 2>/dev/null || if (($? == 75)); then code=75; fi
  fi
  return "$code"
}

ranks=
hosts_given=
per_node=
bind=auto
interfaces=
log_dir=-
mpi=
dry_run=false
variables=()

number() {
  [[ $2 =~ ^[1-9][0-9]{0,6}$ ]] || fail 2 "$1 takes a number from 1 on, not $2"
  echo "$2"
}

while (($#)) && [[ $1 == -* && $1 != -- ]]; do
  case $1 in
    --dry-run) dry_run=true && shift && continue ;;
    -h | --help) usage && exit 0 ;;
  esac
  (($# > 1)) || fail 2 "$1: unknown, or its value is missing; see --help"
  case $1 in
    -n) ranks=$(number "$1" "$2") ;;
    --hosts) hosts_given=$2 ;;
    --per-node) per_node=$(number "$1" "$2") ;;
    --bind) bind=$2 ;;
    --interfaces) interfaces=$2 ;;
    --log-dir) log_dir=$(realpath -m "$2") ;;
    --mpi) mpi=$2 ;;
    -x) variables+=("$2") ;;
    *) fail 2 "$1: unknown; see --help" ;;
  esac
  shift 2
done
if [[ ${1:-} == -- ]]; then shift; fi
(($#)) || { usage >&2 && exit 2; }
[[ $bind =~ ^(auto|core|numa|none)$ ]] || fail 2 "--bind is auto, core, numa or none, not $bind"
[[ $mpi =~ ^(|openmpi|mpich)$ ]] || fail 2 "--mpi is openmpi or mpich, not $mpi"

program=$(type -P "$1" || true)
[[ -x $program ]] || fail 127 "$1: there is no such program"
program=$(realpath -s "$program")
shift

cores=$(usable_cores)
find_launcher
choose_hosts
choose_binding
"command_of_$mpi"
command+=("$launch/rank.sh" "$log_dir" "$program" "$@")

describe
if $dry_run; then print_command "${command[@]}"; else run_job "${command[@]}"; fi
