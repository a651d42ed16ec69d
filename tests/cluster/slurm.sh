#!/usr/bin/env bash
# Starts a Slurm cluster in the box (box.sh), whose end is also that of the cluster.
#
#   slurm.sh FOLDER HOST…             a node on each of these hosts (hosts.sh), and the controller on the first
#   slurm.sh FOLDER HOST NUMBER       so many nodes that are this one host: HOST-1, HOST-2, …
#   slurm.sh FOLDER --again HOST      starts a node anew whose host was switched off
#
# Returns when all nodes are idle. The configuration is FOLDER/slurm.conf. FOLDER is new, and its path short: it holds
# Unix sockets. Exits with 77 after "skipped: REASON" where there is no Slurm.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1
shift
export SLURM_CONF=$folder/slurm.conf

obstacle() {
  local program
  for program in munged slurmctld slurmd srun sbatch salloc scancel; do
    command -v "$program" >/dev/null || { echo "$program is not installed"; return; }
  done
  [[ -n $(compgen -G "/usr/lib/*/slurm*/mpi_pmix*.so") ]] || echo "this Slurm has no pmix plugin"
}

# One for all nodes: it speaks through a Unix socket.
start_munge() {
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munged.seed" 2>>"$folder/log/munged.log"
}

# Slurm expands no variables.
write_conf() {
  cat <<CONF
ClusterName=rankslice
SlurmctldHost=${hosts[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
# One for each node: the pmix plugin makes a directory of the same name in each, with Open MPI's session folders.
TmpFS=$folder/tmp.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
ReturnToService=2
# Seconds: from SIGTERM to SIGKILL, until a node that does not answer is down, and for an answer.
KillWait=20
SlurmdTimeout=60
MessageTimeout=30
# Minutes, for jobs that were asked to stop before their time limit.
OverTimeLimit=5
# Batch jobs start at once.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
# The nodes promise more CPUs than the machine may have.
SlurmdParameters=config_overrides
CONF
  for ((i = 0; i < ${#nodes[@]}; ++i)); do
    echo "NodeName=${nodes[i]} NodeHostname=${hosts[i]} NodeAddr=${hosts[i]} Port=$((17001 + i)) RealMemory=1000" \
      "CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1"
  done
  echo "PartitionName=all Nodes=$(IFS=, && echo "${nodes[*]}") Default=YES MaxTime=INFINITE"
}

on() { "$here/hosts.sh" on "$@"; }

wait_until_idle() {
  local names
  names=$(IFS=, && echo "${nodes[*]}")
  until ((SECONDS > 90)); do
    [[ $(on "${hosts[0]}" sinfo --noheader --Node --states=idle --nodes="$names" | wc -l) == "${#nodes[@]}" ]] && return
    sleep 0.1
  done
  echo "slurm: after 90 s not all of $names are idle:" >&2
  on "${hosts[0]}" sinfo --Node >&2
  tail -n 20 "$folder"/log/*.log >&2
  return 1
}

# start_node NODE HOST
start_node() {
  mkdir -p "$folder/spool.$1" "$folder/tmp.$1"
  on "$2" slurmd -N "$1"
}

if [[ $1 == --again ]]; then
  nodes=("$2")
  hosts=("$2")
  start_node "$2" "$2"
  wait_until_idle
  exit
fi
reason=$(obstacle)
if [[ -n $reason ]]; then
  echo "skipped: $reason"
  exit 77
fi
nodes=("$@")
hosts=("$@")
if [[ ${2:-} =~ ^[0-9]+$ ]]; then
  mapfile -t nodes < <(seq -f "$1-%g" "$2")
  hosts=("${nodes[@]/*/$1}")
fi
mkdir -p "$folder"/{state,log}
chmod 711 "$folder"  # munged refuses a socket that others cannot reach
start_munge
write_conf >"$SLURM_CONF"
on "${hosts[0]}" slurmctld
for ((i = 0; i < ${#nodes[@]}; ++i)); do start_node "${nodes[i]}" "${hosts[i]}"; done
wait_until_idle
