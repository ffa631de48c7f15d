#!/bin/bash
# Makes the launch template of the Trainium2 nodes, or a new version of it: an EFA interface, a disk
# for models and images, user data. Prints its id and version.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh

group=$(aws eks describe-cluster --name "$CLUSTER" --output text \
  --query cluster.resourcesVpcConfig.clusterSecurityGroupId)

# EFA passes the operating system by, and only goes where the group names itself, in both directions.
# The cluster's group already lets itself in.
aws ec2 authorize-security-group-egress --group-id "$group" \
  --ip-permissions "IpProtocol=-1,UserIdGroupPairs=[{GroupId=$group}]" >/dev/null \
  || echo "egress of $group to itself was allowed before, or could not be: see above" >&2

# EKS adds its own part to the user data of a managed node group, and takes MIME only.
user_data=$(base64 --wrap=0 <<END
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="user-data"

--user-data
Content-Type: text/x-shellscript; charset="us-ascii"

$(cat user-data.sh)
--user-data--
END
)
data=$(sed -e "s|SECURITY_GROUP|$group|" -e "s|USER_DATA|$user_data|" launch-template.json)

if aws ec2 describe-launch-templates --launch-template-names "$LAUNCH_TEMPLATE" >/dev/null 2>&1; then
  aws ec2 create-launch-template-version --launch-template-name "$LAUNCH_TEMPLATE" \
    --launch-template-data "$data" --output text \
    --query 'LaunchTemplateVersion.[LaunchTemplateId,VersionNumber]'
else
  aws ec2 create-launch-template --launch-template-name "$LAUNCH_TEMPLATE" \
    --launch-template-data "$data" --output text \
    --query 'LaunchTemplate.[LaunchTemplateId,LatestVersionNumber]'
fi
