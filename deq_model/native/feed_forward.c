/* The feed-forward W_2 relu(W_1 x + b_1) + b_2 by products of 8-bit integers.
 *
 * A weight is s (high + low / 254), two signed bytes and a scale. A row is computed in one of two
 * ways. Exactly: inputs are two bytes as well, and of the four products of bytes the three larger
 * ones are summed; what it comes to is kept, as the row's *anchor*. Or as a difference from an
 * anchor, with one byte each: its error is a share of the difference, not of the whole.
 *
 * Letters: n rows, D outputs and inputs, I inner channels.
 */

#include "common.h"

enum {
    PANEL = 64, /* outputs of a panel of weights */
    BLOCK = 512, /* inner channels that a thread works on at once */
    TILE = 48, /* rows that it works on at once */
    GROUP = 6, /* rows whose sums fit in the registers */
    SECOND = 254, /* steps of the second byte in one of the first */
};

typedef struct {
    int64_t dim, dim_padded, inner_padded; /* D; D and I to multiples of PANEL */
    const uint8_t *in_high, *in_low; /* (I/PANEL, ⌈D/4⌉, PANEL, 4), each + 128 */
    const float *in_scale, *in_bias; /* (I,) */
    const uint8_t *out_high, *out_low; /* for each block (D/PANEL, block/4, PANEL, 4), each + 128 */
    const float *out_scale; /* (blocks, D padded) */
    const float *out_bias; /* (D,) */
    float *anchor_x; /* (anchors, D) */
    uint16_t *anchor_inner; /* (anchors, I): bfloat16, before the ReLU */
    float *anchor_y; /* (anchors, D) */
} Weights;

#if defined(__x86_64__)
#include <immintrin.h>
#include <omp.h>
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

/* Numbers of a row in bytes. */
typedef struct {
    float scale;
    int32_t total, total_low;
} Bytes;

/* A row in one byte a number, or two; bytes to a multiple of four are 0. */
WIDE static Bytes quantised(const float *x, int64_t n, int64_t padded, int8_t *high, int8_t *low)
{
    __m512 top = _mm512_setzero_ps();
    int64_t whole = n / 16 * 16;
    __mmask16 rest = (__mmask16)((1u << (n - whole)) - 1);
    for (int64_t i = 0; i < whole; i += 16)
        top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_maskz_loadu_ps(rest, x + whole)));
    float largest = _mm512_reduce_max_ps(top);
    memset(high + whole, 0, padded - whole);
    if (low) memset(low + whole, 0, padded - whole);
    if (!(largest > 1e-30f)) {
        memset(high, 0, whole);
        if (low) memset(low, 0, whole);
        return (Bytes){0, 0, 0};
    }
    __m512 inverse = _mm512_set1_ps(127 / largest);
    __m512i sum = _mm512_setzero_si512(), sum_low = sum;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = i < whole ? (__mmask16)0xffff : rest;
        __m512 each = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), inverse);
        __m512i first = _mm512_cvtps_epi32(each);
        sum = _mm512_add_epi32(sum, first);
        _mm512_mask_cvtepi32_storeu_epi8(high + i, mask, first);
        if (low) {
            __m512 left = _mm512_sub_ps(each, _mm512_cvtepi32_ps(first));
            __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(left, _mm512_set1_ps(SECOND)));
            sum_low = _mm512_add_epi32(sum_low, second);
            _mm512_mask_cvtepi32_storeu_epi8(low + i, mask, second);
        }
    }
    return (Bytes){largest / 127, _mm512_reduce_add_epi32(sum), _mm512_reduce_add_epi32(sum_low)};
}

/* Products of some rows of bytes with a panel: (rows, PANEL) sums. */
#define PRODUCT(ROWS)                                                                            \
    WIDE static void product_##ROWS(                                                             \
        const int8_t *x, int64_t stride, const uint8_t *w, int64_t quads, int32_t *out)          \
    {                                                                                            \
        __m512i sum[ROWS][4];                                                                    \
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                   \
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++)                                  \
                sum[r][j] = _mm512_setzero_si512();                                              \
        for (int64_t k = 0; k < quads; k++, w += 4 * PANEL) {                                    \
            __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);                 \
            __m512i w2 = _mm512_loadu_si512(w + 128), w3 = _mm512_loadu_si512(w + 192);          \
            _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                               \
            {                                                                                    \
                int32_t four;                                                                    \
                memcpy(&four, x + r * stride + 4 * k, 4);                                        \
                __m512i spread = _mm512_set1_epi32(four);                                        \
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], w0, spread);                          \
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], w1, spread);                          \
                sum[r][2] = _mm512_dpbusd_epi32(sum[r][2], w2, spread);                          \
                sum[r][3] = _mm512_dpbusd_epi32(sum[r][3], w3, spread);                          \
            }                                                                                    \
        }                                                                                        \
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                   \
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++)                                  \
                _mm512_storeu_si512(out + r * PANEL + 16 * j, sum[r][j]);                        \
    }

PRODUCT(1)
PRODUCT(2)
PRODUCT(3)
PRODUCT(4)
PRODUCT(5)
PRODUCT(6)

typedef void (*Product)(const int8_t *, int64_t, const uint8_t *, int64_t, int32_t *);
static const Product PRODUCTS[GROUP + 1] = {
    0, product_1, product_2, product_3, product_4, product_5, product_6};

/* Sums of a group's rows: of first bytes, and of one first byte and one second. */
typedef struct {
    int32_t first[GROUP * PANEL], x_low[GROUP * PANEL], w_low[GROUP * PANEL];
} Sums;

static void multiply(
    int64_t rows, const int8_t *high, const int8_t *low, int64_t stride, const uint8_t *w_high,
    const uint8_t *w_low, int64_t quads, Sums *sums)
{
    if (low && rows == 1) { /* both bytes as rows of one product: the weights pass by once */
        int32_t both[2 * PANEL];
        product_2(high, low - high, w_high, quads, both);
        memcpy(sums->first, both, sizeof both / 2);
        memcpy(sums->x_low, both + PANEL, sizeof both / 2);
        product_1(high, stride, w_low, quads, sums->w_low);
        return;
    }
    PRODUCTS[rows](high, stride, w_high, quads, sums->first);
    if (low) {
        PRODUCTS[rows](low, stride, w_high, quads, sums->x_low);
        PRODUCTS[rows](high, stride, w_low, quads, sums->w_low);
    }
}

/* Sixteen sums, in steps of the first byte; weights were stored with 128 more than they are. */
WIDE static inline __m512 summed(const Sums *sums, int64_t at, const Bytes *row, int exact)
{
    __m512i first = _mm512_loadu_si512(sums->first + at);
    __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(first, _mm512_set1_epi32(128 * row->total)));
    if (!exact) return sum;
    __m512i second = _mm512_add_epi32(
        _mm512_loadu_si512(sums->x_low + at), _mm512_loadu_si512(sums->w_low + at));
    __m512i more = _mm512_set1_epi32(128 * (row->total + row->total_low));
    second = _mm512_sub_epi32(second, more);
    return _mm512_fmadd_ps(
        _mm512_cvtepi32_ps(second), _mm512_set1_ps(1.0f / SECOND), sum);
}

/* What a panel of inner channels changes by, for a group of rows; exact rows keep what it is. */
WIDE static void inner_change(
    const Weights *w, int64_t first, int64_t rows, const Sums *sums, const Bytes *bytes,
    const int64_t *anchor, int exact, float *change)
{
    __m512 zero = _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *kept = w->anchor_inner + anchor[r] * w->inner_padded + first;
        for (int j = 0; j < PANEL; j += 16) {
            __m512 sum = summed(sums, r * PANEL + j, bytes + r, exact);
            __m512 scale = _mm512_loadu_ps(w->in_scale + first + j), old, now;
            scale = _mm512_mul_ps(scale, _mm512_set1_ps(bytes[r].scale));
            __m256i *half = (__m256i *)(kept + j);
            if (exact) {
                now = _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(w->in_bias + first + j));
                __m512i bits = _mm512_castps_si512(now), up = _mm512_set1_epi32(0x8000);
                bits = _mm512_srli_epi32(_mm512_add_epi32(bits, up), 16);
                _mm256_storeu_si256(half, _mm512_cvtepi32_epi16(bits));
                now = _mm512_max_ps(now, zero);
            } else {
                __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(half));
                old = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
                now = _mm512_max_ps(_mm512_fmadd_ps(sum, scale, old), zero);
                now = _mm512_sub_ps(now, _mm512_max_ps(old, zero));
            }
            _mm512_storeu_ps(change + r * BLOCK + j, now);
        }
    }
}

/* Adds a panel of outputs, for a group of rows. */
WIDE static void add_outputs(
    const float *w_scale, int64_t rows, const Sums *sums, const Bytes *bytes, int exact, float *out,
    int64_t stride)
{
    for (int64_t r = 0; r < rows; r++)
        for (int j = 0; j < PANEL; j += 16) {
            __m512 sum = summed(sums, r * PANEL + j, bytes + r, exact);
            __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(w_scale + j), _mm512_set1_ps(bytes[r].scale));
            float *to = out + r * stride + j;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(to)));
        }
}

/* A call's rows, those that are differences first. */
typedef struct {
    int64_t n, differences, stride;
    const int64_t *order, *anchor; /* (n,): places of the caller, and anchors by our places */
    int8_t *high, *low; /* (n, stride) */
    Bytes *bytes;
    float *scratch; /* (n, D) */
} Rows;

/* A block of inner channels for a tile of rows: what it adds to their outputs. */
WIDE static void one_tile(
    const Weights *w, int64_t block, const Rows *rows, int64_t begin, int64_t end, int exact,
    float *out)
{
    float change[TILE * BLOCK];
    int8_t high[TILE * BLOCK], low[TILE * BLOCK];
    Bytes bytes[TILE];
    Sums sums;
    int64_t quads = rows->stride / 4, first = block * BLOCK;
    int64_t inner = w->inner_padded - first < BLOCK ? w->inner_padded - first : BLOCK;
    for (int64_t at = 0; at < inner; at += PANEL) {
        int64_t panel = (first + at) * rows->stride;
        for (int64_t r = begin; r < end; r += GROUP) {
            int64_t some = end - r < GROUP ? end - r : GROUP;
            multiply(
                some, rows->high + r * rows->stride, exact ? rows->low + r * rows->stride : NULL,
                rows->stride, w->in_high + panel, w->in_low + panel, quads, &sums);
            inner_change(
                w, first + at, some, &sums, rows->bytes + r, rows->anchor + r, exact,
                change + (r - begin) * BLOCK + at);
        }
    }
    for (int64_t r = 0; r < end - begin; r++)
        bytes[r] = quantised(
            change + r * BLOCK, inner, inner, high + r * BLOCK, exact ? low + r * BLOCK : NULL);
    for (int64_t at = 0; at < w->dim_padded; at += PANEL) {
        int64_t panel = first * w->dim_padded + at * inner;
        const float *w_scale = w->out_scale + block * w->dim_padded + at;
        for (int64_t r = 0; r < end - begin; r += GROUP) {
            int64_t some = end - begin - r < GROUP ? end - begin - r : GROUP;
            multiply(
                some, high + r * BLOCK, exact ? low + r * BLOCK : NULL, BLOCK, w->out_high + panel,
                w->out_low + panel, inner / 4, &sums);
            add_outputs(
                w_scale, some, &sums, bytes + r, exact, out + (begin + r) * w->dim_padded + at,
                w->dim_padded);
        }
    }
}

WIDE static void one_block(const Weights *w, int64_t block, const Rows *rows, float *out)
{
    for (int64_t r = 0; r < rows->differences; r += TILE) {
        int64_t end = r + TILE < rows->differences ? r + TILE : rows->differences;
        one_tile(w, block, rows, r, end, 0, out);
    }
    for (int64_t r = rows->differences; r < rows->n; r += TILE)
        one_tile(w, block, rows, r, r + TILE < rows->n ? r + TILE : rows->n, 1, out);
}

/* A row in bytes; out begins as what its anchor came to, or as the bias. */
WIDE static float begin_row(const Weights *w, const Rows *rows, int64_t r, const float *x, float *out)
{
    int64_t dim = w->dim;
    int exact = r >= rows->differences;
    float *anchor = w->anchor_x + rows->anchor[r] * dim, *difference = rows->scratch + r * dim;
    const float *base = exact ? w->out_bias : w->anchor_y + rows->anchor[r] * dim;
    float away = 0, length = 0;
    for (int64_t i = 0; i < dim; i++) difference[i] = exact ? x[i] : x[i] - anchor[i];
#pragma omp simd reduction(+ : away, length)
    for (int64_t i = 0; i < dim; i++) {
        away += difference[i] * difference[i];
        length += x[i] * x[i];
    }
    int8_t *low = exact ? rows->low + r * rows->stride : NULL;
    rows->bytes[r] = quantised(difference, dim, rows->stride, rows->high + r * rows->stride, low);
    if (exact) memcpy(anchor, x, dim * sizeof(float));
    /* No byte stands for what is not finite. */
    float broken = isfinite(away) ? 0 : NAN;
    for (int64_t i = 0; i < dim; i++) out[i] = base[i] + broken;
    if (exact) return 0;
    return length > 0 ? sqrtf(away / length) : INFINITY;
}

/* Adds what the threads came to, in their order: the same numbers give the same sums. */
static void add_sums(
    const Weights *w, const Rows *rows, int64_t r, const float *sums, int64_t parts, float *out)
{
    for (int64_t part = 0; part < parts; part++) {
        const float *more = sums + (part * rows->n + r) * w->dim_padded;
        for (int64_t i = 0; i < w->dim; i++) out[i] += more[i];
    }
    if (r >= rows->differences)
        memcpy(w->anchor_y + rows->anchor[r] * w->dim, out, w->dim * sizeof(float));
}

WIDE static int compute(const Weights *w, const Rows *rows, const float *x, float *out, float *moved)
{
    int64_t blocks = (w->inner_padded + BLOCK - 1) / BLOCK, dim = w->dim;
    int64_t parts = omp_get_max_threads(), size = rows->n * w->dim_padded;
    float *sums = calloc(parts * size, sizeof(float));
    if (!sums) return 1;
#pragma omp parallel
    {
        float *own = sums + omp_get_thread_num() * size;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows->n; r++) {
            int64_t at = rows->order[r];
            moved[at] = begin_row(w, rows, r, x + at * dim, out + at * dim);
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) one_block(w, block, rows, own);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows->n; r++)
            add_sums(w, rows, r, sums, parts, out + rows->order[r] * dim);
    }
    free(sums);
    return 0;
}

#endif

/* Whether this processor has the instructions. */
int deqlm_has_int8(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

/* The feed-forward of n rows.
 *
 * x and out (n, D); anchor (n,): those that rows are differences from, or that exact rows become;
 * exact (n,): whether a row is. moved (n,) takes how far each x is from its anchor, relative to its
 * length. Returns 0, or 1 where memory is short: out means nothing then, nor do exact rows' anchors.
 */
int deqlm_feed_forward(
    const Weights *w, int64_t n, const float *x, const int64_t *anchor, const uint8_t *exact,
    float *out, float *moved)
{
    int failed = 1;
#if defined(__x86_64__)
    int64_t stride = (w->dim + 3) / 4 * 4, *order = malloc(2 * n * sizeof(int64_t));
    int8_t *bytes = malloc(2 * n * stride);
    Bytes *whole = malloc(n * sizeof(Bytes));
    float *scratch = malloc(n * w->dim * sizeof(float));
    if (order && bytes && whole && scratch) {
        int64_t at = 0, differences, *anchors = order + n;
        for (int64_t r = 0; r < n; r++)
            if (!exact[r]) order[at++] = r;
        differences = at;
        for (int64_t r = 0; r < n; r++)
            if (exact[r]) order[at++] = r;
        for (int64_t r = 0; r < n; r++) anchors[r] = anchor[order[r]];
        Rows rows = {n, differences, stride, order, anchors, bytes, bytes + n * stride, whole, scratch};
        failed = compute(w, &rows, x, out, moved);
    }
    free(order);
    free(bytes);
    free(whole);
    free(scratch);
#endif
    return failed;
}
