/* SPDX-License-Identifier: BSD-3-Clause
 * Is a file that was cut, extended or damaged anywhere opened in its last state, or refused?
 */
#define _GNU_SOURCE
#include "test.h"

static int open_code(const char *path, struct lm_commit *commit)
{
    lm_store *store;
    struct lm_error err;
    int rc = lm_store_open(path, &store, commit, &err);
    if (rc == 0) {
        char *manifest = malloc(commit->manifest_bytes + 1);
        CHECK(manifest);
        rc = lm_store_manifest(store, manifest, &err);
        free(manifest);
        lm_store_close(store);
    } else {
        CHECK_EQ(err.code, rc);
        CHECK(err.what[0]);
    }
    return rc;
}

static void test_each_cut(const char *path, const uint8_t *file, uint64_t bytes)
{
    struct lm_commit commit;
    for (uint64_t n = 0; n < bytes; n += n < 200 || n > bytes - 200 ? 1 : 97) {
        test_file_write(path, file, n);
        int rc = open_code(path, &commit);
        CHECK(n < 64 ? rc == LM_E_MAGIC || rc == LM_E_TRUNCATED : rc == LM_E_NO_COMMIT);
    }
}

static void test_torn_tail(const char *path, const uint8_t *file, uint64_t bytes)
{
    struct lm_commit commit;
    uint8_t *torn = calloc(1, bytes + (3 << 20));
    uint64_t state = 5;
    CHECK(torn);
    memcpy(torn, file, bytes);
    for (uint64_t i = bytes; i < bytes + (3 << 20); i++)
        torn[i] = (uint8_t)test_random(&state);
    static const uint64_t tails[] = {1,
                                     63,
                                     64,
                                     65,
                                     127,
                                     128,
                                     129,
                                     4096,
                                     (1 << 20) - 1,
                                     1 << 20,
                                     (1 << 20) + 1,
                                     (2 << 20) + 77,
                                     3 << 20};
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        test_file_write(path, torn, bytes + tails[i]);
        CHECK_EQ(open_code(path, &commit), 0);
        CHECK_EQ(commit.torn_bytes, tails[i]);
        CHECK_EQ(commit.offset, bytes - LM_RECORD_BYTES);
    }
    /* A copy of the record, and of another file's, are data. */
    memcpy(torn + bytes, file + bytes - LM_RECORD_BYTES, LM_RECORD_BYTES);
    test_file_write(path, torn, bytes + LM_RECORD_BYTES);
    CHECK_EQ(open_code(path, &commit), 0);
    CHECK_EQ(commit.torn_bytes, LM_RECORD_BYTES);
    free(torn);
}

/* Any byte that opening looks at, damaged, is noticed. */
static void test_each_damaged_byte(const char *path, const uint8_t *file,
                                   uint64_t bytes)
{
    struct lm_commit commit;
    uint8_t *bad = malloc(bytes);
    CHECK(bad);
    memcpy(bad, file, bytes);
    test_file_write(path, file, bytes);
    CHECK_EQ(open_code(path, &commit), 0);
    for (uint64_t i = 0; i < bytes; i++) {
        if (i == 64)
            i = bytes - LM_RECORD_BYTES;
        bad[i] ^= 0x10;
        test_file_write(path, bad, bytes);
        CHECK(open_code(path, &commit) < LM_E_MAGIC + 1);
        bad[i] ^= 0x10;
    }
    free(bad);
}

static void test_not_a_file(void)
{
    struct lm_commit commit;
    CHECK_EQ(open_code("/", &commit), -EISDIR);
    CHECK_EQ(open_code("/nowhere/at/all", &commit), -ENOENT);
    CHECK_EQ(open_code("/dev/null", &commit), LM_E_MAGIC);
}

int main(void)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = 20000, .chunk_bytes = 4096};
    uint64_t bytes;
    if (test_store_make(&t, enc, 3) != 0)
        return TEST_SKIP;
    uint8_t *file = test_file_read(t.path, &bytes);
    test_each_cut(t.path, file, bytes);
    test_torn_tail(t.path, file, bytes);
    test_each_damaged_byte(t.path, file, bytes);
    test_not_a_file();
    free(file);
    test_store_close(&t);
    return TEST_OK;
}
