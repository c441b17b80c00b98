"""What a student's distribution of the next token lacks of its teacher's. A pure function.

Shape legend: K tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor


def kl_divergence(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / temperature) || softmax(student / temperature)) of logits (K, V): (K,) nats, float32.

    Not multiplied by temperature². Gradients flow to both; a teacher usually comes without a graph.
    """
    log_p = (teacher.float() / temperature).log_softmax(-1)
    log_q = (student.float() / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
