"""The component `users`: the router reads the file of the Secret that it names, and follows it."""

from manifests import DEPLOY, compose, container, find

from pdrouter.settings import Settings

NAME = "pdrouter-users"


def test_the_router_reads_the_secret_where_it_is_mounted() -> None:
    deployment = find(compose(["users"]), "Deployment", "pdrouter")
    variables = {each["name"]: each.get("value", "") for each in container(deployment)["env"]}
    settings = Settings.load({"PDROUTER_API_KEYS_FILE": variables["PDROUTER_API_KEYS_FILE"]}, {})
    assert settings.keys_file is not None
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    [volume] = [each for each in volumes if each.get("secret", {}).get("secretName") == NAME]
    [mount] = [
        each for each in container(deployment)["volumeMounts"] if each["name"] == volume["name"]
    ]
    # A subPath would never change.
    assert "subPath" not in mount
    assert mount["readOnly"]
    assert str(settings.keys_file.parent) == mount["mountPath"]
    # As the comment says that the Secret is made.
    comment = (DEPLOY / "components" / "users" / "kustomization.yaml").read_text()
    assert f"--from-file={settings.keys_file.name}" in comment
    assert f"secret generic {NAME} " in comment
