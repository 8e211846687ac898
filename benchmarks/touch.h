/* SPDX-License-Identifier: BSD-3-Clause
 * touch.h - the loops of bench_umap.py, which all rivals run: the same machine code reads their
 * memory, whoever brings it.
 *
 * A sum depends on the order of its pages, so that one page in the place of another shows.
 */
#ifndef TOUCH_H
#define TOUCH_H

#include <stddef.h>
#include <stdint.h>

#define TOUCH_PAGE_BYTES ((size_t)4096)

#ifdef __cplusplus
extern "C" {
#endif

/* Read the 64-bit words at some offsets, one after the other; ns[i] is how long the one at
 * offsets[i] took.  Returns their sum. */
uint64_t touch_each(const void *memory, const uint64_t *offsets, size_t count,
                    uint64_t *ns);

/* Read every 64-bit word of some pages, in order.  Returns the sum, to which `sum` is what the
 * pages before them gave; 0 for the first. */
uint64_t touch_all(const void *memory, size_t memory_bytes, uint64_t sum);

#ifdef __cplusplus
}
#endif
#endif
