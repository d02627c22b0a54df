"""Operations of the paged rollout cache: thin functions that check tensors and call r1fast._C, on CPU or CUDA."""
