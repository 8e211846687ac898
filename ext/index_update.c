/* SPDX-License-Identifier: BSD-3-Clause
 * index_update.c - an index with some entries changed, written as what is new of it.
 *
 *   old root [e e e]            new root [e e'e]        Each page on the way from a changed
 *             | | '-------------------+----|-'          entry to the root is written anew;
 *          leaf leaf <-- base -- patch of it            all others belong to both.
 *
 * A page is written as a patch of the plain page that its predecessor is or is a patch of, so
 * a reader never has more to read than two.  A patch holds all changes since that page, those
 * of earlier snapshots too: when it has grown large, a plain page is the new base.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* A patch is worth it while it takes less than an eighth of the plain page.  With 1 % of the
 * chunks changed in each snapshot, that and the plain pages which follow come to 0.8 % of the
 * payloads; a quarter would come to 0.95 %. */
#define PATCH_GAIN_MIN_SHIFT 3

/* One page on the way from the root to a change. */
struct page {
    uint32_t count;
    struct lm__entry entries[LM_PAGE_ENTRIES];
    struct lm__entry base; /* a plain page, or zeros */
    struct lm__entry base_entries[LM_PAGE_ENTRIES];
};

struct update {
    const struct lm__index *index;
    struct lm__source *source;
    struct lm__scratch *scratch;
    lm_writer *writer;
    const struct lm__change *change, *end; /* those to be made still */
    uint8_t packed[LM_PAGE_ENTRIES * LM_ENTRY_BYTES];
    uint8_t patch[LM_PATCH_BYTES_MAX];
    struct page pages[]; /* by level, from 1 */
};

static int page_read(struct update *u, struct page *p, const struct lm__entry *e,
                     struct lm_error *err)
{
    struct lm__entry base;
    int rc =
        lm__page_read(e, p->count, u->source, u->scratch, p->entries, &p->base, err);
    return rc == 0 ? lm__page_read(&p->base, p->count, u->source, u->scratch,
                                   p->base_entries, &base, err)
                   : rc;
}

/* Make the patch that turns a page's base into the page.  Returns its length. */
static size_t page_patch(const struct page *p, uint8_t *patch)
{
    uint8_t *pair = patch + sizeof p->base;
    memcpy(patch, &p->base, sizeof p->base);
    for (uint32_t i = 0; i < p->count; i++) {
        if (lm__entry_is_equal(&p->entries[i], &p->base_entries[i]))
            continue;
        lm__put16(pair, (uint16_t)i);
        memcpy(pair + sizeof(uint16_t), &p->entries[i], sizeof p->entries[i]);
        pair += LM_PAIR_BYTES;
    }
    return (size_t)(pair - patch);
}

static int page_is_zero(const struct page *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        if (!lm__entry_is_zero(&p->entries[i]))
            return 0;
    return 1;
}

/* Give the entry of a page that has changed, which is appended unless it is there already. */
static int page_append(struct update *u, const struct page *p, struct lm__entry *e,
                       struct lm_error *err)
{
    const void *stored;
    *e = (struct lm__entry){0};
    if (page_is_zero(p))
        return 0;
    size_t patch_bytes = page_patch(p, u->patch);
    if (patch_bytes == LM_ENTRY_BYTES) { /* as its base is, again */
        *e = p->base;
        return 0;
    }
    size_t bytes = lm__page_pack(p->entries, p->count, u->packed, &stored);
    size_t worth = bytes;
    /* A patch of zeros costs a reader nothing. */
    if (!lm__entry_is_zero(&p->base))
        worth >>= PATCH_GAIN_MIN_SHIFT;
    if (patch_bytes < worth) {
        e->codec = LM_PAGE_PATCH;
        stored = u->patch;
        bytes = patch_bytes;
    }
    e->crc = lm_crc32c(0, stored, bytes);
    return lm__append(u->writer, stored, bytes, e, err);
}

/* Make those of the changes that lie below page `page_idx`, of level `level`, whose entry is
 * *old, and give the entry that it has from now on. */
static int update(struct update *u, unsigned level, uint64_t page_idx,
                  const struct lm__entry *old, struct lm__entry *out,
                  struct lm_error *err)
{
    struct page *p = &u->pages[level - 1];
    const unsigned page_shift = lm__log2(LM_PAGE_ENTRIES);
    const unsigned shift = page_shift * (level - 1);
    int is_changed = 0;
    p->count = lm__index_page_entries(u->index->chunks, level, page_idx);
    int rc = page_read(u, p, old, err);
    while (rc == 0 && u->change < u->end &&
           u->change->chunk_idx >> shift >> page_shift == page_idx) {
        uint64_t child_idx = u->change->chunk_idx >> shift;
        struct lm__entry *e = &p->entries[child_idx % LM_PAGE_ENTRIES], fresh;
        if (level == 1)
            fresh = (u->change++)->entry;
        else
            rc = update(u, level - 1, child_idx, e, &fresh, err);
        if (rc == 0 && !lm__entry_is_equal(e, &fresh)) {
            *e = fresh;
            is_changed = 1;
        }
    }
    *out = *old;
    return rc == 0 && is_changed ? page_append(u, p, out, err) : rc;
}

int lm__index_update(const struct lm__index *index, struct lm__source *source,
                     lm_writer *writer, const struct lm__change *changes,
                     uint64_t count, struct lm__scratch *scratch,
                     struct lm__entry *root, struct lm_error *err)
{
    *root = index->root;
    if (count == 0)
        return 0;
    for (uint64_t i = 0; i < count; i++)
        lm_assert(changes[i].chunk_idx <
                  (i + 1 < count ? changes[i + 1].chunk_idx : index->chunks));
    struct update *u = malloc(sizeof *u + index->depth * sizeof u->pages[0]);
    if (!u)
        return lm__fail(err, lm__error(-ENOMEM, "index page"));
    u->index = index;
    u->source = source;
    u->scratch = scratch;
    u->writer = writer;
    u->change = changes;
    u->end = changes + count;
    int rc = update(u, index->depth, 0, &index->root, root, err);
    free(u);
    return rc;
}
