/* SPDX-License-Identifier: BSD-3-Clause
 * Does a budget count right, and does the spill file give its space back?
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <sys/stat.h>

#include "test.h"
#include "writable.h"

#define LIMIT ((uint64_t)2 << 20)

static struct array *const g_data = &g.arrays[0], *const g_zero = &g.arrays[1];
static lm_budget *g_budget;

static void snapshot_all(void)
{
    struct lm_written written[2];
    snapshot(written);
}

static struct lm_budget_stats counts(void)
{
    struct lm_budget_stats stats;
    lm_budget_stats(g_budget, &stats);
    return stats;
}

static uint64_t resident_bytes(const struct array *a)
{
    struct lm_region_stats stats;
    lm_region_stats(a->region, &stats);
    return stats.bytes_resident;
}

/* What both arrays have is what is charged, and no more than the limit. */
static void check_charges(void)
{
    uint64_t used = counts().used_bytes;
    CHECK(used <= LIMIT);
    CHECK_EQ(used, resident_bytes(g_data) + resident_bytes(g_zero));
}

static void open_both(void)
{
    struct lm_region_options options = {.is_tracked = 1, .budget = g_budget};
    array_open(g_data, options);
    array_open(g_zero, options);
}

static void test_reading_is_charged_and_dropping_is_not(void)
{
    memory_is_right(g_data);
    memory_is_right(g_zero);
    check_charges();
    CHECK(counts().chunks_evicted > 0);
    lm_region_evict(g_data->region, 0, g_data->enc.object_bytes);
    check_charges();
    lm_region_release(g_zero->region);
    CHECK_EQ(counts().used_bytes, resident_bytes(g_data));
    array_close(g_data);
    array_close(g_zero);
    CHECK_EQ(counts().used_bytes, 0);
    open_both();
}

/* The only file without a name that is open here; 0 bytes where there is none. */
static uint64_t spill_file_bytes(void)
{
    uint64_t bytes = 0;
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder);
    for (struct dirent *e; (e = readdir(folder));) {
        struct stat st;
        char path[300];
        snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
        if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0)
            bytes += (uint64_t)st.st_size;
    }
    closedir(folder);
    return bytes;
}

static void write_all(struct array *a, int value)
{
    for (size_t at = 0; at + 16 < a->enc.object_bytes; at += 4096) {
        char text[16];
        snprintf(text, sizeof text, "%07d", (int)(at / 4096) * 10 + value);
        put(a, at, text, 8);
    }
}

static void test_space_is_used_again(void)
{
    uint64_t bytes = 0;
    for (int round = 0; round < 6; round++) {
        write_all(g_data, round);
        memory_is_right(g_data);
        if (round == 2)
            bytes = spill_file_bytes();
    }
    CHECK(counts().chunks_spilled > 100);
    CHECK(counts().spilled_bytes > 0);
    CHECK(bytes > 0 && spill_file_bytes() <= bytes + (bytes >> 2));
    snapshot_all();
    CHECK_EQ(counts().spilled_bytes, 0);
    CHECK_EQ(spill_file_bytes(), 0);
    memory_is_right(g_data);
    file_is_right(g_data);
}

/* A region moves to another budget with what it has spilled, and comes back. */
static void test_what_is_spilled_outlives_its_budget(void)
{
    lm_budget *other;
    write_all(g_data, 7);
    CHECK(counts().spilled_bytes > 0);
    CHECK_EQ(lm_budget_open(2 * LIMIT, NULL, &other), 0);
    CHECK_EQ(lm_region_set_budget(g_data->region, NULL), 0);
    CHECK_EQ(lm_region_set_budget(g_zero->region, other), 0);
    CHECK_EQ(counts().used_bytes, 0);
    memory_is_right(g_data);
    CHECK_EQ(lm_region_set_budget(g_data->region, g_budget), 0);
    CHECK_EQ(lm_region_set_budget(g_zero->region, g_budget), 0);
    lm_budget_close(other);
    check_charges();
    memory_is_right(g_data);
    snapshot_all();
    file_is_right(g_data);
}

/* What is missing of a chunk is taken from the file, which does not have what was spilled: so all
 * pages must have come, also where some were another's for a while. */
static void test_no_page_is_missing_of_what_comes_back(void)
{
    size_t chunk = 0;
    write_all(g_data, 3);
    while (lm__chunks_state(&g_data->region->chunks, chunk) != LM_CHUNK_SPILLED)
        chunk++;
    lm_inject(LM_INJECT_UFFD_COPY, 0, 7, EEXIST);
    put(g_data, chunk * g_chunk, "once more", 9);
    lm_inject(LM_INJECT_UFFD_COPY, 0, 0, 0);
    memory_is_right(g_data);
    snapshot_all();
    file_is_right(g_data);
}

/* Where nothing can be spilled, what was written stays, and who needs room is told. */
static void test_without_a_spill_file_it_is_an_error(void)
{
    struct lm_error err;
    lm_inject(LM_INJECT_WRITE, 0, -1, ENOSPC);
    for (size_t at = 0; at + 16 < g_data->enc.object_bytes; at += g_chunk) {
        *(volatile uint8_t *)(g_data->memory + at) = 1;
        if (lm_failure_take(test_tid(), &err))
            break;
        g_data->right[at] = 1;
    }
    CHECK_EQ(err.code, -ENOSPC);
    lm_inject(LM_INJECT_WRITE, 0, 0, 0);
    do /* the evictor may be at its last failure still */
        (void)*(volatile uint8_t *)(g_data->memory + g_data->enc.object_bytes - 1);
    while (lm_failure_take(test_tid(), &err));
    memory_is_right(g_data);
    snapshot_all();
    file_is_right(g_data);
}

int main(void)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    if (!lm__uffd_can_track(lm__log2(lm__page_bytes())))
        return test_skip("no write protection");
    store_make((struct lm_region_options){.is_tracked = 1});
    array_close(g_data);
    array_close(g_zero);
    CHECK_EQ(lm_budget_open(LIMIT, "/var/tmp", &g_budget), 0);
    open_both();
    test_reading_is_charged_and_dropping_is_not();
    test_space_is_used_again();
    test_what_is_spilled_outlives_its_budget();
    test_no_page_is_missing_of_what_comes_back();
    test_without_a_spill_file_it_is_an_error();
    store_close();
    lm_budget_close(g_budget);
    return TEST_OK;
}
