/* SPDX-License-Identifier: BSD-3-Clause
 * Does the engine keep its promises when everything happens at once?
 *
 *     stress [SECONDS [SEED]]
 *
 * Threads touch, prefetch, drop, release, close and reopen the same few regions, fork, and
 * make reads fail, in an order that the seed decides: operation k of thread t draws from a
 * generator of its own, so what it does depends on (seed, t, k) alone, and only the timing is
 * the machine's.  What a byte must be is a function of object and offset.
 *
 * (S1) A touch gives the right byte, or 0xFF and an error: left for the thread or, where
 *      another thread's failed touch put the byte there, in the region's count of failures.
 * (S2) A touch after the release is an error.
 * (S3) Errors have a cause: LM_E_CLOSED a release, all others an injection a short while ago,
 *      or, in a child, a huge page that the parent took back.
 * (S4) A forked child begins with no failure under way, and all this holds in it as well.
 * (S5) Nobody hangs (watchdog.h), and nothing is left at the end (leaks.h).
 */
#define _GNU_SOURCE
#include <stdarg.h>

#include "leaks.h"
#include "test.h"
#include "watchdog.h"

#define THREADS       6
#define SLOTS         12
#define OBJECTS       8
#define SECONDS       3
#define WARM_UP_MAX_S 5
#define ERRORS_LINGER_S                                                                \
    3 /* after an injection: fills retry reads, and threads starve */
#define BATCH_MAX      48
#define SCAN_BYTES     (192u << 10)
#define FORK_DEPTH_MAX 2
#define LIMIT_MIN      (6u << 20) /* a chunk of 1 MiB for every thread */

/* ---- the data, and what it must be ------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15ull; /* splitmix64 */
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

struct thing {
    struct lm_encoding enc;
    int is_sparse;
    struct lm_written written;
};

static struct thing g_things[OBJECTS] = {
    {{100003, 4096, 0, LM_CODEC_NONE, 0, 1}, 0, {.stored_bytes = 0}},
    {{300, 4096, 0, LM_CODEC_LZ4, 1, 1}, 0, {.stored_bytes = 0}},
    {{20480, 4096, 8, LM_CODEC_LZ4, 1, 1}, 0, {.stored_bytes = 0}},
    {{3u << 20, 16384, 4, LM_CODEC_LZ4, 1, 1}, 0, {.stored_bytes = 0}},
    {{(5u << 20) + 777, 65536, 8, LM_CODEC_ZSTD, 1, 1}, 0, {.stored_bytes = 0}},
    {{2u << 20, 262144, 0, LM_CODEC_NONE, 0, 1}, 0, {.stored_bytes = 0}},
    {{40u << 20, 131072, 0, LM_CODEC_ZSTD, 1, 1},
     1,
     {.stored_bytes = 0}}, /* an arena of its own */
    {{24u << 20, 1u << 20, 4, LM_CODEC_ZSTD, 1, 1}, 0, {.stored_bytes = 0}},
};

/* Never 0xFF, which stands for failure. */
static uint8_t byte_at(int thing, uint64_t offset)
{
    if (g_things[thing].is_sparse && mix(offset >> 18) % 16 != 0)
        return 0;
    uint64_t kind = mix((uint64_t)thing << 48 ^ offset >> 12);
    switch (kind % 4) {
    case 0: return 0;
    case 1: return (uint8_t)(mix(offset) % 255);
    default: return (uint8_t)(((offset >> 4) + kind % 97) % 255);
    }
}

/* ---- shared state --------------------------------------------------------------------------- */

/* A region with its users.  The last one closes it. */
struct handle {
    _Atomic uint32_t refs;
    lm_region *region; /* fixed after open, as is the next */
    int thing;
    _Atomic int is_released; /* the release has ended */
};

static struct {
    pthread_mutex_t lock; /* no memory is touched under it */
    struct handle *handle;
} g_slots[SLOTS];

static struct {
    pthread_mutex_t lock;
    lm_store *store;
    lm_object *objects[OBJECTS];
} g_open = {.lock = PTHREAD_MUTEX_INITIALIZER};

static lm_budget *g_budget; /* of some read-only regions */
static char *g_path;
static uint64_t g_seed;
static _Atomic int g_stop;
static pthread_mutex_t g_inject_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t g_inject_until_ns; /* errors are in order until then */
static _Atomic uint64_t g_fills, g_failures, g_unheard;

struct thread {
    int index;
    int depth; /* of forks */
    uint64_t op_idx;
    uint64_t random;
    struct watched *watched;
};

static uint64_t draw(struct thread *t, uint64_t below)
{
    return test_random(&t->random) % below;
}

__attribute__((format(printf, 2, 3), noreturn)) static void fail(const struct thread *t,
                                                                 const char *format,
                                                                 ...)
{
    va_list args;
    char text[300];
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "stress: seed %llu, thread %d, operation %llu, %s%s: %s\n",
            (unsigned long long)g_seed, t->index, (unsigned long long)t->op_idx,
            lm_load_relaxed(&t->watched->doing), t->depth ? ", in a child" : "", text);
    _exit(TEST_FAILED);
}

/* ---- errors that have a cause ---------------------------------------------------------------- */

static int injected_lately(void)
{
    return watchdog_now_ns() < lm_load_seq_cst(&g_inject_until_ns);
}

static const int READ_ERRORS[] = {EIO, ENXIO, ETIMEDOUT, EAGAIN};
static const int COPY_ERRORS[] = {ENOMEM, EAGAIN, EEXIST, ENOENT, EFAULT};

static int is_injectable(int code)
{
    for (size_t i = 0; i < sizeof READ_ERRORS / sizeof READ_ERRORS[0]; i++)
        if (code == -READ_ERRORS[i])
            return 1;
    return code == -ENOMEM || code == LM_E_LOST_MAPPING;
}

/* (S3) for errors of `what`. */
static void check_cause(const struct thread *t, const struct lm_error *err,
                        const char *what)
{
    if (!is_injectable(err->code) || !injected_lately())
        fail(t, "%s: %s: %s (object %llu, chunk %llu)", what, err->what,
             lm_strerror(err->code), (unsigned long long)err->tag,
             (unsigned long long)err->chunk_idx);
}

static void finish(struct thread *t, lm_job *job, int give_up)
{
    struct lm_error err;
    while (!give_up && !lm_job_wait(job, 1000))
        ;
    if (lm_job_errors(job, &err, 1))
        check_cause(t, &err, "job");
    lm_job_close(job, 0);
}

/* ---- handles ----------------------------------------------------------------------------------- */

static lm_object *object_get(int thing)
{
    pthread_mutex_lock(&g_open.lock);
    lm_object *object = g_open.objects[thing];
    lm__object_retain(object);
    pthread_mutex_unlock(&g_open.lock);
    return object;
}

static struct handle *handle_new(struct thread *t, lm_object *object, int thing)
{
    struct lm_error err;
    struct handle *h = calloc(1, sizeof *h);
    CHECK(h);
    h->refs = 1;
    h->thing = thing;
    /* In huge pages where the system's pool has some, which is its administrator's choice. */
    struct lm_region_options options = {.is_writable = draw(t, 2) == 0,
                                        .page_bytes = draw(t, 4) ? 0 : 2u << 20};
    if (!options.is_writable && !options.page_bytes && draw(t, 2) == 0)
        options.budget = g_budget;
    int rc = lm_region_open(object, &options, &h->region, &err);
    if (options.page_bytes && (rc == LM_E_NO_HUGE_PAGES || rc == LM_E_NO_UFFD))
        rc = lm_region_open(object, NULL, &h->region, &err);
    if (rc != 0)
        fail(t, "open: %s: %s", err.what, lm_strerror(rc));
    return h;
}

static void handle_put(struct handle *h)
{
    struct lm_region_stats stats;
    if (!h || lm_sub_acq_rel(&h->refs, 1) != 1)
        return;
    lm_region_stats(h->region, &stats);
    lm_add_relaxed(&g_fills, stats.fills);
    lm_add_relaxed(&g_failures, stats.failures);
    lm_region_close(h->region);
    free(h);
}

/* Put another handle, or none, into a slot.  Returns the one that was there. */
static struct handle *slot_swap(int slot, struct handle *h)
{
    pthread_mutex_lock(&g_slots[slot].lock);
    struct handle *old = g_slots[slot].handle;
    g_slots[slot].handle = h;
    pthread_mutex_unlock(&g_slots[slot].lock);
    return old;
}

/* Some slot's handle, opened if need be. */
static struct handle *handle_get(struct thread *t)
{
    int slot = (int)draw(t, SLOTS), thing = (int)draw(t, OBJECTS);
    pthread_mutex_lock(&g_slots[slot].lock);
    struct handle *h = g_slots[slot].handle;
    if (h)
        lm_add_relaxed(&h->refs, 1);
    pthread_mutex_unlock(&g_slots[slot].lock);
    if (!h) {
        lm_object *object = object_get(thing);
        h = handle_new(t, object, thing);
        lm_object_close(object); /* the region holds it */
        lm_add_relaxed(&h->refs, 1);
        handle_put(slot_swap(slot, h));
    }
    return h;
}

static uint64_t thing_bytes(const struct handle *h)
{
    return g_things[h->thing].enc.object_bytes;
}

struct range {
    uint64_t offset, nbytes;
};

static struct range draw_range(struct thread *t, uint64_t object_bytes, uint64_t max)
{
    struct range r = {.offset = draw(t, object_bytes)};
    uint64_t left = object_bytes - r.offset;
    r.nbytes = 1 + draw(t, left < max ? left : max);
    return r;
}

/* ---- touching ------------------------------------------------------------------------------------ */

/* One operation on the memory, as numpy has them: many touches between two looks at errors. */
struct touches {
    struct handle *handle;
    int was_released;
    uint64_t over;
    uint64_t false_bytes;
};

static struct touches touches_begin(struct thread *t, struct handle *h)
{
    struct touches b = {.handle = h};
    b.was_released = lm_load_seq_cst(&h->is_released);
    /* As LazyArray does; or as who reads through a plain pointer, and may meet 0xFF bytes
     * that another thread's failure has put there. */
    b.over = draw(t, 2) ? lm_region_settle(h->region)
                        : lm_load_seq_cst(&h->region->failures_over);
    return b;
}

static void touch(struct thread *t, struct touches *b, uint64_t offset, int writes)
{
    uint8_t *byte = (uint8_t *)lm_region_addr(b->handle->region) + offset;
    uint8_t right = byte_at(b->handle->thing, offset);
    if (writes) {
        __atomic_store_n(byte, right, __ATOMIC_RELAXED);
        return;
    }
    uint8_t got = __atomic_load_n(byte, __ATOMIC_RELAXED);
    if (got != right && got != 0xFF) /* (S1) */
        fail(t, "object %d, offset %llu is %#x, not %#x", b->handle->thing,
             (unsigned long long)offset, got, right);
    b->false_bytes += got != right;
}

static void touches_end(struct thread *t, const struct touches *b)
{
    struct lm_error err;
    lm_region *r = b->handle->region;
    int has_failed = test_failures(r) != b->over;
    int has_error = lm_failure_take(lm_load_relaxed(&t->watched->tid), &err);
    if (b->false_bytes && !has_error && !has_failed) /* (S1) */
        fail(t, "object %d: %llu bytes of 0xFF, and no error", b->handle->thing,
             (unsigned long long)b->false_bytes);
    if (b->was_released && !has_error && !has_failed) /* (S2) */
        fail(t, "object %d: a released region was read without an error",
             b->handle->thing);
    int lost = lm_load_seq_cst(&r->lost);
    if (has_error && !(lost && err.code == lost))
        check_cause(t, &err, "touch"); /* (S3) */
    lm_add_relaxed(&g_unheard, b->false_bytes > 0 && !has_error);
}

static void touch_here_and_there(struct thread *t, struct handle *h)
{
    struct touches b = touches_begin(t, h);
    uint64_t near = draw(t, thing_bytes(h));
    for (uint64_t n = 1 + draw(t, BATCH_MAX); n > 0; n--) {
        uint64_t offset = draw(t, 2) ? draw(t, thing_bytes(h)) : near + draw(t, 20000);
        touch(t, &b, offset % thing_bytes(h), draw(t, 16) == 0);
    }
    touches_end(t, &b);
}

static void op_touch(struct thread *t)
{
    struct handle *h = handle_get(t);
    touch_here_and_there(t, h);
    handle_put(h);
}

static void op_scan(struct thread *t)
{
    struct handle *h = handle_get(t);
    struct range range = draw_range(t, thing_bytes(h), SCAN_BYTES);
    struct touches b = touches_begin(t, h);
    for (uint64_t i = 0; i < range.nbytes; i += 1 + draw(t, 512))
        touch(t, &b, range.offset + i, 0);
    touches_end(t, &b);
    handle_put(h);
}

/* ---- filling ahead, dropping ----------------------------------------------------------------------- */

static void op_prefetch(struct thread *t)
{
    struct handle *h = handle_get(t);
    struct range range = draw_range(t, thing_bytes(h), 16u << 20);
    uint64_t end = draw(t, 4);
    lm_job *job;
    CHECK_EQ(lm_region_prefetch(h->region, range.offset, range.nbytes, &job), 0);
    if (end == 0)
        lm_job_close(job, 1); /* left behind */
    else
        finish(t, job, end == 1);
    if (draw(t, 2))
        lm_region_fill_here(h->region, draw(t, thing_bytes(h)));
    touch_here_and_there(t, h);
    handle_put(h);
}

static void op_drop(struct thread *t)
{
    struct handle *h = handle_get(t);
    uint64_t unit = draw(t, 2) ? lm__region_page_bytes(h->region)
                               : lm_region_chunk_bytes(h->region);
    struct range range = draw_range(t, thing_bytes(h), unit * (1 + draw(t, 8)));
    uint64_t low = lm__round_down(range.offset, unit);
    uint64_t high = lm__round_up(range.offset + range.nbytes, unit);
    if (high > h->region->bytes)
        high = h->region->bytes;
    CHECK_EQ(
        madvise((uint8_t *)lm_region_addr(h->region) + low, high - low, MADV_DONTNEED),
        0);
    touch_here_and_there(t, h);
    handle_put(h);
}

static void op_evict(struct thread *t)
{
    struct handle *h = handle_get(t);
    uint64_t chunk_bytes = g_things[h->thing].enc.chunk_bytes;
    struct range range = draw_range(t, thing_bytes(h), chunk_bytes * (1 + draw(t, 16)));
    uint64_t evicted = lm_region_evict(h->region, range.offset, range.nbytes);
    CHECK(evicted <= range.nbytes);
    touch_here_and_there(t, h);
    handle_put(h);
}

static void op_look(struct thread *t)
{
    static uint8_t masks[THREADS][40u << 8];
    struct handle *h = handle_get(t);
    struct lm_region_stats stats;
    lm_region_stats(h->region, &stats);
    uint8_t *mask = masks[t->index];
    CHECK(stats.chunks_total <= sizeof masks[0]);
    uint64_t resident = lm_region_residency(h->region, 0, stats.chunks_total, mask);
    uint64_t marked = 0;
    for (uint64_t i = 0; i < stats.chunks_total; i++)
        marked += mask[i];
    if (marked != resident || stats.chunks_resident > stats.chunks_total)
        fail(t, "%llu chunks marked, %llu counted, %llu resident of %llu",
             (unsigned long long)marked, (unsigned long long)resident,
             (unsigned long long)stats.chunks_resident,
             (unsigned long long)stats.chunks_total);
    handle_put(h);
}

/* ---- lifetime ------------------------------------------------------------------------------------------ */

static void op_release(struct thread *t)
{
    struct handle *h = handle_get(t);
    lm_region_release(h->region);
    lm_store_seq_cst(&h->is_released, 1);
    touch_here_and_there(t, h); /* (S2) */
    handle_put(h);
}

static void op_replace(struct thread *t)
{
    int thing = (int)draw(t, OBJECTS);
    lm_object *object = object_get(thing);
    struct handle *h = handle_new(t, object, thing);
    lm_object_close(object);
    handle_put(slot_swap((int)draw(t, SLOTS), h));
}

/* The owner goes first: the memory lives on in a reference that is nobody's handle. */
static void op_orphan(struct thread *t)
{
    struct handle *h = handle_get(t);
    struct handle alone = {.refs = 1, .region = h->region, .thing = h->thing};
    alone.is_released = lm_load_seq_cst(&h->is_released);
    lm_region_retain(alone.region);
    handle_put(slot_swap((int)draw(t, SLOTS), NULL));
    handle_put(h);
    touch_here_and_there(t, &alone);
    lm_region_close(alone.region);
}

static int objects_open(struct thread *t, lm_store **store, lm_object **objects)
{
    struct lm_error err;
    struct lm_commit commit;
    int rc = lm_store_open(g_path, store, &commit, &err);
    if (rc != 0) {
        check_cause(t, &err, "store");
        return 0;
    }
    for (int i = 0; i < OBJECTS; i++) {
        const struct thing *g = &g_things[i];
        struct lm_object_spec spec = {.tag = (uint64_t)i,
                                      .object_bytes = g->enc.object_bytes,
                                      .chunk_bytes = g->enc.chunk_bytes,
                                      .shuffle_width = g->enc.shuffle_width,
                                      .root = g->written.root};
        CHECK_CALL(lm_object_open(*store, &spec, &objects[i], &err), err);
    }
    return 1;
}

static void objects_close(lm_store *store, lm_object **objects)
{
    for (int i = 0; i < OBJECTS; i++)
        lm_object_close(objects[i]);
    lm_store_close(store);
}

static void op_reopen(struct thread *t)
{
    lm_store *store, *old_store;
    lm_object *objects[OBJECTS], *old_objects[OBJECTS];
    if (!objects_open(t, &store, objects))
        return;
    pthread_mutex_lock(&g_open.lock);
    old_store = g_open.store;
    memcpy(old_objects, g_open.objects, sizeof old_objects);
    g_open.store = store;
    memcpy(g_open.objects, objects, sizeof objects);
    pthread_mutex_unlock(&g_open.lock);
    objects_close(old_store, old_objects);
}

/* ---- reading without a region ---------------------------------------------------------------------------- */

static void op_verify(struct thread *t)
{
    lm_object *object = object_get((int)draw(t, OBJECTS));
    lm_job *job;
    CHECK_EQ(lm_object_verify(object, &job), 0);
    finish(t, job, draw(t, 4) != 0);
    lm_object_close(object);
}

static void read_and_compare(struct thread *t, lm_object *object, int thing)
{
    struct range range = draw_range(t, g_things[thing].enc.object_bytes, SCAN_BYTES);
    struct lm_error err;
    lm_job *job;
    uint8_t *got = malloc(range.nbytes);
    CHECK(got);
    CHECK_EQ(lm_object_read(object, range.offset, range.nbytes, got, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    int has_error = lm_job_errors(job, &err, 1);
    if (has_error)
        check_cause(t, &err, "read");
    for (uint64_t i = 0; !has_error && i < range.nbytes; i += 1 + draw(t, 64))
        if (got[i] != byte_at(thing, range.offset + i))
            fail(t, "object %d, offset %llu was read wrong", thing,
                 (unsigned long long)(range.offset + i));
    lm_job_close(job, 0);
    free(got);
}

static void op_read(struct thread *t)
{
    int thing = (int)draw(t, OBJECTS);
    lm_object *object = object_get(thing);
    read_and_compare(t, object, thing);
    lm_object_close(object);
}

/* ---- failures ------------------------------------------------------------------------------------------------ */

static void inject(int point, int64_t count, int error)
{
    uint64_t linger_ns = ERRORS_LINGER_S * 1000000000ull;
    lm_store_seq_cst(&g_inject_until_ns,
                     error ? UINT64_MAX : watchdog_now_ns() + linger_ns);
    lm_inject(point, 0, count, error);
}

/* Let reads, or installs, fail for a while. */
static void op_inject(struct thread *t)
{
    int point = draw(t, 3) ? LM_INJECT_READ : LM_INJECT_UFFD_COPY;
    int error = point == LM_INJECT_READ
                    ? READ_ERRORS[draw(t, sizeof READ_ERRORS / sizeof(int))]
                    : COPY_ERRORS[draw(t, sizeof COPY_ERRORS / sizeof(int))];
    int64_t count = 1 + (int64_t)draw(t, 60);
    uint64_t touches = 1 + draw(t, 20);
    if (pthread_mutex_trylock(&g_inject_lock) != 0)
        return; /* one at a time */
    inject(point, count, error);
    for (; touches > 0; touches--)
        op_touch(t);
    inject(point, 0, 0);
    pthread_mutex_unlock(&g_inject_lock);
}

#include "writes.h"

/* ---- fork ---------------------------------------------------------------------------------------------------------- */

#define HELD 3

/* What a child can use without the locks that other threads may have held. */
struct held {
    struct handle *handles[HELD];
    lm_object *object;
    int thing;
};

static void fork_and_wait(struct thread *t, struct held *held);

/* In the child, which has this thread alone. */
static int child_main(struct thread *t, struct held *held)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    lm_store_relaxed(&t->watched->tid, test_tid());
    t->depth++;
    for (int point = 0; point < LM_INJECT_POINTS; point++)
        lm_inject(point, 0, 0, 0);
    lm_store_seq_cst(&g_inject_until_ns, 0); /* (S3): no errors here but of releases */
    for (int i = 0; i < HELD; i++) {
        lm_region *r = held->handles[i]->region;
        if (lm_load_seq_cst(&r->failures_over) != test_failures(r)) /* (S4) */
            fail(t, "forked while a failure was under way");
    }
    for (int i = 0; i < HELD; i++)
        touch_here_and_there(t, held->handles[i]);
    struct handle *own = handle_new(t, held->object, held->thing);
    struct range range = draw_range(t, thing_bytes(own), 1u << 20);
    lm_job *job;
    CHECK_EQ(lm_region_prefetch(own->region, range.offset, range.nbytes, &job), 0);
    finish(t, job, draw(t, 2) == 0);
    touch_here_and_there(t, own);
    if (draw(t, 4) == 0)
        read_and_compare(t, held->object, held->thing);
    if (t->depth < FORK_DEPTH_MAX && draw(t, 4) == 0)
        fork_and_wait(t, held);
    lm_region_release(own->region);
    lm_store_seq_cst(&own->is_released, 1);
    touch_here_and_there(t, own);
    touch_here_and_there(t, held->handles[0]);
    handle_put(own);
    w_in_child(t);
    return TEST_OK;
}

static void fork_and_wait(struct thread *t, struct held *held)
{
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(child_main(t, held));
    lm_store_relaxed(&t->watched->child, child);
    CHECK_EQ(waitpid(child, &status, 0), child);
    lm_store_relaxed(&t->watched->child, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != TEST_OK)
        fail(t, "a child ended with status %#x", status);
}

static void op_fork(struct thread *t)
{
    struct held held = {.thing = (int)draw(t, OBJECTS)};
    if (TEST_IS_SANITIZED) /* their allocators do not survive it */
        return;
    for (int i = 0; i < HELD; i++)
        held.handles[i] = handle_get(t);
    held.object = object_get(held.thing);
    w_fork_begin();
    fork_and_wait(t, &held);
    w_fork_end();
    lm_object_close(held.object);
    for (int i = 0; i < HELD; i++)
        handle_put(held.handles[i]);
}

/* ---- the run ------------------------------------------------------------------------------------------------------------ */

/* All that a thread may do.  What the engine learns to do gets a line here and a function
 * above. */
/* Another limit, and now and then a region that it does not bind any more, or from now on. */
static void op_limit(struct thread *t)
{
    struct handle *h = handle_get(t);
    lm_budget_set_limit(g_budget, LIMIT_MIN + draw(t, 2 * LIMIT_MIN));
    if (h && !h->region->is_writable && draw(t, 4) == 0)
        CHECK(lm_region_set_budget(h->region, draw(t, 2) ? g_budget : NULL) == 0);
    handle_put(h);
}

static const struct op {
    const char *name;
    unsigned weight;
    void (*run)(struct thread *t);
} OPS[] = {
    {"touch", 400, op_touch},      {"scan", 100, op_scan},
    {"prefetch", 60, op_prefetch}, {"drop", 120, op_drop},
    {"evict", 120, op_evict},      {"look", 20, op_look},
    {"release", 6, op_release},    {"replace", 60, op_replace},
    {"orphan", 20, op_orphan},     {"reopen", 10, op_reopen},
    {"verify", 6, op_verify},      {"read", 30, op_read},
    {"inject", 2, op_inject},      {"fork", 8, op_fork},
    {"write", 200, op_write},      {"read-written", 60, op_read_written},
    {"snapshot", 20, op_snapshot}, {"evict-written", 40, op_evict_written},
    {"restore", 4, op_restore},    {"limit", 10, op_limit},
};
#define OP_COUNT (sizeof OPS / sizeof OPS[0])

static struct watched g_watched[THREADS];
static uint64_t g_counts[THREADS][OP_COUNT];

static const struct op *draw_op(struct thread *t)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < OP_COUNT; i++)
        sum += OPS[i].weight;
    uint64_t at = draw(t, sum);
    size_t i = 0;
    while (at >= OPS[i].weight)
        at -= OPS[i++].weight;
    return &OPS[i];
}

static struct thread g_threads[THREADS];

static void *run(void *arg)
{
    struct thread *t = arg;
    lm_store_relaxed(&t->watched->tid, test_tid());
    for (; !lm_load_seq_cst(&g_stop); t->op_idx++) {
        t->random = mix(g_seed ^ mix((uint64_t)t->index << 56 ^ t->op_idx)) | 1;
        const struct op *op = draw_op(t);
        watchdog_note(t->watched, op->name);
        op->run(t);
        g_counts[t->index][op - OPS]++;
    }
    lm_store_release(&t->watched->doing, NULL);
    return NULL;
}

/* Close everything, and wait until what is in flight has ended. */
static void settle(void)
{
    struct lm_pager_stats stats;
    struct watched waiting = {0};
    for (int i = 0; i < SLOTS; i++)
        handle_put(slot_swap(i, NULL));
    w_close();
    watchdog_note(&waiting, "waiting for closed regions");
    do {
        usleep(1000);
        watchdog_look(&waiting, 1);
        lm_pager_stats(&stats);
    } while (stats.regions_live > 0);
}

static void run_for(double seconds)
{
    uint64_t until = watchdog_now_ns() + (uint64_t)(seconds * 1e9);
    pthread_t ids[THREADS];
    lm_store_seq_cst(&g_stop, 0);
    w_open();
    for (int i = 0; i < THREADS; i++) {
        watchdog_note(&g_watched[i], "starting");
        ids[i] = test_thread(run, &g_threads[i]);
    }
    for (int is_running = 1; is_running;) {
        usleep(1000000 / WATCHDOG_POLLS);
        watchdog_look(g_watched, THREADS);
        if (watchdog_now_ns() >= until)
            lm_store_seq_cst(&g_stop, 1);
        is_running = 0;
        for (int i = 0; i < THREADS; i++)
            is_running |= lm_load_acquire(&g_watched[i].doing) != NULL;
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(ids[i], NULL);
    lm_store_seq_cst(&g_inject_until_ns, 0);
    w_replace(&g_threads[0]);
    settle();
}

static void write_store(void)
{
    struct lm_error err;
    lm_writer *writer;
    g_path = test_path("stress.lzm");
    CHECK_CALL(lm_writer_create(g_path, &writer, &err), err);
    for (int i = 0; i < OBJECTS; i++) {
        struct lm_encoding *enc = &g_things[i].enc;
        lm_writer_object *object;
        lm_job *job;
        if (enc->chunk_bytes < lm__page_bytes())
            enc->chunk_bytes = (uint32_t)lm__page_bytes();
        uint8_t *data = malloc(enc->object_bytes);
        CHECK(data);
        for (uint64_t at = 0; at < enc->object_bytes; at++)
            data[at] = byte_at(i, at);
        CHECK_CALL(lm_writer_begin(writer, enc, &object, &err), err);
        CHECK_CALL(lm_writer_write(object, 0, data, enc->object_bytes, &job, &err),
                   err);
        test_finish(job);
        CHECK_CALL(lm_writer_end(object, &g_things[i].written, &err), err);
        free(data);
    }
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &err), err);
    lm_writer_close(writer);
}

static void print_totals(const struct holdings *before, const struct holdings *now)
{
    struct lm_pager_stats s;
    struct lm_budget_stats budget;
    lm_pager_stats(&s);
    lm_budget_stats(g_budget, &budget);
    printf("stress:");
    for (size_t i = 0; i < OP_COUNT; i++) {
        uint64_t sum = 0;
        for (int t = 0; t < THREADS; t++)
            sum += g_counts[t][i];
        printf(" %s %llu", OPS[i].name, (unsigned long long)sum);
    }
    printf("; faults %llu fills %llu failures %llu unheard %llu eexist %llu "
           "eagain %llu+%llu enoent %llu enomem %llu refused %llu",
           (unsigned long long)s.events, (unsigned long long)lm_load_relaxed(&g_fills),
           (unsigned long long)lm_load_relaxed(&g_failures),
           (unsigned long long)lm_load_relaxed(&g_unheard),
           (unsigned long long)s.eexist, (unsigned long long)s.eagain_partial,
           (unsigned long long)s.eagain, (unsigned long long)s.enoent,
           (unsigned long long)s.enomem, (unsigned long long)s.refused);
    printf("; snapshots %llu exact %llu failed %llu restored %llu replaced %llu "
           "chunks %llu; evicted %llu, spilled %llu",
           (unsigned long long)lm_load_relaxed(&g_w.snapshots),
           (unsigned long long)lm_load_relaxed(&g_w.exact),
           (unsigned long long)lm_load_relaxed(&g_w.failed),
           (unsigned long long)lm_load_relaxed(&g_w.restored),
           (unsigned long long)lm_load_relaxed(&g_w.replaced),
           (unsigned long long)lm_load_relaxed(&g_w.frozen),
           (unsigned long long)budget.chunks_evicted,
           (unsigned long long)lm_load_relaxed(&g_w.spilled));
    printf(
        "; fds %ld -> %ld threads %ld -> %ld mappings %ld -> %ld rss %ld -> %ld KiB\n",
        before->fds, now->fds, before->threads, now->threads, before->mappings,
        now->mappings, before->rss_bytes >> 10, now->rss_bytes >> 10);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : SECONDS;
    double warm_up = seconds / 2 < WARM_UP_MAX_S ? seconds / 2 : WARM_UP_MAX_S;
    g_seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL);
    printf("stress: seed %llu, %g s\n", (unsigned long long)g_seed, seconds);
    fflush(stdout); /* a child must not print it again */
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    write_store();
    for (int i = 0; i < SLOTS; i++)
        CHECK_EQ(pthread_mutex_init(&g_slots[i].lock, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        g_threads[i] = (struct thread){.index = i, .watched = &g_watched[i]};
    CHECK(objects_open(&g_threads[0], &g_open.store, g_open.objects));

    CHECK(lm_budget_open(LIMIT_MIN, NULL, &g_budget) == 0);
    run_for(warm_up);
    struct holdings before = leaks_look();
    run_for(seconds - warm_up);
    struct holdings now = leaks_check(&before);
    print_totals(&before, &now);

    lm_budget_close(g_budget);
    objects_close(g_open.store, g_open.objects);
    unlink(g_path);
    free(g_path);
    return TEST_OK;
}
