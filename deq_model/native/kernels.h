/* What the kernels give to one another. */

#ifndef DEQLM_KERNELS_H
#define DEQLM_KERNELS_H

#include "common.h"

/* A product x Wᵀ + b; weights (O, I) in float16 or float32. */
typedef struct {
    int64_t inputs, outputs, is_half;
    const void *weight;
    const float *bias; /* (O,), or NULL */
} Linear;

typedef struct Weights Weights; /* feed_forward.c */
typedef struct Rings Rings; /* attention.c */
typedef struct Solver Solver; /* broyden.c */

int deqlm_feed_forward(
    const Weights *w, int64_t n, const float *x, const int64_t *anchor, const uint8_t *exact,
    float *out, float *moved);
int deqlm_attend(
    const Rings *s, int64_t n, const int64_t *ring, const int64_t *entry, const int64_t *seen,
    const float *query, const float *key, const float *value, int64_t stride, float *mixed);
int deqlm_observe(
    const Solver *s, int64_t n, const int64_t *rows, const float *f, const uint8_t *settled,
    float *seen, float *measured);

#endif
