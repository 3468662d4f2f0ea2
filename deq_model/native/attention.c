/* Attention of the rows of a call over rings of keys and values, where they lie.
 *
 * Letters: n rows, H heads, d channels of a head, T distances.
 */

#include "common.h"

typedef struct {
    int64_t heads, d, ring, distances;
    float *key, *value; /* (work rows, H, ring, d) */
    const float *positions; /* (H, T, d): what a distance adds to a score, by the query */
    const float *constant; /* (H, T): whatever the query */
} Rings;

/* exp(x) for x ≤ 0, to about one rounding: 2 to a whole power, and a polynomial for the rest. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    float power = __builtin_rintf(x * 1.44269504f);
    float r = x - power * 0.693145752f - power * 1.42860677e-6f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t i;
        float f;
    } scale = {((int32_t)power + 127) << 23};
    return p * scale.f;
}

/* The key or value that is `far` before a row's own entry of a ring. */
static inline int64_t before(const Rings *s, int64_t entry, int64_t far)
{
    return entry < far ? entry - far + s->ring : entry - far;
}

/* Scores become weights that sum to the result. */
CLONES static float soften(float *score, int64_t seen)
{
    float most = -INFINITY, total = 0;
#pragma omp simd reduction(max : most)
    for (int64_t far = 0; far < seen; far++) most = score[far] > most ? score[far] : most;
#pragma omp simd reduction(+ : total)
    for (int64_t far = 0; far < seen; far++) {
        /* Of NaN the comparisons in exponential() would make a number. */
        float odd = (score[far] - most) * 0;
        score[far] = exponential(score[far] - most) + odd;
        total += score[far];
    }
    return total;
}

/* One head of a row, from its query and the head's ring and tables. */
typedef struct {
    const float *query, *key, *value, *positions, *constant;
    int64_t entry, seen;
} Head;

static void one_head(const Rings *s, const Head *h, float *score, float *out)
{
    int64_t d = s->d;
    for (int64_t far = 0; far < h->seen; far++) {
        const float *key = h->key + before(s, h->entry, far) * d, *position = h->positions + far * d;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < d; i++) sum += h->query[i] * (key[i] + position[i]);
        score[far] = sum + h->constant[far];
    }
    float total = soften(score, h->seen);
    for (int64_t i = 0; i < d; i++) out[i] = 0;
    for (int64_t far = 0; far < h->seen; far++) {
        const float *value = h->value + before(s, h->entry, far) * d;
        for (int64_t i = 0; i < d; i++) out[i] += score[far] * value[i];
    }
    for (int64_t i = 0; i < d; i++) out[i] /= total;
}

#if defined(__x86_64__)
#include <immintrin.h>

/* The same with vectors of sixteen, d of which the last one has only a part. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) static void one_head_wide(
    const Rings *s, const Head *h, float *score, float *out)
{
    int64_t d = s->d, whole = d / 16 * 16;
    __mmask16 rest = (__mmask16)((1u << (d - whole)) - 1);
    for (int64_t far = 0; far < h->seen; far++) {
        const float *key = h->key + before(s, h->entry, far) * d, *position = h->positions + far * d;
        __m512 k = _mm512_maskz_loadu_ps(rest, key + whole);
        __m512 q = _mm512_maskz_loadu_ps(rest, h->query + whole);
        k = _mm512_add_ps(k, _mm512_maskz_loadu_ps(rest, position + whole));
        __m512 sum = _mm512_mul_ps(q, k);
        for (int64_t i = 0; i < whole; i += 16) {
            k = _mm512_add_ps(_mm512_loadu_ps(key + i), _mm512_loadu_ps(position + i));
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(h->query + i), k, sum);
        }
        score[far] = _mm512_reduce_add_ps(sum) + h->constant[far];
    }
    __m512 scale = _mm512_set1_ps(1 / soften(score, h->seen));
    for (int64_t i = 0; i < d; i += 16) {
        __mmask16 mask = i < whole ? (__mmask16)0xffff : rest;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t far = 0; far < h->seen; far++) {
            const float *value = h->value + before(s, h->entry, far) * d + i;
            sum = _mm512_fmadd_ps(_mm512_set1_ps(score[far]), _mm512_maskz_loadu_ps(mask, value), sum);
        }
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(sum, scale));
    }
}

static int is_wide(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
#define one_head_wide one_head
static int is_wide(void) { return 0; }
#endif

/* Puts a row's key and value (H·d) into its ring. */
static void put(const Rings *s, int64_t ring, int64_t entry, const float *key, const float *value)
{
    for (int64_t head = 0; head < s->heads; head++) {
        int64_t at = ((ring * s->heads + head) * s->ring + entry) * s->d;
        memcpy(s->key + at, key + head * s->d, s->d * sizeof(float));
        memcpy(s->value + at, value + head * s->d, s->d * sizeof(float));
    }
}

/* Values by the softmax of the scores; the rows' own keys and values are in their rings afterwards.
 *
 * ring, entry, seen (n,): the work row of each row, its own entry there, and how many keys it sees,
 * its own and those before it. query, key and value: rows of H·d, stride numbers apart; mixed
 * (n, H·d). Returns 0, or 1 where memory is short.
 */
int deqlm_attend(
    const Rings *s, int64_t n, const int64_t *ring, const int64_t *entry, const int64_t *seen,
    const float *query, const float *key, const float *value, int64_t stride, float *mixed)
{
    int failed = 0, wide = is_wide();
    int64_t d = s->d, size = s->ring * d;
    for (int64_t i = 0; i < n; i++) put(s, ring[i], entry[i], key + i * stride, value + i * stride);
#pragma omp parallel
    {
        float *score = malloc(s->distances * sizeof(float));
        if (!score) {
#pragma omp atomic write
            failed = 1;
        }
        /* Head by head, so that a head's tables and a sequence's keys stay in the cache. */
#pragma omp for schedule(static)
        for (int64_t each = 0; each < n * s->heads; each++) {
            int64_t row = each % n, head = each / n, at = (ring[row] * s->heads + head) * size;
            Head h = {
                query + row * stride + head * d, s->key + at, s->value + at,
                s->positions + head * s->distances * d, s->constant + head * s->distances,
                entry[row], seen[row]};
            float *out = mixed + (row * s->heads + head) * d;
            if (score && wide) one_head_wide(s, &h, score, out);
            if (score && !wide) one_head(s, &h, score, out);
        }
        free(score);
    }
    return failed;
}
