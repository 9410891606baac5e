"""Clusters of tokens that are merged into one."""

import torch
from torch import Tensor


def density_peaks(features: Tensor, clusters: int) -> Tensor:
    """Clusters around density peaks: each token goes to the nearest of those that are dense and far from denser ones.

    A token's density is exp(-mean of the squared distances to its `clusters` nearest, itself among them); distances are
    Euclidean, over the root of the width. Centres have the largest products of density and distance to the nearest denser token
    (the largest distance of all, where none is denser).

    Args:
        features: (M, D).
        clusters: In [1, M].

    Returns:
        (M,) int64: of each token, the token at the centre of its cluster; of a centre, itself.

    Source: `cluster_and_merge` in llava/model/language_model/utils.py of github Gumpest/SparseVLMs, after Rodriguez and Laio,
    Science 2014. Theirs adds noise to part equal densities; here neither of two equals is denser, and the earlier comes first.
    """
    features = features.float()
    exact = "donot_use_mm_for_euclid_dist"  # by products a token would be some way from itself
    distances = torch.cdist(features, features, compute_mode=exact) / features.shape[-1] ** 0.5  # (M, M)
    density = (-distances.topk(clusters, largest=False).values.square().mean(dim=-1)).exp()
    denser = density[None] > density[:, None]
    apart = distances.where(denser, distances.max()).amin(dim=-1)
    centers = (apart * density).argsort(descending=True, stable=True)[:clusters]
    nearest = centers[distances[:, centers].argmin(dim=-1)]
    nearest[centers] = centers
    return nearest
