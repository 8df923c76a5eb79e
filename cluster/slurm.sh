#!/usr/bin/env bash
# One xfer run on the nodes of a Slurm job: starts a Ray cluster of its own there, waits until all nodes have joined, runs the recipe
# on it, and ends what it started. From the environment that has xfer in it:
#
#     sbatch cluster/slurm.sh recipes/mine.yaml [KEY=VALUE...]
#
# The working directory and the folders below must lie on a filesystem that all nodes share. What to edit: the #SBATCH lines, or the
# same options on the command line of sbatch, which win: sbatch --nodes=4 --partition=gpu cluster/slurm.sh recipes/mine.yaml
#
# Variables (export them before sbatch):
#   XFER_BUNDLE        the bundle's folder                                    default: runs/slurm-<job id> where sbatch was called
#   XFER_STORAGE       where stored features lie, for all nodes               default: xfer-jobs/storage, ditto
#   XFER_JOBS          a folder for tokens and Ray's output, one per job      default: xfer-jobs, ditto
#   XFER_WORKERS       how many processes train; `recipe`: what it says       default: one for each GPU, or one for each node without
#   XFER_HEAD_IP       the address at which other nodes reach the first one   default: its first IPv4 address
#   XFER_TEMP          Ray's temporary files, on each node, a short path      default: /tmp
#   XFER_JOIN_SECONDS  how long nodes may take to join                        default: 300
#   XFER_RESTARTS      how often the job may queue itself again               default: 20
#   XFER_COMMAND       what to run in place of `xfer`                         e.g. "apptainer exec --nv xfer.sif xfer"
#   RAY_COMMAND        what to run in place of `ray`                          e.g. "apptainer exec --nv xfer.sif ray"
#
#SBATCH --job-name=xfer
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=08:00:00
# Three minutes before the time is up (before a preemption too, where the site has PreemptParameters=send_user_signal) this script, and
# it alone, gets USR1: xfer saves, and the job queues itself again. The next start finds the bundle and goes on with it.
#SBATCH --signal=B:USR1@180
# A lost node ends the job, Slurm queues it again, and it goes on with the bundle on as many nodes as before. A recipe whose number of
# workers may change (`cluster: {workers: {min: 1, max: 4}}`) goes on with what is left: XFER_WORKERS=recipe sbatch --no-kill ...
#SBATCH --requeue

set -euo pipefail

INTERRUPTED=130  # the exit code of an xfer run that was asked to stop and can be resumed

say() { printf 'slurm.sh: %s\n' "$*" >&2; }

fail() {
  say "$1"
  exit "${2:-2}"
}

# Runs on each node, sent there as text: a Ray node until it ends or until USR1 or TERM, and then nothing of it is left.
# $1 is the folder for temporary files, the rest is the `ray start` command.
# shellcheck disable=SC2329
node() {
  local temporary="$1/xfer-ray-$SLURM_JOB_ID-${SLURMD_NODENAME:-node}" ray='' code asked=''
  shift
  # The name can be guessed and the folder is open to all users: what somebody else has put there is not used.
  if ! mkdir -m 700 "$temporary" 2>/dev/null && [[ ! -O $temporary || -L $temporary ]]; then
    echo "$temporary can't be made, or belongs to somebody else; set XFER_TEMP" >&2
    return 1
  fi
  trap 'asked=yes; if [[ -n $ray ]]; then kill -TERM "$ray" 2>/dev/null; fi' TERM USR1
  "$@" --temp-dir="$temporary" ${SLURM_CPUS_ON_NODE:+--num-cpus="$SLURM_CPUS_ON_NODE"} --block &
  ray=$!
  while true; do
    asked=''
    code=0
    wait "$ray" || code=$?
    [[ -n $asked ]] || break
  done
  rm -rf -- "$temporary"
  return "$code"
}

# Starts a Ray node on the node of that name; its output goes to a file of its own. The rest is given to `ray start`.
start_node() {
  local name=$1
  shift
  begun[$name]=$SECONDS
  srun --nodes=1 --ntasks=1 --nodelist="$name" --overlap --no-kill ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    bash -c "$(declare -f node)"$'\nnode "$@"' node "$temporary" "${ray[@]}" start "${memory[@]}" "$@" \
    </dev/null >>"$folder/ray-$name.log" 2>&1 &
  steps[$name]=$!
}

start_worker() {
  start_node "$1" --address="$head_ip:$port" --dashboard-agent-listen-port=0
}

# A node on which Ray has ended, for want of memory for one, while Slurm still has it for us: the workers there begin anew. Where the whole
# node is lost this fails, five times, and the rest goes on as far as it can.
revive() {
  local name
  for name in "${!steps[@]}"; do
    if [[ $name != "$head" ]] && ! kill -0 "${steps[$name]}" 2>/dev/null; then
      if ((SECONDS - ${begun[$name]} >= 15 && ${revived[$name]:-0} < 5)); then
        revived[$name]=$((${revived[$name]:-0} + 1))
        say "Ray has ended on $name; starting it again"
        start_worker "$name"
      fi
    fi
  done
}

still_running() {
  local step
  for step in "${steps[@]}"; do
    if kill -0 "$step" 2>/dev/null; then return 0; fi
  done
  return 1
}

# Ends what this script started, by process id, and nothing else; says nothing.
end_nodes() {
  local second
  trap '' USR1 TERM
  if ((${#steps[@]})); then
    kill -USR1 "${steps[@]}" 2>/dev/null || true  # srun hands it on to the node, which ends Ray and removes its files
    for ((second = 0; second < 20; second++)); do
      if ! still_running; then break; fi
      sleep 1
    done
    kill -TERM "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" 2>/dev/null || true
    steps=()
  fi
  rm -f -- "$token"
}

# USR1 is a warning that this script alone gets, and hands on to xfer. TERM comes from Slurm to all processes of the job, xfer among
# them, when it is cancelled, preempted or queued again: handed on, it would be the second one, which ends xfer before it has saved.
asked='' warned='' told='' run=''
# shellcheck disable=SC2329
got() {
  asked=yes
  if [[ $1 == USR1 ]]; then warned=yes; fi
  say "got $1"
  tell
}

tell() {
  if [[ -n $warned && -n $run && -z $told ]]; then
    told=yes
    kill -TERM "$run" 2>/dev/null || true
  fi
}

# The end of it, with xfer's exit code. After a warning the job queues itself again, since Slurm by itself only does that after a
# preemption or the loss of a node.
finish() {
  end_nodes
  if [[ -n $warned && $1 == "$INTERRUPTED" ]]; then
    if ((${SLURM_RESTART_COUNT:-0} < ${XFER_RESTARTS:-20})); then
      say "queueing job $SLURM_JOB_ID again"
      scontrol requeue "$SLURM_JOB_ID"
    else
      say "restarted ${SLURM_RESTART_COUNT:-0} times already; go on by hand with XFER_BUNDLE=$bundle"
    fi
  fi
  exit "$1"
}

# How many Ray nodes are there, asked of the dashboard with the token; before it answers there are none.
n_joined() {
  local answer
  answer=$("${ray[@]}" list nodes --address "http://127.0.0.1:$dashboard_port" \
    --filter state=ALIVE --limit 10000 --format json 2>&1) || true
  grep -o '"state": *"ALIVE"' <<<"$answer" | wc -l || true
}

# Returns when that many nodes have joined.
wait_for() {
  local name patience=${XFER_JOIN_SECONDS:-300} joined
  local deadline=$((SECONDS + patience))
  while true; do
    joined=$(n_joined)
    if ((joined >= $1)); then return; fi
    if [[ -n $asked ]]; then finish "$INTERRUPTED"; fi
    for name in "${!steps[@]}"; do
      if ! kill -0 "${steps[$name]}" 2>/dev/null; then
        fail "Ray ended on $name before all nodes had joined; see $folder/ray-$name.log" 1
      fi
    done
    ((SECONDS < deadline)) || fail "only $joined of ${#nodes[@]} nodes have joined after $patience s; see $folder/ray-*.log" 1
    sleep 1 || true  # a TERM for all ends it too
  done
}

# What was given, and what this is run with.
read -ra xfer <<<"${XFER_COMMAND:-xfer}"
read -ra ray <<<"${RAY_COMMAND:-ray}"
(($#)) || fail 'give a recipe: sbatch cluster/slurm.sh RECIPE [KEY=VALUE...]'
[[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_JOB_NODELIST:-} ]] || fail "this is no Slurm job; submit it: sbatch cluster/slurm.sh $1"
[[ -f $1 ]] || fail "no recipe $1 in $PWD"
for tool in scontrol srun "${ray[0]}" "${xfer[0]}"; do
  command -v "$tool" >/dev/null || fail "there is no $tool on PATH; activate the environment of xfer-runner[cluster] before sbatch"
done
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
((${#nodes[@]})) || fail "scontrol names no node for $SLURM_JOB_NODELIST"
home=${SLURM_SUBMIT_DIR:-$PWD}
jobs=${XFER_JOBS:-$home/xfer-jobs}
bundle=${XFER_BUNDLE:-$home/runs/slurm-$SLURM_JOB_ID}
storage=${XFER_STORAGE:-$jobs/storage}
temporary=${XFER_TEMP:-/tmp}
# Ray's processes work in folders of their own, where a relative path would mean another place.
for name in jobs bundle storage; do
  if [[ ${!name} != /* ]]; then printf -v "$name" '%s' "$PWD/${!name}"; fi
done
folder=$jobs/$SLURM_JOB_ID
token=$folder/auth_token
gpus=${SLURM_GPUS_ON_NODE:-0}
[[ $gpus =~ ^[0-9]+$ ]] || fail "SLURM_GPUS_ON_NODE=$gpus is no number; say how many processes train: XFER_WORKERS"
workers=${XFER_WORKERS:-$((${#nodes[@]} * (gpus > 0 ? gpus : 1)))}
# This script runs on the first node of the job, and so do Ray's head and xfer: the dashboard is not reachable from any other machine.
head=${SLURMD_NODENAME:-${nodes[0]}}
head_ip=${XFER_HEAD_IP:-$(hostname -I | tr ' ' '\n' | grep -m 1 -E '^[0-9.]+$' || true)}
[[ -n $head_ip ]] || fail "$head has no IPv4 address; set XFER_HEAD_IP"
# Three ports of its own for each job, below those that systems give out by themselves; all others are chosen by Ray.
port=$((20000 + SLURM_JOB_ID % 4000 * 3))
dashboard_port=$((port + 1))
client_port=$((port + 2))
# Ray would take its part of the whole machine's memory, of which the job may have only some (SLURM_MEM_PER_NODE is in MiB).
memory=()
if [[ -n ${SLURM_MEM_PER_NODE:-} && $SLURM_MEM_PER_NODE != 0 ]]; then
  memory=("--object-store-memory=$((SLURM_MEM_PER_NODE * 1024 * 1024 * 3 / 10))")
fi

# A token of this job, that only its owner can read; a variable with another one would win over the file.
mkdir -p "$jobs" "$storage"
mkdir -m 700 "$folder" 2>/dev/null || chmod 700 "$folder"
(
  umask 077
  rm -f -- "$token"
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token"
)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
unset RAY_AUTH_TOKEN RAY_ADDRESS

declare -A steps=() begun=() revived=()
trap end_nodes EXIT
trap 'got USR1' USR1
trap 'got TERM' TERM
start_node "$head" --head --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
  --ray-client-server-port="$client_port" --dashboard-agent-listen-port=0 --disable-usage-stats
wait_for 1
for name in "${nodes[@]}"; do
  if [[ $name != "$head" ]]; then start_worker "$name"; fi
done
wait_for "${#nodes[@]}"
say "all ${#nodes[@]} nodes have joined; Ray's output: $folder"
if [[ -n $asked ]]; then finish "$INTERRUPTED"; fi

# A bundle keeps the address and the number of workers that it was begun with. The job's next start has another head, so the bundle is
# told `auto`, which is whatever RAY_ADDRESS says at the time.
command=("${xfer[@]}" run)
if [[ -f $bundle/plan.json ]]; then
  say "going on with $bundle"
  command+=(--resume "$bundle")
else
  command+=("$@" --out "$bundle" --address auto --storage "$storage")
  if [[ $workers != recipe ]]; then command+=(--workers "$workers"); fi
fi
RAY_ADDRESS=$head_ip:$port "${command[@]}" &
run=$!
tell  # of a signal that came between these lines
while kill -0 "$run" 2>/dev/null; do
  if [[ -z $asked ]]; then revive; fi
  sleep 2 &
  wait "$!" || true  # a signal is seen at once
done
code=0
wait "$run" || code=$?
finish "$code"
