"""The operators of ATen that a ``.pt2`` file may name: a list of what is allowed, nothing else is run.

Most of ATen's three thousand operators are not for models: they build sparse, nested or quantized tensors from parts,
convert formats, or are halves of other operators whose callers check the arguments. Several of them read and write
where the numbers in a tensor point. A file can hold any number, so such an operator must not be run. What is allowed:

* operators for which the structure engine has a rule, and the recurrent layers that it keeps whole;
* the core of ATen (``torch.Tag.core``), which ``torch.export`` itself decomposes to;
* operators that act on each element alone (``torch.Tag.pointwise``), without a leading underscore;
* those of :data:`MORE`, which are parts of models, too;
* the in-place form of any of these.

Never one that writes into an ``out`` argument, and never a backward operator: ``max_pool2d_with_indices_backward``
writes where its indices point.
"""

from __future__ import annotations

import torch

from dgating.structure import RULES, WHOLE

NAMES = """
    addbmm addmv addr affine_grid_generator argsort bernoulli bilinear
    binary_cross_entropy_with_logits block_diag broadcast_tensors cartesian_prod cdist
    column_stack complex conj conv_tbc corrcoef cosine_similarity cov cross
    cross_entropy_loss det diag diag_embed diagflat dist dsplit dstack einsum embedding_bag
    empty_permuted exponential fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_ifft
    fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft
    fft_rfft2 fft_rfftn fill fliplr flipud floor_divide frobenius_norm ger grid_sampler
    grid_sampler_3d gru_cell hsplit hstack huber_loss im2col imag index_add index_copy
    index_fill index_put inner inverse is_floating_point isclose isin isreal kl_div kron
    l1_loss linalg_cholesky linalg_cholesky_ex linalg_cross linalg_det linalg_eigh
    linalg_inv linalg_inv_ex linalg_matrix_exp linalg_matrix_norm linalg_multi_dot
    linalg_norm linalg_qr linalg_solve linalg_svd linalg_vecdot logdet lstm_cell
    masked_select matrix_exp matrix_power meshgrid mse_loss msort multinomial nanmean
    nanmedian nanquantile nll_loss_nd normal nuclear_norm numel outer pairwise_distance
    pdist polar prelu quantile real resolve_conj resolve_neg rnn_relu_cell rnn_tanh_cell
    rot90 rsub scatter smooth_l1_loss special_gammaln special_i0 stft sum_to_size take
    tensordot trace trapezoid triplet_margin_loss true_divide unfold unique_consecutive
    vander vdot view_as_complex view_as_real vsplit vstack zero __lshift__ __rshift__ _conj
    _embedding_bag_forward_only _fft_c2c _functional_assert_scalar _linalg_det _linalg_eigh
    _linalg_solve_ex _linalg_svd _trilinear _unsafe_index _unsafe_index_put _weight_norm
"""
MORE = frozenset(NAMES.split())
CORE_BUT = frozenset({"resize"})  # it shows memory that nobody wrote


def allowed(operator: torch._ops.OpOverload) -> bool:
    """Whether a file may have an operator of ATen run.

    Example:
        >>> import torch
        >>> from dgating.cli.pt2_operators import allowed
        >>> allowed(torch.ops.aten.linear.default), allowed(torch.ops.aten.add_.Tensor)
        (True, True)
        >>> allowed(torch.ops.aten._sparse_coo_tensor_unsafe.default), allowed(torch.ops.aten.add.out)
        (False, False)
    """
    schema = operator._schema
    space, _, name = schema.name.partition("::")
    if space != "aten":
        return False
    in_place = name.endswith("_") and not name.endswith("__")
    base = name.removesuffix("_") if in_place else name
    if base in CORE_BUT or "backward" in base or any(argument.is_out for argument in schema.arguments):
        return False
    if f"aten::{base}" in RULES or f"aten::{base}" in WHOLE or base in MORE:
        return True
    tags = {*operator.tags, *_tags(base, operator._overloadname)} if in_place else set(operator.tags)
    return torch.Tag.core in tags or (torch.Tag.pointwise in tags and not base.startswith("_"))


def _tags(packet: str, overload: str) -> list[torch.Tag]:
    """Tags of the operator of which another is the in-place form."""
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    return list(found.tags) if isinstance(found, torch._ops.OpOverload) else []
