/* SPDX-License-Identifier: BSD-3-Clause
 * prune.c - the space of what no state of a store refers to goes back to the file system.
 *
 *   states in use --> their records, manifests, index pages and payloads --> a bit for each block
 *   blocks without a bit --> holes
 *
 * (P1) In use is what the last commit lists, and what a reader has open.  Readers that open the
 *      store meanwhile wait, so none reads a state that is about to go.
 * (P2) Nothing is written: a crash in the midst leaves holes where nobody looks.
 * (P3) The last commit is on the disk before the first hole.  It need not be: the process that
 *      made it may have died before its sync, and a power failure would bring back the state
 *      before, which is not in use any more.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define BLOCK_SHIFT                                                                    \
    12 /* what file systems have; of larger ones parts of blocks are zeroed */

struct lm_prune {
    lm_writer *writer;
    uint64_t blocks;  /* whole ones, of the file */
    uint64_t *in_use; /* a bit for each */
};

int lm_prune_begin(lm_writer *w, lm_prune **out, struct lm_error *err)
{
    lm_prune *p = calloc(1, sizeof *p);
    uint64_t blocks = w->kept_tail >> BLOCK_SHIFT;
    if (p)
        p->in_use = calloc(blocks / 64 + 1, sizeof p->in_use[0]);
    if (!p || !p->in_use) {
        free(p);
        return lm__fail(err, lm__error(-ENOMEM, "prune"));
    }
    p->writer = w;
    p->blocks = blocks;
    int rc = lm__io_is_file(w->fd, &w->file_id) ? lm__marks_close(w->fd) : -EBADF;
    if (rc != 0) { /* where nobody can mark what it reads nothing may go */
        free(p->in_use);
        free(p);
        return lm__fail(err, lm__error(rc, "locks of the file system"));
    }
    *out = p;
    return 0;
}

uint64_t lm_prune_reader(lm_prune *p, uint64_t from)
{
    return lm__marks_next(p->writer->fd, from);
}

static void keep(lm_prune *p, uint64_t offset, uint64_t bytes)
{
    uint64_t end = lm__div_up(offset + bytes, 1u << BLOCK_SHIFT);
    for (uint64_t i = offset >> BLOCK_SHIFT; i < end && i < p->blocks; i++)
        p->in_use[i / 64] |= 1ull << (i % 64);
}

int lm_prune_open(lm_prune *p, uint64_t record_offset, lm_store **out,
                  struct lm_commit *commit, struct lm_error *err)
{
    int rc = lm__store_reopen(p->writer->store, record_offset, 1, out, commit, err);
    if (rc != 0)
        return rc;
    const struct lm__record *rec = &(*out)->record;
    keep(p, rec->offset, LM_RECORD_BYTES);
    keep(p, rec->manifest.offset, rec->manifest.stored_bytes);
    return 0;
}

/* ---- the index of an object ---------------------------------------------------------------------- */

/* Entries of two indexes, by level, from 1. */
struct pages {
    struct lm__entry now[LM_PAGE_ENTRIES], before[LM_PAGE_ENTRIES];
};

struct walk {
    lm_prune *prune;
    struct lm__index *index;
    struct lm__source *source;
    struct lm__scratch scratch;
    struct pages *pages;
};

/* What an entry of `level` describes (0: a chunk), unless it is also what `before` does. */
static int keep_entry(struct walk *w, unsigned level, uint64_t idx,
                      const struct lm__entry *now, const struct lm__entry *before,
                      struct lm_error *err)
{
    struct lm__entry base, untold;
    if (lm__entry_is_zero(now) || lm__entry_is_equal(now, before))
        return 0;
    keep(w->prune, now->offset, now->stored_bytes);
    if (level == 0)
        return 0;
    struct pages *p = &w->pages[level - 1];
    uint32_t count = lm__index_page_entries(w->index->chunks, level, idx);
    int rc = lm__page_read(now, count, w->source, &w->scratch, p->now, &base, err);
    if (rc == 0)
        rc = lm__page_read(before, count, w->source, &w->scratch, p->before, &untold,
                           err);
    if (rc == 0 && !lm__entry_is_zero(&base))
        keep(w->prune, base.offset, base.stored_bytes);
    for (uint32_t i = 0; i < count && rc == 0; i++)
        rc = keep_entry(w, level - 1, idx * LM_PAGE_ENTRIES + i, &p->now[i],
                        &p->before[i], err);
    return rc;
}

int lm_prune_keep(lm_prune *p, lm_object *object, lm_object *before,
                  struct lm_error *err)
{
    static const struct lm__entry zero;
    struct lm__base *now = lm__object_base(object);
    struct lm__base *then = before ? lm__object_base(before) : NULL;
    struct walk w = {.prune = p,
                     .index = &now->index,
                     .source = &now->store->source,
                     .scratch = lm__scratch_take()};
    w.pages = malloc(now->index.depth * sizeof w.pages[0]);
    int rc = w.pages ? keep_entry(&w, now->index.depth, 0, &now->index.root,
                                  then ? &then->index.root : &zero, err)
                     : lm__fail(err, lm__error(-ENOMEM, "prune"));
    free(w.pages);
    lm__scratch_give(&w.scratch);
    lm__base_drop(now);
    if (then)
        lm__base_drop(then);
    return rc;
}

/* ---- holes --------------------------------------------------------------------------------------- */

static int is_in_use(const lm_prune *p, uint64_t block)
{
    return (p->in_use[block / 64] >> (block % 64) & 1) != 0;
}

static int punch(lm_prune *p)
{
    int rc = lm__io_is_file(p->writer->fd, &p->writer->file_id) ? 0 : -EBADF;
    uint64_t end = 0;
    for (uint64_t i = 0; i < p->blocks && rc == 0; i = end) {
        for (end = i; end < p->blocks && !is_in_use(p, end);)
            end++;
        if (end > i)
            rc =
                lm__io_punch(p->writer->fd, i << BLOCK_SHIFT, (end - i) << BLOCK_SHIFT);
        end += end == i;
    }
    return rc;
}

int lm_prune_end(lm_prune *p, int is_complete, uint64_t *freed, struct lm_error *err)
{
    lm_writer *w = p->writer;
    uint64_t before = 0, after = 0;
    int rc = 0;
    *freed = 0;
    if (is_complete) {
        keep(p, 0, LM_SUPERBLOCK_BYTES);
        keep(p, w->last.offset, w->kept_tail - w->last.offset); /* not yet committed */
        rc = lm__append_sync(w, err);
        if (rc == 0)
            rc = lm__io_used_bytes(w->fd, &before);
        if (rc == 0)
            rc = punch(p);
        if (rc == 0)
            rc = lm__io_used_bytes(w->fd, &after);
        /* What was found as a repeat may be a hole by now. */
        memset(w->repeats, 0, sizeof w->repeats);
    }
    *freed = before > after ? before - after : 0;
    lm__marks_open(w->fd);
    free(p->in_use);
    free(p);
    return rc == 0 ? 0 : lm__fail(err, lm__error(rc, "holes in the file"));
}
