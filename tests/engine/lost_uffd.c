/* SPDX-License-Identifier: BSD-3-Clause
 * A program closes the engine's userfaultfd, and may give its number to another file.  Is every
 * byte still right, and does the other file keep what is in it?
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include "uffd.h"

#define CHUNK_BYTES 4096u
#define CHUNKS      512u
#define BYTES       (CHUNKS * CHUNK_BYTES)

static struct test_store g_store;
static size_t g_at; /* of the first byte that is not zero */
static lm_region *g_region;
static _Atomic int g_stop, g_paused, g_go, g_entered, g_go_on;

static void check_all(void)
{
    CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES));
    CHECK_EQ(test_failures(g_region), 0);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 0);
}

static void open_region(void)
{
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    lm__keeper_start();
    lm__keeper_await();
}

/* TSan would call it a race, which it is: the tests are about that. */
static int close_unseen(int fd) { return (int)syscall(SYS_close, fd); }

static void close_engines(void) { CHECK_EQ(close_unseen(test_uffd_of_engine()), 0); }

static int is_asleep(const char *tid)
{
    char path[300], stat[128] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/stat", tid);
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, stat, sizeof stat - 1);
    close(fd);
    const char *name_end = got > 0 ? strrchr(stat, ')') : NULL;
    return !name_end || name_end[2] == 'S';
}

/* Wait until no handler is on its way from an answer to a read. */
static void await_reading(void)
{
    int are_asleep;
    do {
        DIR *tasks = opendir("/proc/self/task");
        CHECK(tasks);
        are_asleep = 1;
        for (struct dirent *task; (task = readdir(tasks));) {
            char path[300], name[32] = "";
            snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd >= 0 && read(fd, name, sizeof name - 1) > 0 &&
                strncmp(name, "lazymem-fault", 13) == 0)
                are_asleep &= is_asleep(task->d_name);
            close(fd);
        }
        closedir(tasks);
    } while (!are_asleep);
}

/* ---- while no handler reads -------------------------------------------------------------- */

static void pause_install(const char *point)
{
    if (strcmp(point, "install") == 0 && !lm_load_seq_cst(&g_go)) {
        lm_store_seq_cst(&g_paused, 1);
        while (!lm_load_seq_cst(&g_go))
            sched_yield();
    }
}

static void *touch_first(void *unused)
{
    (void)unused;
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(served[g_at], g_store.data[g_at]);
    return NULL;
}

/* The only handler is at work, so no system call holds the file: without a keeper the toucher
 * reads zeros as soon as the number is closed. */
static void test_closed_while_a_lone_handler_fills(void)
{
    open_region();
    lm_store_release(&lm__pause_hook, pause_install);
    pthread_t toucher = test_thread(touch_first, NULL);
    while (!lm_load_seq_cst(&g_paused))
        sched_yield();
    close_engines();
    lm_store_seq_cst(&g_go, 1);
    pthread_join(toucher, NULL);
    lm_store_release(&lm__pause_hook, NULL);
    check_all();
    lm_region_close(g_region);
}

/* ---- while all of them read -------------------------------------------------------------- */

static void test_closed_while_handlers_read(void)
{
    open_region();
    for (int i = 0; i < 3; i++) {
        touch_first(NULL);
        await_reading();
        close_engines();
        CHECK(lm_region_evict(g_region, 0, BYTES) > 0);
    }
    check_all();
    lm_region_close(g_region);
}

static void give_number_to(int fd)
{
    touch_first(NULL);
    await_reading();
    CHECK(syscall(SYS_dup3, fd, test_uffd_of_engine(), O_CLOEXEC) >= 0);
    check_all();
}

static void test_number_given_to_a_pipe_leaves_it_its_data(void)
{
    char data[256] = {0x12}; /* as a page fault's event begins */
    int ends[2], left;
    open_region();
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    CHECK_EQ(write(ends[1], data, sizeof data), sizeof data);
    give_number_to(ends[0]);
    CHECK_EQ(ioctl(ends[0], FIONREAD, &left), 0);
    CHECK_EQ(left, sizeof data);
    lm_region_close(g_region);
}

static void pause_second(const char *point)
{
    int is_second =
        strcmp(point, "waiter entered") == 0 && lm_add_seq_cst(&g_entered, 1) == 1;
    while (is_second && !lm_load_seq_cst(&g_go_on))
        sched_yield();
    pause_install(point);
}

/* A handler that finds the chunk being filled by another one has nothing to do but to read. */
static void test_handler_without_work_steals_nothing(void)
{
    char data[256] = {0};
    int ends[2], left = sizeof data;
    open_region();
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    CHECK_EQ(write(ends[1], data, sizeof data), sizeof data);
    await_reading();
    lm_store_seq_cst(&g_paused, 0);
    lm_store_seq_cst(&g_go, 0);
    lm_store_release(&lm__pause_hook, pause_second);
    pthread_t first = test_thread(touch_first, NULL);
    while (!lm_load_seq_cst(&g_paused))
        sched_yield();
    pthread_t second = test_thread(touch_first, NULL);
    while (lm_load_seq_cst(&g_entered) < 2)
        sched_yield();
    CHECK(syscall(SYS_dup3, ends[0], test_uffd_of_engine(), O_CLOEXEC) >= 0);
    lm_store_seq_cst(&g_go_on, 1);
    for (int i = 0; i < 1000 && left == sizeof data; i++) { /* time to do wrong */
        CHECK_EQ(ioctl(ends[0], FIONREAD, &left), 0);
        sched_yield();
    }
    lm_store_seq_cst(&g_go, 1);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    lm_store_release(&lm__pause_hook, NULL);
    CHECK_EQ(ioctl(ends[0], FIONREAD, &left), 0);
    CHECK_EQ(left, sizeof data);
    check_all();
    lm_region_close(g_region);
}

/* It answers EINVAL, as a userfaultfd may. */
static void test_number_given_to_an_epoll_file(void)
{
    open_region();
    give_number_to(epoll_create1(EPOLL_CLOEXEC));
    lm_region_close(g_region);
}

/* ---- at any time --------------------------------------------------------------------------- */

static void *touch_all(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    const volatile uint8_t *served = lm_region_addr(g_region);
    while (!lm_load_seq_cst(&g_stop)) {
        uint64_t at = test_random(&state) % BYTES;
        CHECK_EQ(served[at], g_store.data[at]);
        lm_region_evict(g_region, at / CHUNK_BYTES * CHUNK_BYTES, CHUNK_BYTES);
    }
    return NULL;
}

static void *prefetch(void *unused)
{
    (void)unused;
    while (!lm_load_seq_cst(&g_stop)) {
        lm_job *job;
        CHECK_EQ(lm_region_prefetch(g_region, 0, BYTES, &job), 0);
        test_finish(job);
    }
    return NULL;
}

/* Close it if it is open, and not under the lower number that it has for a moment: the engine,
 * too, is about to close that. */
static int try_close(void)
{
    char target[64];
    for (int fd = 56; fd < 128; fd++) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, target, sizeof target - 1);
        target[length < 0 ? 0 : length] = 0;
        if (strcmp(target, "anon_inode:[userfaultfd]") == 0)
            return close_unseen(fd) == 0;
    }
    return 0;
}

static void test_closed_again_and_again_amid_faults_and_prefetch(void)
{
    pthread_t threads[4];
    open_region();
    for (uintptr_t i = 0; i < 3; i++)
        threads[i] = test_thread(touch_all, (void *)(i + 1));
    threads[3] = test_thread(prefetch, NULL);
    for (int closed = 0; closed < 200; sched_yield())
        closed += try_close();
    lm_store_seq_cst(&g_stop, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    check_all();
    lm_region_close(g_region);
}

/* ---- with no descriptor to spare ------------------------------------------------------------- */

static void test_toucher_waits_for_a_free_descriptor(void)
{
    struct rlimit limit, none;
    open_region();
    touch_first(NULL);
    lm_region_evict(g_region, 0, BYTES);
    await_reading();
    close_engines();
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = (struct rlimit){0, limit.rlim_max};
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    pthread_t toucher = test_thread(touch_first, NULL);
    uint64_t faults = lm_load_seq_cst(&g_region->faults);
    /* A handler that did not read yet can't count it: it looks for the userfaultfd, too. */
    for (int i = 0; i < 1000 && lm_load_seq_cst(&g_region->faults) == faults; i++)
        sched_yield();
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    pthread_join(toucher, NULL);
    check_all();
    lm_region_close(g_region);
}

/* ---- fork ---------------------------------------------------------------------------------- */

static int child_closes(void *unused)
{
    (void)unused;
    check_all();
    close_engines();
    lm_region_evict(g_region, 0, BYTES);
    check_all();
    return TEST_OK;
}

static int child_has(void *fd)
{
    CHECK(fcntl((int)(intptr_t)fd, F_GETFD) >= 0);
    return child_closes(NULL);
}

static void test_a_child_recovers_and_leaves_strangers_files_alone(void)
{
    open_region();
    CHECK_EQ(test_in_child(child_closes, NULL), 0);
    touch_first(NULL);
    await_reading();
    int number = test_uffd_of_engine();
    CHECK_EQ(syscall(SYS_dup3, STDERR_FILENO, number, O_CLOEXEC),
             number); /* and nobody has noticed yet */
    CHECK_EQ(test_in_child(child_has, (void *)(intptr_t)number), 0);
    check_all();
    CHECK_EQ(close_unseen(number), 0);
    lm_region_close(g_region);
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    lm__keeper_start();
    if (!lm__keeper_await())
        return test_skip("no close_range()");
    if (test_store_make(&g_store, enc, 31) != 0)
        return TEST_SKIP;
    while (g_store.data[g_at] == 0)
        g_at++;
    test_closed_while_a_lone_handler_fills();
    test_closed_while_handlers_read();
    test_number_given_to_a_pipe_leaves_it_its_data();
    test_handler_without_work_steals_nothing();
    test_number_given_to_an_epoll_file();
    test_closed_again_and_again_amid_faults_and_prefetch();
    test_toucher_waits_for_a_free_descriptor();
    if (!TEST_IS_SANITIZED)
        test_a_child_recovers_and_leaves_strangers_files_alone();
    test_store_close(&g_store);
    return TEST_OK;
}
