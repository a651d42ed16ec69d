# shellcheck shell=bash
# Sourced. A Slurm cluster on one machine: one slurmctld and several slurmd, as root, with a munge key, sockets, ports
# and files of its own; nothing of a Slurm or munge that the machine may have is touched.
#
#   slurm_obstacle       prints why a cluster cannot be started here; nothing when it can
#   slurm_start NODES    exports SLURM_CONF, sets slurm_dir
#   slurm_stop           cancels the jobs, ends the daemons by their pids, removes slurm_dir; safe in any state

readonly SLURM_PROGRAMS=(munged slurmctld slurmd srun sbatch scancel sinfo squeue)

slurm_dir=
slurm_obstacle() {
  local program
  for program in "${SLURM_PROGRAMS[@]}"; do
    command -v "$program" >/dev/null || { echo "$program is not installed"; return; }
  done
  [[ $(id -u) == 0 ]] || { echo "slurmd needs root"; return; }
  [[ -n $(compgen -G "/usr/lib/*/slurm*/mpi_pmix*.so") ]] || echo "this Slurm has no pmix plugin"
}

slurm_free_ports() {
  /usr/bin/python3 - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
}

slurm_write_conf() {
  local dir=$1 nodes=$2 host node ports
  host=$(hostname -s)
  read -r -a ports < <(slurm_free_ports $((nodes + 1)))
  cat <<CONF
ClusterName=rankslice
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
# One for each node: the pmix plugin makes a directory of the same name in each.
TmpFS=$dir/tmp.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
# The nodes promise more CPUs than the machine may have.
SlurmdParameters=config_overrides
CONF
  for ((node = 1; node <= nodes; ++node)); do
    echo "NodeName=node$node NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[node]} CPUs=4 Boards=1" \
      "SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN"
  done
  echo "PartitionName=all Nodes=node[1-$nodes] Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES"
}

slurm_start() {
  local nodes=$1 dir node
  dir=$(mktemp -d /tmp/slurm.XXXXXX)  # short: it holds Unix sockets
  chmod 711 "$dir"                    # munged refuses a socket that others cannot reach
  slurm_dir=$dir
  mkdir "$dir/state" "$dir/log"
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munged.seed"
  export SLURM_CONF=$dir/slurm.conf
  # The nodes share one host name, and so the names of Open MPI's shared-memory files: ranks would write into those of
  # the other node. The loopback interface is what every machine has.
  export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
  slurm_write_conf "$dir" "$nodes" >"$SLURM_CONF"
  slurmctld -f "$SLURM_CONF"
  for ((node = 1; node <= nodes; ++node)); do
    mkdir -p "$dir/spool.node$node" "$dir/tmp.node$node"
    slurmd -N "node$node" -f "$SLURM_CONF"
  done
  for _ in {1..60}; do
    [[ $(sinfo -h -N -t idle 2>/dev/null | wc -l) == "$nodes" ]] && return
    sleep 0.5
  done
  echo "slurm: after 30 s the nodes are not idle:" >&2
  sinfo -N >&2
  tail -n 20 "$dir"/log/*.log >&2
  return 1
}

# slurm_end_daemon PIDFILE NAME: TERM, after 5 s KILL, as long as the pid is that daemon's.
slurm_end_daemon() {
  local pid try
  pid=$(cat "$1" 2>/dev/null) || return 0
  for try in {0..30}; do
    [[ $(readlink "/proc/$pid/exe") == */$2* ]] || return 0
    if ((try == 0)); then kill "$pid"; elif ((try == 25)); then kill -9 "$pid"; fi
    sleep 0.2
  done
  echo "slurm: $2, pid $pid, still runs" >&2
}

slurm_stop() {
  local dir=$slurm_dir file
  [[ -n $dir ]] || return 0
  if [[ -e $dir/slurmctld.pid ]]; then
    timeout -k 5 10 scancel -u root || true  # a slurmstepd outlives its slurmd
    for _ in {1..20}; do
      [[ -z $(timeout -k 5 10 squeue -h 2>/dev/null) ]] && break
      sleep 0.5
    done
  fi
  for file in "$dir"/slurmd.*.pid; do slurm_end_daemon "$file" slurmd; done
  slurm_end_daemon "$dir/slurmctld.pid" slurmctld
  slurm_end_daemon "$dir/munged.pid" munged
  rm -rf "$dir"
}
