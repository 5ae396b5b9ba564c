// batch_negative:  per pair of anchor a and positive p one negative n;  relu(d_ap - d_an + m).
//   hardest:       the anchor's nearest negative, if the loss with it is above 0
//   drawn:         a random one of those whose loss is above 0, or also d_an > d_ap: that of the least random priority
#include "triplets.cuh"

TRIPLET_KERNELS(batch_negative)
CHOICE_KERNELS(batch_negative_hardest, HARDEST)
CHOOSE_KERNELS(batch_negative_hardest, HARDEST)
CHOICE_KERNELS(batch_negative_drawn, DRAWN)
KERNEL(batch_negative_drawn_choose_highest, TILE_THREADS, const Args args) { draw<Split>(args); }
KERNEL(batch_negative_drawn_choose_half, TILE_THREADS, const Args args) { draw<Half>(args); }
KERNEL(batch_negative_words_f32, BATCH_THREADS, const Args args) { words<float>(args); }
KERNEL(batch_negative_words_f16, BATCH_THREADS, const Args args) { words<f16>(args); }
KERNEL(batch_negative_words_bf16, BATCH_THREADS, const Args args) { words<bf16>(args); }
