/* SPDX-License-Identifier: BSD-3-Clause
 * test.h - what the engine's tests share: checks, random data, a store to read from.
 *
 * A test is one main().  It returns TEST_OK, or TEST_SKIP where the machine lacks something;
 * a check that fails prints its place and ends the process with TEST_FAILED.
 */
#ifndef LM_TEST_H
#define LM_TEST_H
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

enum { TEST_OK = 0, TEST_FAILED = 1, TEST_SKIP = 77 };

#define UNUSED __attribute__((unused))

/* ---- checks ---------------------------------------------------------------------------- */

#define CHECK(condition)                                                               \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
            _exit(TEST_FAILED);                                                        \
        }                                                                              \
    } while (0)

/* Both as integers; they are printed when they differ. */
#define CHECK_EQ(got, wanted)                                                          \
    do {                                                                               \
        long long got_ = (long long)(got), wanted_ = (long long)(wanted);              \
        if (got_ != wanted_) {                                                         \
            fprintf(stderr, "%s:%d: failed: %s is %lld, not %lld\n", __FILE__,         \
                    __LINE__, #got, got_, wanted_);                                    \
            _exit(TEST_FAILED);                                                        \
        }                                                                              \
    } while (0)

/* A call that fills `err`; its contents are printed where it failed. */
#define CHECK_CALL(call, err)                                                          \
    do {                                                                               \
        int rc_ = (call);                                                              \
        if (rc_ != 0) {                                                                \
            fprintf(stderr, "%s:%d: failed: %s: %s: %s\n", __FILE__, __LINE__, #call,  \
                    (err).what, lm_strerror(rc_));                                     \
            _exit(TEST_FAILED);                                                        \
        }                                                                              \
    } while (0)

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEST_IS_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEST_IS_SANITIZED 1
#endif
#ifndef TEST_IS_SANITIZED
#define TEST_IS_SANITIZED 0
#endif

static inline int test_skip(const char *why)
{
    fprintf(stderr, "skipped: %s\n", why);
    return TEST_SKIP;
}

/* ---- data ------------------------------------------------------------------------------ */

/* xorshift64* (Vigna, An experimental exploration of Marsaglia's xorshift generators, 2016).
 * The state is never zero. */
static inline uint64_t test_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Dull;
}

/* Runs of zeros, of numbers that compress, and of noise, each a few KiB long. */
UNUSED static void test_fill(uint8_t *data, size_t bytes, uint64_t seed)
{
    uint64_t state = seed * 2 + 1;
    for (size_t i = 0; i < bytes;) {
        size_t run = 1 + test_random(&state) % 12288,
               end = run < bytes - i ? i + run : bytes;
        unsigned kind = test_random(&state) % 4;
        for (; i < end; i++)
            data[i] = kind == 0   ? 0
                      : kind == 1 ? (uint8_t)(test_random(&state) >> 32)
                                  : (uint8_t)((i >> 4) + (i >> 12) * 7);
    }
}

/* ---- threads ----------------------------------------------------------------------------- */

static inline pthread_t test_thread(void *(*run)(void *), void *arg)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, run, arg), 0);
    return thread;
}

static inline int32_t test_tid(void) { return (int32_t)syscall(SYS_gettid); }

/* Run `body` in a forked child; what it returns is the child's exit code, and ours. */
UNUSED static int test_in_child(int (*body)(void *), void *arg)
{
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* if the parent runs into its time limit */
        _exit(body(arg));
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : TEST_FAILED;
}

/* Run this program in another process, with an argument: the kernel's features are asked for
 * once. */
UNUSED static int test_run_as(const char *how)
{
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/proc/self/exe", "test", how, NULL);
        _exit(TEST_FAILED);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : TEST_FAILED;
}

/* ---- codecs -------------------------------------------------------------------------------- */

/* The codecs that LAZYMEM_TEST_LZ4 and LAZYMEM_TEST_ZSTD name, else the system's.  The
 * shared objects of Python packages want the symbols of libpython: LAZYMEM_TEST_PYTHON. */
UNUSED static int test_codecs(void)
{
    static int is_loaded;
    struct lm_error err;
    const char *lz4 = getenv("LAZYMEM_TEST_LZ4"), *zstd = getenv("LAZYMEM_TEST_ZSTD");
    const char *python = getenv("LAZYMEM_TEST_PYTHON");
    if (is_loaded)
        return 0;
    is_loaded = (lz4 && zstd && (!python || dlopen(python, RTLD_NOW | RTLD_GLOBAL)) &&
                 lm_codecs_load(lz4, zstd, &err) == 0) ||
                lm_codecs_load(NULL, NULL, &err) == 0;
    return is_loaded ? 0 : LM_E_CODEC;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* The name of a file that does not exist yet, in TMPDIR. */
static inline char *test_path(const char *name)
{
    static _Atomic int count;
    const char *folder = getenv("TMPDIR");
    char *path;
    CHECK(asprintf(&path, "%s/lazymem-%d-%d-%s", folder ? folder : "/tmp",
                   (int)getpid(), lm_add_relaxed(&count, 1), name) > 0);
    return path;
}

UNUSED static uint8_t *test_file_read(const char *path, uint64_t *bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(lm__io_file_bytes(fd, bytes), 0);
    uint8_t *data = malloc(*bytes + 1);
    CHECK(data);
    CHECK_EQ(lm__io_pread(fd, 0, *bytes, data, 0), 0);
    close(fd);
    return data;
}

UNUSED static void test_file_write(const char *path, const void *data, uint64_t bytes)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(lm__io_pwrite(fd, 0, bytes, data), 0);
    close(fd);
}

/* Turn over the bits of one byte of a file. */
UNUSED static void test_file_damage(const char *path, uint64_t offset)
{
    uint8_t byte;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(lm__io_pread(fd, offset, 1, &byte, 0), 0);
    byte ^= 0xFF;
    CHECK_EQ(lm__io_pwrite(fd, offset, 1, &byte), 0);
    close(fd);
}

/* ---- stores ------------------------------------------------------------------------------------ */

UNUSED static void test_finish(lm_job *job)
{
    struct lm_error err;
    if (!job)
        return;
    while (!lm_job_wait(job, 1000))
        ;
    if (lm_job_errors(job, &err, 1))
        CHECK_CALL(err.code, err);
    lm_job_close(job, 0);
}

/* A store of one object, whose bytes are `data`. */
struct test_store {
    char *path;
    struct lm_encoding enc;
    uint8_t *data;
    struct lm_written written;
    lm_store *store;
    lm_object *object;
};

UNUSED static void test_store_open(struct test_store *t)
{
    struct lm_error err;
    struct lm_commit commit;
    struct lm_object_spec spec = {
        .tag = 7,
        .object_bytes = t->enc.object_bytes,
        .chunk_bytes = t->enc.chunk_bytes,
        .shuffle_width = t->enc.shuffle_width,
        .root = t->written.root,
    };
    CHECK_CALL(lm_store_open(t->path, &t->store, &commit, &err), err);
    CHECK_CALL(lm_object_open(t->store, &spec, &t->object, &err), err);
}

UNUSED static void test_store_write(struct test_store *t)
{
    struct lm_error err;
    lm_writer *writer;
    lm_writer_object *object;
    lm_job *job;
    t->path = test_path("store.lzm");
    CHECK_CALL(lm_writer_create(t->path, &writer, &err), err);
    CHECK_CALL(lm_writer_begin(writer, &t->enc, &object, &err), err);
    CHECK_CALL(lm_writer_write(object, 0, t->data, t->enc.object_bytes, &job, &err),
               err);
    test_finish(job);
    CHECK_CALL(lm_writer_end(object, &t->written, &err), err);
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &err), err);
    lm_writer_close(writer);
}

/* A store of random data.  0, or TEST_SKIP. */
UNUSED static int test_store_make(struct test_store *t, struct lm_encoding enc,
                                  uint64_t seed)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    *t = (struct test_store){.enc = enc, .data = malloc(enc.object_bytes)};
    CHECK(t->data);
    test_fill(t->data, enc.object_bytes, seed);
    test_store_write(t);
    test_store_open(t);
    return 0;
}

UNUSED static void test_store_close(struct test_store *t)
{
    if (t->object)
        lm_object_close(t->object);
    if (t->store)
        lm_store_close(t->store);
    unlink(t->path);
    free(t->path);
    free(t->data);
}

/* The index entry of a chunk. */
UNUSED static struct lm__entry test_entry(struct test_store *t, uint64_t chunk_idx)
{
    struct lm__scratch scratch = lm__scratch_take();
    struct lm__entry entry;
    struct lm_error err;
    CHECK_CALL(lm__index_lookup(&t->object->base->index, &t->store->source, chunk_idx,
                                &scratch, &entry, &err),
               err);
    lm__scratch_give(&scratch);
    return entry;
}

/* Damage a chunk's payload.  The chunk must have one. */
UNUSED static void test_store_damage(struct test_store *t, uint64_t chunk_idx)
{
    struct lm__entry entry = test_entry(t, chunk_idx);
    CHECK(entry.stored_bytes > 0);
    test_file_damage(t->path, entry.offset + entry.stored_bytes / 2);
}

/* ---- regions -------------------------------------------------------------------------------------- */

/* A region on the store's object.  0, or TEST_SKIP. */
/* Without readahead: tests touch chunks in order, and hold what fills them; see ahead.c. */
UNUSED static int test_region_open(struct test_store *t, lm_region **out)
{
    struct lm_error err;
    lm_pager_start(); /* where that fails, opening a region says so */
    int rc = lm_region_open(t->object, NULL, out, &err);
    if (rc == LM_E_NO_UFFD)
        return test_skip("no userfaultfd");
    CHECK_CALL(rc, err);
    lm_region_advise(*out, LM_ADVICE_RANDOM);
    return 0;
}

/* What lm_region_failures() shows as begun, with the order between threads that C wants. */
UNUSED static uint64_t test_failures(lm_region *region)
{
    return lm_load_seq_cst(&region->failures);
}

/* Wait until closed regions are gone: a handler may hold one a moment longer. */
UNUSED static void test_regions_gone(void)
{
    struct lm_pager_stats stats;
    do {
        sched_yield();
        lm_pager_stats(&stats);
    } while (stats.regions_live > 0);
}

/* memcmp() that the checks of a compiler can't turn into fewer reads than it says. */
UNUSED static int test_same(const volatile uint8_t *served, const uint8_t *wanted,
                            size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (served[i] != wanted[i])
            return 0;
    return 1;
}

#endif
