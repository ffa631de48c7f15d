"""Engines of an endpoints file: whether they are what the file says, and work in pairs."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from pdrouter.cluster.pods import Pod, Role
from pdrouter.nearest import find_nearest
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.survey import Answers, PairTrial, Survey

_OK = 200
_KEY_NEEDED = (401, 403)


def name_engine(pod: Pod) -> ObjectRef:
    """Return the name of an engine for people."""
    return ObjectRef("Engine", "", pod.address)


def _locate(pod: Pod) -> str:
    """Return where an engine stands in the file."""
    if pod.role is Role.BOTH:
        return f"models[{pod.model}].endpoints"
    return f"models[{pod.model}].rolesets[{pod.roleset}].{pod.role}"


def _find_unsupported(survey: Survey) -> Iterator[Defect]:
    for model in dict.fromkeys(pod.model for pod in survey.pods if pod.unsupported):
        pod = next(pod for pod in survey.pods if pod.model == model)
        fix = "correct 'engine' or 'kv_connector' of the model"
        yield Defect(name_engine(pod), f"models[{model}]", pod.unsupported, fix)


def _find_unreachable(survey: Survey) -> Iterator[Defect]:
    for pod, answers in _each(survey):
        if not answers.problem:
            continue
        if answers.speaks_tls:
            problem = f"it speaks TLS, and no plain HTTP ({answers.problem})"
            fix = (
                "set PDROUTER_ENGINE_TLS=on where all engines serve HTTPS (security.md), or let "
                "it serve plain HTTP"
            )
        else:
            problem = f"no answer from here: {answers.problem}"
            fix = (
                "start it, let it listen on an address that others reach (--host 0.0.0.0), and "
                "compare the port"
            )
        yield Defect(name_engine(pod), _locate(pod), problem, fix)


def _find_strangers(survey: Survey) -> Iterator[Defect]:
    for pod, answers in _each(survey):
        if answers.status in (None, _OK, *_KEY_NEEDED):
            continue
        yield Defect(
            name_engine(pod),
            _locate(pod),
            f"it answers GET /v1/models with {answers.status}",
            "name the port on which the engine serves its OpenAI-compatible API",
        )


def _find_locked(survey: Survey) -> Iterator[Defect]:
    for pod, answers in _each(survey):
        if answers.status in _KEY_NEEDED:
            yield Defect(
                name_engine(pod),
                _locate(pod),
                f"it answers {answers.status}: it asks for a key (--api-key)",
                "give clients that key (the router hands on authorization), or start it without",
            )


def _find_other_models(survey: Survey) -> Iterator[Defect]:
    for pod, answers in _each(survey):
        if answers.status != _OK or survey.serves(pod):
            continue
        shown = ", ".join(answers.names) or "no model"
        near = find_nearest(pod.model, answers.names)
        yield Defect(
            name_engine(pod),
            _locate(pod),
            f"it serves {shown}, not {pod.model}",
            f"did you mean {near}?"
            if near
            else f"name the model as the engine does, or start it with --served-model-name "
            f"{pod.model}",
        )


def _find_other_software(survey: Survey) -> Iterator[Defect]:
    for pod, answers in _each(survey):
        if answers.software and answers.software != pod.engine:
            yield Defect(
                name_engine(pod),
                f"models[{pod.model}].engine",
                f"the file says {pod.engine}; by its metrics it is {answers.software}",
                f"write engine: {answers.software}",
            )


def _find_differences(
    what: str, read: Callable[[Survey, Pod], object], fix: str
) -> Callable[[Survey], Iterable[Defect]]:
    """Return what finds engines of one group that should be alike, and are not."""

    def find(survey: Survey) -> Iterator[Defect]:
        for group, members in survey.groups():
            said = {pod: value for pod in members if (value := read(survey, pod))}
            values = sorted(set(map(str, said.values())))
            if len(values) > 1:
                first = next(iter(said))
                shown = "; ".join(
                    f"{value}: "
                    + ", ".join(
                        f"{pod.role} {pod.address}" for pod in said if str(said[pod]) == value
                    )
                    for value in values
                )
                yield Defect(
                    name_engine(first), what, f"the engines of {group} differ: {shown}", fix
                )

    return find


def _read_length(survey: Survey, pod: Pod) -> object:
    card = survey.answers[pod.address].find(pod.model)
    return card and card.max_model_len


def _read_root(survey: Survey, pod: Pod) -> object:
    card = survey.answers[pod.address].find(pod.model)
    return card and card.root


def _find_halves(survey: Survey) -> Iterator[Defect]:
    for group, members in survey.groups():
        roles = {pod.role for pod in members}
        if roles in ({Role.PREFILL}, {Role.DECODE}):
            present = members[0].role
            absent = Role.DECODE if present is Role.PREFILL else Role.PREFILL
            yield Defect(
                name_engine(members[0]),
                _locate(members[0]),
                f"{group} has {present} engines, but no {absent} engines",
                f"add {absent} addresses to the roleset",
            )


def _find_silent_connectors(survey: Survey) -> Iterator[Defect]:
    for trial in survey.trials:
        if trial.failed is None or trial.handed:
            continue
        if trial.problem.startswith("it answers"):
            problem = f"asked for a prefill of one token, {trial.problem}"
            fix = "see its log"
        elif trial.prefill.engine == _SGLANG:
            problem = f"asked for a prefill, {trial.problem}"
            fix = (
                "start it with --disaggregation-mode prefill, and give the file the bootstrap_port "
                "that it has, if that is not 8998"
            )
        elif trial.swapped:
            problem = f"{trial.problem}, but {trial.decode.address} hands over blocks"
            fix = "look whether the addresses of prefill and decode are exchanged in the file"
        elif trial.prefill.engine == _TRTLLM:
            problem = trial.problem
            fix = "start it with a cache_transceiver_config, and without an orchestrator in front"
        else:
            problem = trial.problem
            fix = _PREFILL_FIXES.get(trial.prefill.kv_connector, _PREFILL_FIX)
        yield Defect(name_engine(trial.failed), _locate(trial.failed), problem, fix)


def _find_failed_decodes(survey: Survey) -> Iterator[Defect]:
    for trial in survey.trials:
        if trial.failed is not None and trial.handed and not _needs_signature(trial):
            own = _DECODE_FIXES.get(trial.prefill.kv_connector or "")
            yield Defect(
                name_engine(trial.failed),
                _locate(trial.failed),
                f"with blocks of {trial.prefill.address}, {trial.problem}",
                own or _DECODE_FIXES.get(trial.prefill.engine, _DECODE_FIX),
            )


_SGLANG, _TRTLLM = "sglang", "trtllm"
_LOCKED = ("it answers 401", "it answers 403")
_PREFILL_FIX = (
    'start it with --kv-transfer-config \'{"kv_connector": "NixlConnector", '
    '"kv_role": "kv_both"}\', or name its connector as kv_connector in the file'
)
_PREFILL_FIXES: Mapping[str | None, str] = {
    "mooncake": 'start it with --kv-transfer-config \'{"kv_connector": "MooncakeConnector", '
    '"kv_role": "kv_producer"}\', and give the file the bootstrap_port that it has, if that is not '
    "8998",
}
"""By KV connector, where it is another."""
_DECODE_FIX = (
    "start it with the --kv-transfer-config of the prefill engine, and let it reach that engine's "
    "side channel (VLLM_NIXL_SIDE_CHANNEL_HOST and _PORT)"
)
_P2P_FIX = (
    "start both with an OffloadingConnector that has a P2P tier, whose host is the pod's address; "
    "let it reach that tier (bootstrap_port in the file, if its port is not 7777), and list "
    "data-parallel ranks one by one"
)
_DECODE_FIXES = {
    "offloading": _P2P_FIX,
    "p2p": _P2P_FIX,
    _SGLANG: "start it with --disaggregation-mode decode and the --disaggregation-transfer-backend "
    "of the prefill engine, and let it reach that engine's bootstrap port (bootstrap_port in the "
    "file)",
    _TRTLLM: "start it with the cache_transceiver_config of the context engine, and let it reach "
    "that engine",
}
"""By KV connector or engine, where it is another."""


def _find_unsigned(survey: Survey) -> Iterator[Defect]:
    for trial in survey.trials:
        if trial.failed is not None and _needs_signature(trial):
            yield Defect(
                name_engine(trial.failed),
                _locate(trial.failed),
                f"with a hand-over that is not signed with its key, {trial.problem}",
                "set PDROUTER_TRTLLM_AUTH_KEY_FILE, for this command and for the router, to a file "
                "with the internal_request_auth_key of the workers",
            )


def _needs_signature(trial: PairTrial) -> bool:
    refused = trial.handed and trial.problem.startswith(_LOCKED)
    return refused and trial.prefill.engine == _TRTLLM


def _each(survey: Survey) -> Iterator[tuple[Pod, Answers]]:
    for pod in survey.pods:
        yield pod, survey.answers[pod.address]


ENDPOINT_CHECKS: tuple[Check[Survey], ...] = (
    Check(
        "model-unsupported",
        Severity.ERROR,
        "The router does not speak the engine or the KV connector of a model.",
        "The model is left out: its requests get 503.",
        _find_unsupported,
    ),
    Check(
        "engine-unreachable",
        Severity.ERROR,
        "An engine of the endpoints file does not answer.",
        "Requests to it fail, if the router sees what this machine sees.",
        _find_unreachable,
    ),
    Check(
        "engine-not-openai",
        Severity.ERROR,
        "Something else than an engine answers at an address of the endpoints file.",
        "It does not know the paths that requests are sent to.",
        _find_strangers,
    ),
    Check(
        "engine-locked",
        Severity.WARNING,
        "An engine asks for a key, so nothing further was looked at.",
        "Requests without that key get its 401.",
        _find_locked,
    ),
    Check(
        "engine-other-model",
        Severity.ERROR,
        "An engine does not serve the model that the endpoints file gives it.",
        "It answers requests for that model with 404.",
        _find_other_models,
    ),
    Check(
        "engine-other-software",
        Severity.ERROR,
        "An engine is another one than the endpoints file says.",
        "The router writes the legs of a request in a way that it does not understand.",
        _find_other_software,
    ),
    Check(
        "engine-roleset-half",
        Severity.ERROR,
        "A roleset of the endpoints file has prefill engines only, or decode engines only.",
        "Pairs are formed within a roleset: a model that has no other gets no two-leg request.",
        _find_halves,
    ),
    Check(
        "engine-lengths-differ",
        Severity.WARNING,
        "Engines of a roleset have different limits on the length of a request.",
        "A long request is accepted by one and refused by the other, after its prefill has run.",
        _find_differences(
            "max_model_len", _read_length, "start all of them with the same --max-model-len"
        ),
    ),
    Check(
        "engine-weights-differ",
        Severity.WARNING,
        "Engines of a roleset have loaded different weights under one name.",
        "Blocks of one model mean nothing to another: answers are wrong, and nothing says so.",
        _find_differences("root", _read_root, "start all of them with the same model"),
    ),
    Check(
        "engine-versions-differ",
        Severity.WARNING,
        "Engines of a roleset have different versions.",
        "Handles and blocks change with nearly every release: transfers may fail.",
        _find_differences(
            "version",
            lambda survey, pod: survey.answers[pod.address].version,
            "run the same version in all of them",
        ),
    ),
    Check(
        "kv-connector-silent",
        Severity.ERROR,
        "A prefill engine hands over no KV blocks.",
        "Every request is prefilled twice, or fails: see PDROUTER_ON_HANDOFF_FAILURE.",
        _find_silent_connectors,
    ),
    Check(
        "handoff-signature",
        Severity.ERROR,
        "A TensorRT-LLM engine wants hand-overs signed, and refuses those of this router.",
        "Every request of two legs ends in that engine's error.",
        _find_unsigned,
    ),
    Check(
        "decode-leg-failed",
        Severity.ERROR,
        "A decode engine does not continue what a prefill engine has begun.",
        "Requests over these two fail, or are prefilled again without anybody saying so.",
        _find_failed_decodes,
    ),
)
"""Every check of the engines of an endpoints file, in the order of the report."""
