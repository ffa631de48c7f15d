# Sourced by the scripts beside it; every value can be set in the environment instead.
: "${CLUSTER:?the name of the EKS cluster}"
: "${NODE_GROUP:=trainium2}"
: "${LAUNCH_TEMPLATE:=$CLUSTER-$NODE_GROUP}"
