/* SPDX-License-Identifier: BSD-3-Clause
 * Do holes and copies leave every state that is in use as it was?
 */
#define _GNU_SOURCE
#include <sys/stat.h>

#include "test.h"

#define CHUNKS     40
#define CHUNK      8192
#define STATES_MAX 8

static struct lm_error g_err;

/* States of one object, each its bytes and its root. */
struct state {
    uint8_t bytes[CHUNKS * CHUNK];
    struct lm_root root;
    struct lm_commit commit;
};

static struct {
    char *path;
    struct lm_encoding enc;
    lm_store *store;
    lm_writer *writer;
    struct state states[STATES_MAX];
    int count;
} g;

static lm_object *object_open(lm_store *store, const struct state *s)
{
    struct lm_object_spec spec = {.object_bytes = sizeof s->bytes,
                                  .chunk_bytes = CHUNK,
                                  .shuffle_width = g.enc.shuffle_width,
                                  .root = s->root};
    lm_object *object;
    CHECK_CALL(lm_object_open(store, &spec, &object, &g_err), g_err);
    return object;
}

static int is_right_in(lm_store *store, const struct state *s)
{
    static uint8_t found[CHUNKS * CHUNK];
    lm_object *object = object_open(store, s);
    lm_job *job;
    CHECK_EQ(lm_object_read(object, 0, sizeof found, found, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    int is_right = lm_job_errors(job, &g_err, 1) == 0 &&
                   memcmp(found, s->bytes, sizeof found) == 0;
    lm_job_close(job, 0);
    lm_object_close(object);
    return is_right;
}

/* The next state: whole objects, of which most chunks are those of the state before. */
static void add_state(void)
{
    struct state *s = &g.states[g.count];
    lm_writer_object *object;
    lm_job *job;
    struct lm_written written;
    if (g.count > 0)
        memcpy(s->bytes, g.states[g.count - 1].bytes, sizeof s->bytes);
    for (int i = 0; i < (g.count ? 9 : CHUNKS); i++)
        test_fill(s->bytes + (g.count ? (i * 5 + g.count) % CHUNKS : i) * CHUNK, CHUNK,
                  (uint64_t)(g.count * 100 + i));
    memset(s->bytes + (size_t)(g.count + 3) * CHUNK, 0, CHUNK);
    CHECK_CALL(lm_writer_begin(g.writer, &g.enc, &object, &g_err), g_err);
    CHECK_CALL(lm_writer_write(object, 0, s->bytes, sizeof s->bytes, &job, &g_err),
               g_err);
    test_finish(job);
    CHECK_CALL(lm_writer_end(object, &written, &g_err), g_err);
    s->root = written.root;
    CHECK_CALL(lm_writer_commit(g.writer, "{}", 2, &s->commit, &g_err), g_err);
    g.count++;
}

static void store_make(void)
{
    lm_writer *writer;
    struct lm_commit commit;
    g.enc = (struct lm_encoding){.object_bytes = CHUNKS * CHUNK,
                                 .chunk_bytes = CHUNK,
                                 .codec = LM_CODEC_LZ4,
                                 .shuffle_width = 4,
                                 .level = 1};
    g.count = 0;
    g.path = test_path("store.lzm");
    CHECK_CALL(lm_writer_create(g.path, &writer, &g_err), g_err);
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &g_err), g_err);
    lm_writer_close(writer);
    CHECK_CALL(lm_store_open_write(g.path, &g.store, &commit, &g_err), g_err);
    CHECK_CALL(lm_writer_open(g.store, &g.writer, &g_err), g_err);
    for (int i = 0; i < 6; i++)
        add_state();
}

static void store_close(void)
{
    lm_writer_close(g.writer);
    lm_store_close(g.store);
    unlink(g.path);
    free(g.path);
}

static void keep(lm_prune *p, uint64_t record_offset)
{
    lm_store *store;
    struct lm_commit commit;
    CHECK_CALL(lm_prune_open(p, record_offset, &store, &commit, &g_err), g_err);
    for (int i = 0; i < g.count; i++)
        if (g.states[i].commit.offset == record_offset) {
            lm_object *object = object_open(store, &g.states[i]);
            CHECK_CALL(lm_prune_keep(p, object, NULL, &g_err), g_err);
            lm_object_close(object);
        }
    lm_store_close(store);
}

static uint64_t prune(const int *kept, int count)
{
    lm_prune *p;
    uint64_t freed;
    CHECK_CALL(lm_prune_begin(g.writer, &p, &g_err), g_err);
    for (int i = 0; i < count; i++)
        keep(p, g.states[kept[i]].commit.offset);
    for (uint64_t at = 0; (at = lm_prune_reader(p, at)) != 0; at++)
        keep(p, at);
    CHECK_CALL(lm_prune_end(p, 1, &freed, &g_err), g_err);
    return freed;
}

static void test_what_is_kept_stays(void)
{
    store_make();
    const int all[] = {0, 1, 2, 3, 4, 5}, some[] = {2, 5};
    CHECK_EQ(prune(all, 6), 0);
    for (int i = 0; i < 6; i++)
        CHECK(is_right_in(g.store, &g.states[i]));
    CHECK(prune(some, 2) > 0);
    CHECK_EQ(prune(some, 2), 0);
    CHECK(is_right_in(g.store, &g.states[2]));
    CHECK(is_right_in(g.store, &g.states[5]));
    CHECK(!is_right_in(g.store, &g.states[0]));
    add_state(); /* repeats of what is gone are no repeats */
    CHECK(is_right_in(g.store, &g.states[6]));
    store_close();
}

/* Another process reads a state that nobody lists any more. */
static void test_a_reader_is_unharmed(void)
{
    int ready[2], go[2];
    char byte;
    store_make();
    CHECK_EQ(pipe(ready) + pipe(go), 0);
    pid_t pid = fork();
    if (pid == 0) {
        lm_store *store;
        struct lm_commit commit;
        CHECK_CALL(lm_store_open_at(g.store, g.states[1].commit.offset, &store, &commit,
                                    &g_err),
                   g_err);
        CHECK_EQ(write(ready[1], "r", 1), 1);
        CHECK_EQ(read(go[0], &byte, 1), 1);
        CHECK(is_right_in(store, &g.states[1]));
        lm_store_close(store);
        _exit(0);
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    const int last[] = {5};
    CHECK(prune(last, 1) > 0);
    CHECK(is_right_in(g.store, &g.states[1]));
    CHECK_EQ(write(go[1], "g", 1), 1);
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK(prune(last, 1) > 0); /* it is gone by now */
    CHECK(!is_right_in(g.store, &g.states[1]));
    CHECK(is_right_in(g.store, &g.states[5]));
    store_close();
}

static void test_a_copy_is_the_same(int is_encoded_anew)
{
    lm_writer *writer;
    lm_store *store;
    struct lm_commit commit;
    struct lm_encoding other = {.object_bytes = CHUNKS * CHUNK,
                                .chunk_bytes = CHUNK,
                                .codec = LM_CODEC_ZSTD,
                                .shuffle_width = 4,
                                .level = 1};
    struct state copies[STATES_MAX];
    char *path;
    store_make();
    memcpy(copies, g.states, sizeof copies);
    path = test_path("copy.lzm");
    CHECK_CALL(lm_writer_create(path, &writer, &g_err), g_err);
    for (int i = 0; i < g.count; i++) {
        lm_object *now = object_open(g.store, &g.states[i]);
        lm_object *before = i ? object_open(g.store, &g.states[i - 1]) : NULL;
        lm_copy *copy;
        lm_job *job;
        struct lm_written written;
        CHECK_CALL(lm_copy_begin(writer, now, before, i ? &copies[i - 1].root : NULL,
                                 is_encoded_anew ? &other : NULL, &copy, &g_err),
                   g_err);
        CHECK_EQ(lm_copy_write(copy, &job), 0);
        test_finish(job);
        CHECK_CALL(lm_copy_end(copy, &written, &g_err), g_err);
        CHECK(i == 0 || written.chunks_total < CHUNKS);
        copies[i].root = written.root;
        CHECK_CALL(lm_writer_commit(writer, "{}", 2, &copies[i].commit, &g_err), g_err);
        lm_object_close(now);
        if (before)
            lm_object_close(before);
    }
    lm_writer_close(writer);
    CHECK_CALL(lm_store_open(path, &store, &commit, &g_err), g_err);
    for (int i = 0; i < g.count; i++)
        CHECK(is_right_in(store, &copies[i]));
    lm_store_close(store);
    unlink(path);
    free(path);
    store_close();
}

int main(void)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    test_what_is_kept_stays();
    if (!TEST_IS_SANITIZED) /* see fork.c */
        test_a_reader_is_unharmed();
    test_a_copy_is_the_same(0);
    test_a_copy_is_the_same(1);
    return TEST_OK;
}
