#!/bin/bash
# Makes the managed node group of Trainium2 nodes with the newest version of the launch template.
# Two prefill and four decode pods of examples/trainium2 fill six nodes.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh
: "${SUBNETS:?ids of subnets, separated by spaces; all in one availability zone, which EFA cannot leave}"
: "${NODE_ROLE_ARN:?the ARN of the nodes IAM role}"
: "${NODES:=6}"

version=$(aws ec2 describe-launch-templates --launch-template-names "$LAUNCH_TEMPLATE" --output text \
  --query 'LaunchTemplates[0].LatestVersionNumber')
# shellcheck disable=SC2086  # several subnets are several arguments
aws eks create-nodegroup \
  --cluster-name "$CLUSTER" \
  --nodegroup-name "$NODE_GROUP" \
  --subnets $SUBNETS \
  --node-role "$NODE_ROLE_ARN" \
  --scaling-config "minSize=1,maxSize=$NODES,desiredSize=$NODES" \
  --ami-type AL2023_x86_64_NEURON \
  --instance-types trn2.48xlarge \
  --taints key=aws.amazon.com/neuron,value=present,effect=NO_SCHEDULE \
  --launch-template "name=$LAUNCH_TEMPLATE,version=$version"
aws eks wait nodegroup-active --cluster-name "$CLUSTER" --nodegroup-name "$NODE_GROUP"
