"""Pure tensor functions: no model, no configuration."""

from ossicle.losses.contrastive import info_nce, pooled_cosine, token_info_nce
from ossicle.losses.sinkhorn import sinkhorn_divergence, wasserstein_similarity

__all__ = ["info_nce", "pooled_cosine", "sinkhorn_divergence", "token_info_nce", "wasserstein_similarity"]
