"""The scripts for EKS, run with stand-ins for aws, helm and kubectl."""

import base64
import email
import json
import os
import subprocess
from pathlib import Path

import pytest
from manifests import DEPLOY

EKS = DEPLOY / "eks"
SCRIPTS = sorted(EKS.glob("*.sh"))
STAND_IN = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >> "$CALLS"; printf '\\n\\0' >> "$CALLS"
case "$*" in
  *describe-launch-templates*) exit "${TEMPLATE_MISSING:-0}" ;;
  *describe-cluster*) echo sg-1 ;;
  "get nodes"*) printf "$NODES" ;;
esac
"""


class Cloud:
    """Runs the scripts; `calls` are the commands that they gave, as words."""

    def __init__(self, directory: Path) -> None:
        self._programs = directory / "programs"
        self._programs.mkdir()
        self._calls = directory / "calls"
        for name in ("aws", "helm", "kubectl"):
            (self._programs / name).write_text(STAND_IN)
            (self._programs / name).chmod(0o755)

    def run(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [EKS / script],
            env={
                "PATH": f"{self._programs}:{os.environ['PATH']}",
                "CALLS": str(self._calls),
                "CLUSTER": "models",
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> list[list[str]]:
        calls: list[list[str]] = [[]]
        for word in self._calls.read_text().split("\0")[:-1]:
            if word == "\n":
                calls.append([])
            else:
                calls[-1].append(word)
        return calls[:-1]

    def call(self, *words: str) -> dict[str, str]:
        """Return the options of the one command that begins with these words."""
        (found,) = [call[len(words) :] for call in self.calls if call[: len(words)] == list(words)]
        return dict(zip(found[::2], found[1::2], strict=False))


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("missing", "command"),
    [("1", "create-launch-template"), ("0", "create-launch-template-version")],
)
def test_the_launch_template_is_made_or_gets_a_version(
    cloud: Cloud, missing: str, command: str
) -> None:
    done = cloud.run("1-launch-template.sh", TEMPLATE_MISSING=missing)

    assert done.returncode == 0, done.stderr
    assert cloud.call("aws", "ec2", command)["--launch-template-name"] == "models-trainium2"


class TestLaunchTemplate:
    @pytest.fixture
    def data(self, cloud: Cloud) -> dict[str, object]:
        cloud.run("1-launch-template.sh")
        options = cloud.call("aws", "ec2", "create-launch-template-version")
        found = json.loads(options["--launch-template-data"])
        assert isinstance(found, dict)
        return found

    def test_nodes_have_an_efa_interface_beside_the_usual_one(
        self, data: dict[str, object]
    ) -> None:
        assert data["NetworkInterfaces"] == [
            {"DeviceIndex": 0, "DeleteOnTermination": True, "Groups": ["sg-1"]},
            {
                "DeviceIndex": 1,
                "InterfaceType": "efa-only",
                "DeleteOnTermination": True,
                "Groups": ["sg-1"],
            },
        ]

    def test_user_data_is_the_script_in_mime(self, data: dict[str, object]) -> None:
        message = email.message_from_bytes(base64.b64decode(str(data["UserData"]), validate=True))
        (part,) = list(message.walk())[1:]

        assert message.get_content_type() == "multipart/mixed"
        assert part.get_content_type() == "text/x-shellscript"
        assert str(part.get_payload()).rstrip() == (EKS / "user-data.sh").read_text().rstrip()

    def test_the_security_group_lets_itself_out(self, cloud: Cloud, data: object) -> None:
        del data
        options = cloud.call("aws", "ec2", "authorize-security-group-egress")

        assert options["--group-id"] == "sg-1"
        assert "UserIdGroupPairs=[{GroupId=sg-1}]" in options["--ip-permissions"]


def test_the_node_group_takes_the_launch_template(cloud: Cloud) -> None:
    done = cloud.run("2-node-group.sh", SUBNETS="subnet-1 subnet-2", NODE_ROLE_ARN="arn:role")

    assert done.returncode == 0, done.stderr
    (call,) = [call for call in cloud.calls if call[:3] == ["aws", "eks", "create-nodegroup"]]
    at = call.index("--subnets")
    assert call[at + 1 : at + 3] == ["subnet-1", "subnet-2"]
    assert call[call.index("--ami-type") + 1] == "AL2023_x86_64_NEURON"
    assert call[call.index("--instance-types") + 1] == "trn2.48xlarge"
    assert call[call.index("--launch-template") + 1].startswith("name=models-trainium2,version=")


@pytest.mark.parametrize("script", ["1-launch-template.sh", "2-node-group.sh", "verify.sh"])
def test_what_is_missing_is_named(cloud: Cloud, script: str) -> None:
    done = cloud.run(script, CLUSTER="")

    assert done.returncode != 0
    assert "the name of the EKS cluster" in done.stderr


def test_both_device_plugins_are_installed(cloud: Cloud) -> None:
    done = cloud.run("3-device-plugins.sh")

    assert done.returncode == 0, done.stderr
    installed = [call[4] for call in cloud.calls if call[:3] == ["helm", "upgrade", "--install"]]
    assert installed == [
        "eks/aws-efa-k8s-device-plugin",
        "oci://public.ecr.aws/neuron/neuron-helm-chart",
    ]


@pytest.mark.parametrize(
    ("nodes", "status"),
    [
        ("a efa=1 neuron=16\\nb efa=1 neuron=16\\n", 0),
        ("a efa=1 neuron=16\\nb efa= neuron=16\\n", 1),
        ("a efa=1 neuron=16\\nb efa=1 neuron=\\n", 1),
        ("a efa=0 neuron=16\\n", 1),
        ("", 1),
    ],
)
def test_nodes_without_devices_are_found(cloud: Cloud, nodes: str, status: int) -> None:
    assert cloud.run("verify.sh", NODES=nodes).returncode == status
