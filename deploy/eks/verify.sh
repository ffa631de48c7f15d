#!/bin/bash
# Says for each node of the group how many EFA and Neuron devices pods can ask for; fails if one has
# none.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh

nodes=$(kubectl get nodes --selector "eks.amazonaws.com/nodegroup=$NODE_GROUP" --output \
  'jsonpath={range .items[*]}{.metadata.name}{" efa="}{.status.allocatable.vpc\.amazonaws\.com/efa}{" neuron="}{.status.allocatable.aws\.amazon\.com/neuron}{"\n"}{end}')
if [[ -z $nodes ]]; then
  echo "no node of the group $NODE_GROUP has joined" >&2
  exit 1
fi
echo "$nodes"
if grep -Eq '(efa|neuron)=(0|$| )' <<<"$nodes"; then
  echo "a node lacks devices: see the plugins' pods (kubectl get pods -n kube-system -o wide)" >&2
  exit 1
fi
