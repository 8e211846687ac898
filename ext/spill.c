/* SPDX-License-Identifier: BSD-3-Clause
 * spill.c - what was written and has no room in memory: compressed, in a file without a name.
 *
 * Space that is given back is used again for what is of the same size class, of which there are
 * eight to each power of two: so at most an eighth of it is wasted.  When nothing is left in the
 * file it is cut to nothing.
 *
 * A fork leaves both processes with the same file.  So neither writes to it, nor uses its space
 * again: each begins a new one, and closes the old one when it needs nothing of it any more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

#define CLASS_STEPS_SHIFT 3
#define BLOCK_SHIFT       9 /* the least that is handed out */
#define CHUNK_SHIFT_MAX   30
#define CLASSES           ((CHUNK_SHIFT_MAX - BLOCK_SHIFT + 1) << CLASS_STEPS_SHIFT)

/* Space of one size that is free. */
struct stack {
    uint64_t *offsets;
    uint64_t count, capacity;
};

struct spill_file {
    struct lm__source source;
    uint64_t extents; /* in use; under g_lock, as all below */
    int is_retired;   /* no more is written to it */
    struct stack free_space[CLASSES];
};

struct lm__extent {
    struct spill_file *file; /* NULL: all zero, which takes no space */
    uint32_t refs;           /* under g_lock */
    unsigned size_class;
    struct lm__entry entry; /* fixed, as is the rest */
    struct lm__spill *spill;
};

struct lm__spill {
    struct lm__spill *next; /* under g_lock, as all below */
    uint64_t refs;          /* the budget's, and one of each extent */
    struct spill_file *file;
    uint64_t bytes;
    char folder[];
};

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf */
static struct lm__spill *g_spills;

/* ---- space ------------------------------------------------------------------------------------- */

/* The least of the sizes 8, 9 ... 15, 16, 18 ... blocks that holds `bytes`. */
static unsigned class_of(size_t bytes, size_t *class_bytes)
{
    uint64_t blocks = lm__div_up(bytes, 1u << BLOCK_SHIFT),
             steps = 1u << CLASS_STEPS_SHIFT;
    unsigned shift = 0;
    if (blocks < steps)
        blocks = steps;
    while (lm__div_up(blocks, 1ull << shift) >= 2 * steps)
        shift++;
    blocks = lm__div_up(blocks, 1ull << shift);
    *class_bytes = (size_t)(blocks << shift << BLOCK_SHIFT);
    return (shift << CLASS_STEPS_SHIFT) + (unsigned)(blocks - steps);
}

static void file_free(struct spill_file *f)
{
    for (int i = 0; i < CLASSES; i++)
        free(f->free_space[i].offsets);
    if (f->source.fd >= 0)
        close(f->source.fd);
    free(f);
}

static int open_in(const char *folder)
{
    char path[4096];
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
        return fd < 0 ? -errno : fd;
    if (snprintf(path, sizeof path, "%s/lazymem-XXXXXX", folder) >= (int)sizeof path)
        return -ENAMETOOLONG;
    fd = mkostemp(path, O_CLOEXEC); /* 0600 */
    if (fd < 0)
        return -errno;
    unlink(path);
    return fd;
}

/* Somewhere to write `bytes` to.  0 or -errno. */
static int place_locked(struct lm__spill *s, size_t bytes, struct lm__extent *x)
{
    size_t class_bytes;
    if (!s->file || s->file->is_retired) {
        struct spill_file *fresh = calloc(1, sizeof *fresh);
        int fd = fresh ? open_in(s->folder) : -ENOMEM;
        if (fd < 0) {
            free(fresh);
            return fd;
        }
        fresh->source.fd = fd;
        fresh->source.end_offset =
            lm__page_bytes(); /* what a source gives is behind a header */
        s->file = fresh;
    }
    x->size_class = class_of(bytes, &class_bytes);
    struct stack *stack = &s->file->free_space[x->size_class];
    uint64_t end = lm_load_relaxed(&s->file->source.end_offset);
    x->entry.offset = stack->count > 0 ? stack->offsets[--stack->count] : end;
    if (x->entry.offset == end)
        lm_store_release(&s->file->source.end_offset, end + class_bytes);
    x->file = s->file;
    x->file->extents++;
    s->bytes += class_bytes;
    return 0;
}

/* Space that can't be remembered is lost until the file is empty. */
static void give_back_locked(struct lm__extent *x)
{
    struct spill_file *f = x->file;
    struct stack *stack = &f->free_space[x->size_class];
    size_t class_bytes;
    class_of(x->entry.stored_bytes, &class_bytes);
    x->spill->bytes -= class_bytes;
    if (--f->extents > 0) {
        if (!f->is_retired &&
            lm__array_reserve(&stack->offsets, &stack->capacity, stack->count + 1,
                              sizeof stack->offsets[0]) == 0)
            stack->offsets[stack->count++] = x->entry.offset;
        return;
    }
    if (x->spill->file == f)
        x->spill->file = NULL;
    file_free(f);
}

static void drop_locked(struct lm__spill *s)
{
    struct lm__spill **at = &g_spills;
    if (--s->refs > 0)
        return;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    if (s->file)
        file_free(s->file);
    free(s);
}

/* ---- extents ------------------------------------------------------------------------------------ */

int lm__spill_put(struct lm__spill *s, const struct lm_encoding *enc,
                  const uint8_t *bytes, size_t count, struct lm__scratch *scratch,
                  struct lm__extent **out)
{
    uint8_t *encoded = malloc(count);
    struct lm__extent *x = calloc(1, sizeof *x);
    int rc = -ENOMEM;
    if (!encoded || !x)
        goto failed;
    rc = lm__encode(enc, bytes, count, scratch, encoded, &x->entry);
    x->refs = 1;
    x->spill = s;
    pthread_mutex_lock(&g_lock);
    s->refs++;
    pthread_mutex_unlock(&g_lock);
    if (rc == 0 && !lm__entry_is_zero(&x->entry)) {
        pthread_mutex_lock(&g_lock);
        rc = place_locked(s, x->entry.stored_bytes, x);
        pthread_mutex_unlock(&g_lock);
        if (rc == 0)
            rc = lm__io_pwrite(x->file->source.fd, x->entry.offset,
                               x->entry.stored_bytes, encoded);
    }
    if (rc != 0)
        goto failed;
    free(encoded);
    *out = x;
    return 0;

failed:
    free(encoded);
    if (x && x->spill)
        lm__extent_drop(x);
    else
        free(x);
    return rc;
}

int lm__extent_read(const struct lm__extent *x, uint32_t shuffle_width, size_t bytes,
                    struct lm__scratch *scratch, uint8_t **out, struct lm_error *err)
{
    uint64_t stored_bytes = 0;
    if (!x->file)
        return LM_ZERO_CHUNK;
    *out = NULL;
    return lm__payload_decode(&x->file->source, &x->entry, shuffle_width, bytes,
                              scratch, out, &stored_bytes, err);
}

struct lm__extent *lm__extent_hold(struct lm__extent *x)
{
    pthread_mutex_lock(&g_lock);
    x->refs++;
    pthread_mutex_unlock(&g_lock);
    return x;
}

void lm__extent_drop(struct lm__extent *x)
{
    pthread_mutex_lock(&g_lock);
    int is_last = --x->refs == 0;
    if (is_last && x->file)
        give_back_locked(x);
    if (is_last)
        drop_locked(x->spill);
    pthread_mutex_unlock(&g_lock);
    if (is_last)
        free(x);
}

/* ---- life ----------------------------------------------------------------------------------------- */

struct lm__spill *lm__spill_new(const char *folder)
{
    struct lm__spill *s = calloc(1, sizeof *s + strlen(folder) + 1);
    if (!s)
        return NULL;
    memcpy(s->folder, folder, strlen(folder));
    s->refs = 1;
    pthread_mutex_lock(&g_lock);
    s->next = g_spills;
    g_spills = s;
    pthread_mutex_unlock(&g_lock);
    return s;
}

void lm__spill_drop(struct lm__spill *s)
{
    pthread_mutex_lock(&g_lock);
    drop_locked(s);
    pthread_mutex_unlock(&g_lock);
}

uint64_t lm__spill_bytes(const struct lm__spill *s)
{
    pthread_mutex_lock(&g_lock);
    uint64_t bytes = s->bytes;
    pthread_mutex_unlock(&g_lock);
    return bytes;
}

/* ---- fork ----------------------------------------------------------------------------------------- */

void lm__spill_fork_prepare(void) { pthread_mutex_lock(&g_lock); }

/* In both processes. */
void lm__spill_fork_done(void)
{
    for (struct lm__spill *s = g_spills; s; s = s->next)
        if (s->file && s->file->extents > 0)
            s->file->is_retired = 1;
    pthread_mutex_unlock(&g_lock);
}
