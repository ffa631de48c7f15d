#!/bin/bash
# Lets pods ask for vpc.amazonaws.com/efa and aws.amazon.com/neuron.
set -euo pipefail

helm repo add eks https://aws.github.io/eks-charts
helm repo update eks
helm upgrade --install aws-efa-k8s-device-plugin eks/aws-efa-k8s-device-plugin \
  --namespace kube-system --set 'tolerations[0].operator=Exists'
helm upgrade --install neuron-helm-chart oci://public.ecr.aws/neuron/neuron-helm-chart \
  --namespace kube-system --set npd.enabled=false
