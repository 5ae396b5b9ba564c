// batch_semi_hard:  per pair of anchor a and positive p the nearest negative n with d_an > d_ap, else the farthest negative;
//                   relu(d_ap - d_an + m).
// Of equal distances the lowest original index wins: it is the low half of the key.
#include "triplets.cuh"

TRIPLET_KERNELS(batch_semi_hard)
CHOICE_KERNELS(batch_semi_hard, SEMI_HARD)
CHOOSE_KERNELS(batch_semi_hard, SEMI_HARD)
