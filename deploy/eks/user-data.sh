#!/bin/bash
# Runs on each node when it first starts, before it joins the cluster: EFA's user space libraries.
# (A pod brings its own; these are for the commands in verify-node.sh.)
set -euxo pipefail

dnf -y install tar rdma-core pciutils libfabric libfabric-utils
cd /tmp
curl -fsSLO https://efa-installer.amazonaws.com/aws-efa-installer-latest.tar.gz
tar -xzf aws-efa-installer-latest.tar.gz
cd aws-efa-installer
./efa_installer.sh -y
