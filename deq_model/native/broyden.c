/* Broyden's step of many rows: what RowSolver.observe does with the method broyden, ranked by
 * relative residuals and without a line search. fused.py has the same for a GPU.
 *
 * Letters: D channels, m depth.
 */

#include "common.h"

typedef struct {
    int64_t dim, depth;
    float restart, least_norm;
    float *state; /* (rows, 5, D): next; state and residual of the last step; of the best */
    float *least; /* (rows, 2): the best state's residuals, relative and absolute */
    float *damping; /* (rows,) */
    float *terms; /* (rows, m, 2, D) */
    int64_t *count; /* (rows,) */
} Solver;

CLONES static float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

CLONES static void add(float *to, float factor, const float *a, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] += factor * a[i];
}

CLONES static int all_finite(const float *a, int64_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * 0; /* inf · 0 and NaN · 0 are NaN */
    return sum == 0;
}

static float finite_or_inf(float x) { return x < INFINITY ? x : INFINITY; }

/* Vectors that a row's step needs beside its state. */
typedef struct {
    float *g, *dz, *dg, *v, *b_dg, *b_g;
} Work;

/* The rank-one update and the step −B g, into work.b_g; returns whether the new term is usable. */
static int update(const Solver *s, float *terms, int64_t used, int fresh, const float *g, Work *w)
{
    int64_t dim = s->dim;
    for (int64_t i = 0; i < dim; i++) {
        w->v[i] = -w->dz[i];
        w->b_dg[i] = -w->dg[i];
        w->b_g[i] = -g[i];
    }
    for (int64_t j = 0; j < used; j++) {
        const float *u = terms + 2 * j * dim, *v = u + dim;
        add(w->v, dot(u, w->dz, dim), v, dim);
        add(w->b_dg, dot(v, w->dg, dim), u, dim);
        add(w->b_g, dot(v, g, dim), u, dim);
    }
    float bottom = dot(w->dg, w->v, dim), along = dot(g, w->v, dim);
    float *u_new = terms + 2 * used * dim, *v_new = u_new + dim;
    for (int64_t i = 0; i < dim; i++) u_new[i] = (w->dz[i] - w->b_dg[i]) / bottom;
    int usable = !fresh && isfinite(bottom) && all_finite(u_new, dim);
    if (usable) {
        memcpy(v_new, w->v, dim * sizeof(float));
        add(w->b_g, along, u_new, dim);
    } else
        memset(u_new, 0, 2 * dim * sizeof(float));
    for (int64_t i = 0; i < dim; i++) w->b_g[i] = -w->b_g[i];
    return usable;
}

static void observe(
    const Solver *s, int64_t row, const float *f, int known, float *seen, float *measured, Work *w)
{
    int64_t dim = s->dim;
    size_t bytes = dim * sizeof(float);
    float *next = s->state + row * 5 * dim, *last_z = next + dim, *last_g = last_z + dim;
    float *best_z = last_g + dim, *best_g = best_z + dim, *least = s->least + 2 * row;

    /* The residuals, and the best state. */
    memcpy(measured, next, bytes);
    for (int64_t i = 0; i < dim; i++) {
        w->g[i] = f[i] - measured[i];
        w->dz[i] = measured[i] - last_z[i];
        w->dg[i] = w->g[i] - last_g[i];
    }
    float size = sqrtf(dot(w->g, w->g, dim)), before = least[0];
    float relative = finite_or_inf(size / fmaxf(sqrtf(dot(f, f, dim)), s->least_norm));
    size = finite_or_inf(size);
    if (relative < (known ? before : INFINITY)) {
        memcpy(best_z, measured, bytes);
        memcpy(best_g, w->g, bytes);
        least[0] = relative;
        least[1] = size;
    }
    seen[0] = relative;
    seen[1] = least[0];

    /* Back to the best state, where that is far better. */
    int worse = isinf(relative) || relative > s->restart * before;
    int fresh = isinf(before) || worse;
    if (worse && !isinf(before)) s->damping[row] *= 0.5f;
    const float *z = worse ? best_z : measured, *g = worse ? best_g : w->g;
    int64_t used = worse || s->count[row] >= s->depth ? 0 : s->count[row];
    float *terms = s->terms + row * s->depth * 2 * dim;
    int usable = update(s, terms, used, fresh, g, w);

    /* Where to go: plainly, where the step is none. */
    int lost = !all_finite(w->b_g, dim);
    float plain = s->damping[row];
    for (int64_t i = 0; i < dim; i++) next[i] = z[i] + (fresh || lost ? plain * g[i] : w->b_g[i]);
    if (!all_finite(next, dim)) memcpy(next, best_z, bytes);
    memcpy(last_z, z, bytes);
    memcpy(last_g, g, bytes);
    s->count[row] = lost ? 0 : used + usable;
}

/* Observes f (n, D) at what distinct rows (n,) proposed.
 *
 * settled (n,): rows whose f is the one of their last call. seen (n, 2) takes relative residuals and
 * the least ones; measured (n, D) the states that f was asked at. Returns 0, or 1 without memory.
 */
int deqlm_observe(
    const Solver *s, int64_t n, const int64_t *rows, const float *f, const uint8_t *settled,
    float *seen, float *measured)
{
    int failed = 0;
    int64_t dim = s->dim;
#pragma omp parallel if (n > 1)
    {
        float *space = malloc(6 * dim * sizeof(float));
        Work w = {space, space + dim, space + 2 * dim, space + 3 * dim, space + 4 * dim, space + 5 * dim};
        if (!space) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++)
            if (space)
                observe(s, rows[i], f + i * dim, settled[i], seen + 2 * i, measured + i * dim, &w);
        free(space);
    }
    return failed;
}
