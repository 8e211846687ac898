/* SPDX-License-Identifier: BSD-3-Clause
 * scratch.c - the private memory in which one thread decodes and encodes.
 *
 * Two buffers for a chunk and its stored bytes, and a block for chunks that are installed side
 * by side.  All are whole pages from the system: a handler's heap would be an arena of its own.
 *
 * The block is made of transparent huge pages where the system has them, since such a page can
 * be moved into a region as it is (UFFDIO_MOVE): nothing is copied, and no page is allocated
 * there.  Where the block gets small pages instead, moving them one by one takes twice as long
 * as copying.  The system does not tell which it is, but filling a huge page is one fault, and
 * filling small pages is hundreds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "internal.h"

#define WARM_BYTES (128 << 10) /* the default size of a chunk */
#define SPARES     2 /* for the thread that opens a store, and for the first handler */
#define SMALL_FROM 128 /* faults for a huge page: it is one of 512 small ones */
#define SMALL_USES 64 /* of a block with small pages, until huge ones are tried again */

static _Atomic size_t g_bytes; /* of all of them */

size_t lm__scratch_bytes(void) { return lm_load_relaxed(&g_bytes); }

/* ---- two buffers -------------------------------------------------------------------------------- */

/* In memory at once: the first bytes would be sixty page faults. */
static void *buffer_new(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void buffers_free(struct lm__scratch *s)
{
    lm_sub_relaxed(&g_bytes, (s->a ? s->capacity : 0) + (s->b ? s->capacity : 0));
    if (s->a)
        munmap(s->a, s->capacity);
    if (s->b)
        munmap(s->b, s->capacity);
    s->a = s->b = NULL;
}

int lm__scratch_reserve(struct lm__scratch *s, size_t bytes)
{
    if (bytes <= s->capacity)
        return 0;
    buffers_free(s);
    s->capacity = lm__round_up(bytes, 65536);
    s->a = buffer_new(s->capacity);
    s->b = buffer_new(s->capacity);
    lm_add_relaxed(&g_bytes, (s->a ? s->capacity : 0) + (s->b ? s->capacity : 0));
    if (s->a && s->b)
        return 0;
    buffers_free(s);
    s->capacity = 0;
    return -ENOMEM;
}

/* ---- the block ------------------------------------------------------------------------------------ */

static void block_free(struct lm__scratch *s)
{
    if (s->block)
        munmap(s->block, s->block_bytes);
    lm_sub_relaxed(&g_bytes, s->block_bytes);
    s->block = NULL;
    s->block_bytes = 0;
}

int lm__scratch_reserve_block(struct lm__scratch *s, size_t bytes)
{
    if (bytes <= s->block_bytes)
        return 0;
    block_free(s);
    bytes = lm__round_up(bytes, LM_HUGE_BYTES);
    s->block = lm__pages_reserve(bytes, LM_HUGE_BYTES, PROT_READ | PROT_WRITE);
    if (!s->block)
        return -ENOMEM;
    s->block_bytes = bytes;
    lm_add_relaxed(&g_bytes, bytes);
    s->block_state = LM_BLOCK_EMPTY;
    madvise(s->block, bytes, MADV_HUGEPAGE);
    /* Pages that a child shares can't be moved. */
    madvise(s->block, bytes, MADV_DONTFORK);
    return 0;
}

static uint64_t faults_of_thread(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? (uint64_t)usage.ru_minflt : 0;
}

void lm__scratch_block_begin(struct lm__scratch *s)
{
    if (s->block_state == LM_BLOCK_SMALL && ++s->block_uses % SMALL_USES == 0) {
        madvise(s->block, s->block_bytes, MADV_DONTNEED);
        s->block_state = LM_BLOCK_EMPTY;
    }
    s->block_faults = faults_of_thread();
}

void lm__scratch_block_filled(struct lm__scratch *s, size_t bytes)
{
    uint64_t many = SMALL_FROM * lm__div_up(bytes, LM_HUGE_BYTES);
    if (s->block_state == LM_BLOCK_EMPTY)
        s->block_state = faults_of_thread() - s->block_faults < many ? LM_BLOCK_HUGE
                                                                     : LM_BLOCK_SMALL;
}

/* ---- spares --------------------------------------------------------------------------------------- */

static void scratch_fini(struct lm__scratch *s)
{
    buffers_free(s);
    block_free(s);
    lm__zstd_free(s);
}

/* A slot that a fork finds BUSY stays so in the child: one spare the less. */
enum spare_state { SPARE_EMPTY, SPARE_BUSY, SPARE_FULL };

static struct {
    _Atomic int state;
    struct lm__scratch scratch; /* whose who made the slot BUSY */
} g_spares[SPARES];

struct lm__scratch lm__scratch_take(void)
{
    struct lm__scratch s = {0};
    for (int i = 0; i < SPARES; i++) {
        int state = SPARE_FULL;
        if (lm_cas_acq_rel(&g_spares[i].state, &state, SPARE_BUSY)) {
            s = g_spares[i].scratch;
            lm_store_release(&g_spares[i].state, SPARE_EMPTY);
            break;
        }
    }
    return s;
}

void lm__scratch_give(struct lm__scratch *s)
{
    s->will_block = NULL;
    s->toucher_tid = 0;
    s->toucher_page = 0;
    s->is_cached_only = 0;
    block_free(s);
    for (int i = 0; i < SPARES; i++) {
        int state = SPARE_EMPTY;
        if (lm_cas_acq_rel(&g_spares[i].state, &state, SPARE_BUSY)) {
            g_spares[i].scratch = *s;
            lm_store_release(&g_spares[i].state, SPARE_FULL);
            return;
        }
    }
    scratch_fini(s);
}

void lm__scratch_warm(void)
{
    for (int i = 0; i < SPARES; i++) {
        struct lm__scratch s = {0};
        lm__scratch_reserve(&s, WARM_BYTES);
        s.zstd_dctx = lm__zstd_dctx_new();
        lm__scratch_give(&s);
    }
}
