"""What the doctor says of the manifests: nothing, in whatever namespace they are."""

import pytest
import yaml
from manifests import EVERYTHING, PATCHING, ROUTING, Object, compose

from pdrouter.tools.doctor.diagnosis import Diagnosis, diagnose
from pdrouter.tools.doctor.snapshot import Document, Snapshot


def examine(objects: list[Object]) -> Diagnosis:
    return diagnose(Snapshot.build(map(Document, objects)))


@pytest.mark.parametrize("namespace", ["default", "inference"])
@pytest.mark.parametrize("routing", ROUTING)
def test_nothing_is_found_in_all_components_together(routing: str, namespace: str) -> None:
    diagnosis = examine(compose(EVERYTHING[routing], namespace=namespace))

    assert diagnosis.findings == ()
    assert diagnosis.notes == ()


@pytest.mark.parametrize("component", PATCHING)
def test_a_patch_that_stays_behind_in_another_namespace_is_found(component: str) -> None:
    objects = compose(["envoy-gateway", component], namespace="inference")
    (policy,) = [each for each in objects if each["kind"] == "EnvoyPatchPolicy"]
    others = [each for each in objects if each is not policy]
    patches = yaml.safe_load(
        yaml.safe_dump(policy["spec"]["jsonPatches"])
        .replace("inference/", "default/")
        .replace("inference~1", "default~1")
    )
    broken = [*others, {**policy, "spec": {**policy["spec"], "jsonPatches": patches}}]

    found = {finding.check.code for finding in examine(broken).findings}

    assert "patch-target-unknown" in found
    assert "patch-target-unknown" not in {each.check.code for each in examine(objects).findings}
