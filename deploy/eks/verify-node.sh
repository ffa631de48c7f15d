#!/bin/bash
# On a node (ssh, or `aws ssm start-session`): the EFA and Neuron devices that its kernel knows.
set -euo pipefail

ls /sys/class/infiniband # rdmap*
/opt/amazon/efa/bin/fi_info -p efa
ls /dev/neuron* # sixteen on a trn2.48xlarge
