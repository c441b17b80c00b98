"""Compute the divergence between the next-token distributions of a teacher and a student.

Shape legend: K tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from ossicle.precision import outside_autocast


@outside_autocast
def kl_divergence(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return KL(softmax(teacher / temperature) || softmax(student / temperature)) of logits (K, V).

    The result is (K,) in nats, in float32. It is not multiplied by temperature². Gradients flow to both arguments, so
    compute the teacher's logits without a graph if it is frozen.
    """
    log_p = (teacher.float() / temperature).log_softmax(-1)
    log_q = (student.float() / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
