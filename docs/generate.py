"""Writes the pages that are made from code; `make docs` runs it."""

from pathlib import Path

import aibrix_names

from pdrouter.settings import describe_settings
from pdrouter.settings.controls import describe_controls
from pdrouter.tools.doctor.diagnosis import describe_findings

_CONFIGURATION = """# Configuration

Every setting of `pdrouter serve` is an environment variable; those that are most often changed on
a command line are options too, and an option wins. An empty variable counts as unset. A value that
is not allowed stops the start with exit code 2 and, for each such value, one line that names the
variable, the value and what is allowed. `ROUTING_ALGORITHM` and the `AIBRIX_*` names mean what they
mean in aibrix, except that aibrix replaces a bad number by its default and goes on.

Times are numbers in the unit that is named, or have units (`500ms`, `60s`, `1m30s`, `2h`); sizes
are bytes, or have units (`16Mi`, `1.5Gi`, `64M`). Words may be written in upper or lower case, with
`-` or `_`; booleans as `true`, `yes`, `on`, `1`, or `false`, `no`, `off`, `0`. A variable that
looks like one of these but is none (`ROUTING_ALGORITM`, `PDROUTER_MAXWAIT`) is said in a warning at
the start, with the name that was probably meant.

`pdrouter settings` shows what is in force where it runs, and where each value comes from; it takes
the options of `pdrouter serve`, prints JSON with `--json`, hides secrets, and exits 2, as a start
would, if a value is not allowed. What is found where a setting is unset is shown too: the router's own
namespace (`file`), the usual kubeconfig file (`home-directory`), the share of the container's memory
(`memory-limit`). Names that look like settings but are none are said beneath. With
`--describe` it prints the tables of this page.

```
$ ROUTING_ALGORITHM=pd PDROUTER_DRAIN=5m pdrouter settings --endpoints endpoints.yaml | grep -E 'FROM|environment|--'
SETTING                                                      VALUE                                             FROM
PDROUTER_ENDPOINTS                                           endpoints.yaml                                    --endpoints
ROUTING_ALGORITHM                                            pd                                                environment
PDROUTER_DRAIN                                               300                                               environment
```

In a cluster: `kubectl exec deploy/pdrouter -- pdrouter settings`, followed by the options that the
container's command has; `/debug/state` has the values of the running process.

"""


def render_configuration() -> str:
    """Return `docs/configuration.md`."""
    return _CONFIGURATION + describe_settings()


_DOCTOR = """# pdrouter doctor

`pdrouter doctor` reads a cluster (`--kubeconfig FILE`, or the pod's own service account) and says
what is wrong with the set-up before a request does: object, field, why it hurts, and the fix. With
`--manifests` it reads YAML instead:

```bash
kubectl kustomize deploy/overlays/envoy-gateway | pdrouter doctor --manifests -
```

It takes what controllers say in an object's status as seriously as what the object asks for: every
condition (`Accepted`, `Programmed`, `ResolvedRefs`) that is not true is a finding, with the
message. Without the right to list a kind in all namespaces it lists it in that of your context,
says so, and goes on; `--namespaces` names others. Manifests may leave objects to others: a name
that leads nowhere is a finding where there are other objects of that kind and namespace. Findings
that are alike are one, with the number of objects.

The engines of an [endpoints file](endpoints-file.md) are asked themselves:

```bash
pdrouter doctor --endpoints endpoints.yaml
```

Each is asked for its models, version and metrics, and over each prefill and each decode engine
goes one request of one token, as the router would send it: that proves the KV connector, which
engines do not tell otherwise. Settings that say how legs are written (`AIBRIX_KV_CONNECTOR_TYPE`,
`PDROUTER_NIXL_MEANS`, `PDROUTER_REWRITE_REMOTE_HOST`, `PDROUTER_TRTLLM_AUTH_KEY_FILE`) count here too.

The configuration of an [Envoy without a controller](envoy.md) is looked at for retry policies that
would send a KV handle twice; so is what its admin port says to `/config_dump`:

```bash
pdrouter doctor --envoy envoy.yaml
```

`--json` prints the findings as JSON (`objects` has all that are meant), `--probe` also connects to
the pods of a cluster. It exits 1 if there is an error, 0 if there are only warnings, 2 if it was
called in a wrong way or cannot read what it was given.

"""


def render_doctor() -> str:
    """Return `docs/doctor.md`."""
    return _DOCTOR + describe_findings()


_REQUESTS = Path(__file__).with_name("requests.md")
_CONTROLS = "## What no client may set"


def render_requests() -> str:
    """Return `docs/requests.md`, whose tables of control names are made from code."""
    before, _, rest = _REQUESTS.read_text().partition(f"{_CONTROLS}\n")
    text, _, rest = rest.partition("\n| ")
    _, _, after = rest.partition("\n## ")
    return f"{before}{_CONTROLS}\n{text}\n{describe_controls()}\n## {after}"


PAGES = {
    "aibrix-names.md": aibrix_names.render,
    "configuration.md": render_configuration,
    "doctor.md": render_doctor,
    "requests.md": render_requests,
}
"""Functions that return a page, by its name."""


def main() -> None:
    """Write the pages."""
    for name, render in PAGES.items():
        Path(__file__).with_name(name).write_text(render())


if __name__ == "__main__":
    main()
