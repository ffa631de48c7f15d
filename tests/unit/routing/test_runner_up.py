"""The pod that takes the last leg if Envoy cannot connect to the chosen one."""

from dataclasses import replace

from factories import make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Rank, Role
from pdrouter.engines.split import Leg
from pdrouter.load.failures import FailureMemory
from pdrouter.routing.decision import Choice, Decision
from pdrouter.routing.runner_up import find_runner_up

PREFILL = make_pod("p")


def make_decodes(*rolesets: str) -> list[Pod]:
    """Return decode pods, each of the roleset that is named."""
    return [
        make_pod(f"d{number}", Role.DECODE, ip=f"10.0.1.{number}", roleset=roleset)
        for number, roleset in enumerate(rolesets)
    ]


def decide(candidates: list[Pod], scores: list[float], *, whole: bool = False) -> Decision:
    """Return the decision for the first of these pods."""
    last = Choice(Leg.DECODE, candidates[0], "p", scores[0], candidates, scores, 10)
    side = Choice(Leg.PREFILL, PREFILL, "p", 0.0, [PREFILL], [0.0], 10)
    return Decision((), last, "n") if whole else Decision((side,), last)


def find(decision: Decision, pods: list[Pod], failures: FailureMemory | None = None) -> Pod | None:
    state = make_state()
    if failures is not None:
        state = replace(state, failures=failures)
    return find_runner_up(decision, make_model_pods(PREFILL, *pods), state)


def test_it_is_the_next_best_by_score() -> None:
    pods = make_decodes("", "", "", "")
    assert find(decide(pods, [1.0, 4.0, 2.0, 3.0]), pods) is pods[2]


def test_a_handle_stays_in_its_roleset() -> None:
    pods = make_decodes("a", "b", "a")
    decision = decide(pods, [1.0, 2.0, 3.0])
    assert find(decision, pods) is pods[2]
    assert find(decision, pods[:2]) is None


def test_a_whole_request_may_go_to_another_roleset() -> None:
    pods = make_decodes("a", "b", "a")
    assert find(decide(pods, [1.0, 2.0, 3.0], whole=True), pods) is pods[1]


def test_a_pod_that_has_gone_meanwhile_is_not_named() -> None:
    pods = make_decodes("", "", "")
    decision = decide(pods, [1.0, 2.0, 3.0])
    unready = make_pod("d1", Role.DECODE, ip="10.0.1.1", ready=False)
    assert find(decision, [pods[0], unready, pods[2]]) is pods[2]
    assert find(decision, [pods[0]]) is None


def test_a_pod_that_has_failed_meanwhile_is_not_named() -> None:
    pods = make_decodes("", "", "")
    failures = FailureMemory()
    for _ in range(10):
        failures.note_failure(pods[1].uid, Leg.DECODE, "connect", failures.clock())
    assert find(decide(pods, [1.0, 2.0, 3.0]), pods, failures) is pods[2]


def test_a_pod_that_was_not_to_choose_from_is_not_named() -> None:
    pods = make_decodes("", "", "")
    assert find(decide(pods[:2], [1.0, 2.0]), [pods[0], pods[2]]) is None


def test_another_port_of_the_same_pod_is_another_one() -> None:
    one = make_pod("d", Role.DECODE, uid="1")
    same = make_pod("d", Role.DECODE, uid="2")
    other = make_pod("d", Role.DECODE, uid="3", port=8001)
    assert find(decide([one, same], [1.0, 2.0]), [one, same]) is None
    assert find(decide([one, other], [1.0, 2.0]), [one, other]) is other


def test_a_rank_is_one_of_the_same_number() -> None:
    pods = [
        replace(
            make_pod(f"d{host}-{number}", Role.DECODE, ip=f"10.0.1.{host}"), rank=Rank(number, 2)
        )
        for host in (1, 2)
        for number in (0, 1)
    ]
    decision = decide([pods[1], pods[0], pods[2], pods[3]], [1.0, 2.0, 3.0, 4.0])
    assert find(decision, pods) is pods[3]
    assert find(decision, pods[:3]) is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 3)), min_size=1, max_size=8
    )
)
def test_it_is_always_a_ready_pod_of_the_roleset_with_the_lowest_score(
    drawn: list[tuple[str, bool, int]],
) -> None:
    pods = make_decodes(*(roleset for roleset, _, _ in drawn))
    decision = decide(pods, [float(score) for _, _, score in drawn])
    ready = [pod for pod, (_, is_ready, _) in zip(pods, drawn, strict=True) if is_ready]
    found = find(decision, ready)
    able = {
        pod.uid: score
        for pod, (_, _, score) in zip(pods[1:], drawn[1:], strict=True)
        if pod in ready and pod.pairing == pods[0].pairing
    }
    if pods[0] not in ready and len(able) < 2:
        assert found is None or found.uid in able
    elif not able:
        assert found is None
    else:
        assert found is not None
        assert able[found.uid] == min(able.values())


def test_it_has_the_same_engine() -> None:
    """The path of the request is this engine's."""
    pods = [
        make_pod(f"w{number}", Role.BOTH, ip=f"10.0.1.{number}", engine=engine)
        for number, engine in enumerate(("xdit", "vllm", "xdit"))
    ]
    assert find(decide(pods, [1.0, 2.0, 3.0], whole=True), pods) is pods[2]
