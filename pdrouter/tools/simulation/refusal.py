"""How the engine says no: vLLM's error envelope (`code` is the integer HTTP status)."""

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
_OF_REQUEST_MODEL = "Bad Request"


class Refused(Exception):
    """The engine answers this request with an error.

    Attributes:
        status: The HTTP status.
        param: The request member at fault, if there is one.
        error_type: vLLM's name for the kind of error; by default the one that goes with the
            status. What vLLM's request model refuses before the engine sees it has the type
            `Bad Request`.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, error_type: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.error_type = error_type or _TYPES.get(status, "InternalServerError")

    @property
    def of_request_model(self) -> bool:
        """Whether vLLM's request model refuses it, before anything else looks at it."""
        return self.error_type == _OF_REQUEST_MODEL

    def envelope(self, *, flat: bool = False) -> dict[str, object]:
        """Give the JSON body of the error answer; a flat one as SGLang writes it."""
        if flat:
            return {
                "object": "error",
                "message": str(self),
                "type": self.error_type,
                "param": self.param,
                "code": self.status,
            }
        return {
            "error": {
                "message": str(self),
                "type": self.error_type,
                "param": self.param,
                "code": self.status,
            }
        }


class ContractViolated(Refused):
    """The request breaks the contract between a router and the engines.

    Attributes:
        reason: A short name for the rule broken, the label of
            `simulation:contract_violations_total`.
    """

    def __init__(self, reason: str, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(status, message, param=param)
        self.reason = reason


def malformed(message: str, param: str | None = None) -> Refused:
    """Give the refusal of a body that vLLM's request model does not accept."""
    return Refused(400, message, param=param, error_type=_OF_REQUEST_MODEL)


def load_failed() -> Refused:
    """Give vLLM's answer when blocks could not be loaded under the policy `fail`."""
    return Refused(500, "Internal server error")
