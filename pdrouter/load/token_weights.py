"""What tokens count where users are told apart by what they were served."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What a token counts: one of an answer costs more than one of a prompt.

    Attributes:
        input: one of a prompt.
        output: one of an answer.
    """

    input: float = 1.0
    output: float = 2.0

    def weigh(self, prompt: float, output: float) -> float:
        """Return the weighted tokens of a prompt and its answer."""
        return self.input * prompt + self.output * output


DEFAULT_WEIGHTS = TokenWeights()
