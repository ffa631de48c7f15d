"""Objects that say who may do what."""

import msgspec

from pdrouter.tools.doctor.objects.base import KubeObject


class PolicyRule(msgspec.Struct, frozen=True, rename="camel"):
    """A rule of a Role or ClusterRole."""

    verbs: list[str] = []
    api_groups: list[str] = []
    resources: list[str] = []
    resource_names: list[str] = []

    def allows(self, verb: str, group: str, resource: str) -> bool:
        """Return whether it allows a verb on all objects of a resource."""
        return (
            not self.resource_names
            and _includes(self.verbs, verb)
            and _includes(self.api_groups, group)
            and _includes(self.resources, resource)
        )


def _includes(names: list[str], name: str) -> bool:
    return name in names or "*" in names


class RoleManifest(KubeObject, frozen=True):
    rules: tuple[PolicyRule, ...] = ()


class ClusterRole(KubeObject, frozen=True):
    """A ClusterRole."""

    rules: tuple[PolicyRule, ...] = ()


class RoleRef(msgspec.Struct, frozen=True):
    """The role that a binding gives."""

    kind: str
    name: str


class Subject(msgspec.Struct, frozen=True):
    """Whom a binding gives a role to."""

    kind: str
    name: str
    namespace: str = ""

    def includes(self, namespace: str, account: str) -> bool:
        """Return whether a service account is meant."""
        if self.kind == "ServiceAccount":
            return (self.namespace, self.name) == (namespace, account)
        return self.kind == "Group" and self.name in {
            "system:authenticated",
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
        }


class RoleBinding(KubeObject, frozen=True, rename="camel"):
    """A RoleBinding."""

    role_ref: RoleRef
    subjects: tuple[Subject, ...] = ()


class ClusterRoleBinding(KubeObject, frozen=True, rename="camel"):
    """A ClusterRoleBinding."""

    role_ref: RoleRef
    subjects: tuple[Subject, ...] = ()
