/* What the kernels share. They are for a CPU, and do in one pass what takes PyTorch dozens of
 * operations, which on few rows cost more than the numbers in them.
 *
 * Rows are independent of one another: one that is not finite spoils itself alone. Callers check
 * shapes, dtypes and strides; nothing is checked here. All buffers are dense and row-major.
 */

#ifndef DEQLM_COMMON_H
#define DEQLM_COMMON_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__)
/* Compiled for several processors; which one is at hand is found when the library is loaded. */
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#endif
