/* SPDX-License-Identifier: BSD-3-Clause
 * Does SIGINT end the main thread's wait for a chunk that does not come, and is it at any other
 * time, and for any other thread, what the application has made of it?
 *
 * First each edge of interrupt.c alone, then with threads that fault.
 */
#define _GNU_SOURCE
#include <semaphore.h>

#include "pause.h"
#include "uffd.h"

#if defined(__SANITIZE_THREAD__)
#define TEST_IS_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_IS_TSAN
#endif
#endif

#define CHUNK_PAGES 4
#define CHUNKS      8
#define SEEN_AT     64 /* in a page: the byte that a touch looks at */

static size_t g_page;
static struct test_store g_store;
static int32_t g_main;

/* ---- the application's handler, and a runtime that wants to hear of interrupts -------------- */

static _Atomic int g_handled, g_handled_by, g_code;

static void handle(int number)
{
    (void)number;
    lm_store_seq_cst(&g_handled_by, test_tid());
    lm_add_seq_cst(&g_handled, 1);
}

static void handle_info(int number, siginfo_t *info, void *context)
{
    (void)context;
    lm_store_seq_cst(&g_code, info->si_code);
    handle(number);
}

/* As set; as the system gives it back. */
static struct sigaction g_mine;

static void set_action(struct sigaction action)
{
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGUSR2);
    CHECK_EQ(sigaction(SIGINT, &action, NULL), 0);
    CHECK_EQ(sigaction(SIGINT, NULL, &g_mine), 0);
}

static void set_handler(void)
{
    set_action((struct sigaction){.sa_handler = handle, .sa_flags = SA_RESTART});
}

/* 1 if nobody has replaced what was set. */
static int is_mine(void)
{
    struct sigaction now;
    CHECK_EQ(sigaction(SIGINT, NULL, &now), 0);
    return now.sa_handler == g_mine.sa_handler && now.sa_flags == g_mine.sa_flags &&
           sigismember(&now.sa_mask, SIGUSR2) == 1;
}

/* How often the handler has run since.  Any call that TSan knows lets it deliver signals that
 * it has kept: is_mine() makes one. */
static int take_handled(void)
{
    CHECK(is_mine());
    int handled = lm_load_seq_cst(&g_handled);
    lm_sub_acq_rel(&g_handled, handled);
    return handled;
}

static int announce(int32_t tid)
{
    (void)tid;
    return 1;
}

static void announce_later(void) { CHECK(!"each thread is told at once"); }

static void set_runtime(int takes_interrupts)
{
    static const struct lm__runtime takes = {announce, announce_later, 1},
                                    leaves = {announce, announce_later, 0};
    lm__failure_set_runtime(takes_interrupts ? &takes : &leaves);
}

static void interrupt_main(void)
{
    CHECK_EQ(syscall(SYS_tgkill, getpid(), g_main, SIGINT), 0);
}

/* ---- one edge at a time ----------------------------------------------------------------------- */

static void test_who_is_watched(void)
{
    lm__failure_set_runtime(NULL);
    lm__interrupt_watch(g_main);
    CHECK(is_mine());
    set_runtime(0);
    lm__interrupt_watch(g_main);
    CHECK(is_mine());
    set_runtime(1);
    lm__interrupt_watch(g_main + 1);
    lm__interrupt_watch(0); /* a fill that nobody waits for */
    CHECK(is_mine());
    lm__interrupt_watch(g_main);
    CHECK(!is_mine());
    lm__interrupt_end(g_main + 1);
    lm__interrupt_end(0);
    CHECK(!is_mine());
    lm__interrupt_end(g_main);
    CHECK(is_mine());
    lm__interrupt_end(g_main); /* once more does no harm */
    CHECK_EQ(take_handled(), 0);
}

static void test_what_is_no_handler_is_never_replaced(void)
{
    void (*const dispositions[])(int) = {SIG_DFL, SIG_IGN};
    for (int i = 0; i < 2; i++) {
        set_action((struct sigaction){.sa_handler = dispositions[i]});
        lm__interrupt_watch(g_main);
        CHECK(is_mine());
        lm__interrupt_end(g_main);
        CHECK(is_mine());
    }
    raise(SIGINT); /* ignored */
    lm__interrupt_watch(g_main);
    CHECK_EQ(lm__interrupt_take(g_main), 0);
    set_handler();
}

static void test_unwatched_the_handler_runs(void)
{
    uint32_t count = lm__interrupt_count();
    raise(SIGINT);
    CHECK_EQ(take_handled(), 1);
    lm__interrupt_watch(g_main);
    lm__interrupt_end(g_main);
    raise(SIGINT);
    CHECK_EQ(take_handled(), 1);
    CHECK_EQ(lm__interrupt_take(g_main), 0);
    CHECK_EQ(lm__interrupt_count(), count);
}

static void test_watch_to_end_raises_anew(void)
{
    uint32_t count = lm__interrupt_count();
    lm__interrupt_watch(g_main);
    lm__interrupt_watch(g_main); /* two handlers may do so */
    raise(SIGINT);
    raise(SIGINT);
    CHECK_EQ(lm_load_seq_cst(&g_handled), 0);
    CHECK(!is_mine());
    lm__interrupt_end(g_main);
    CHECK_EQ(take_handled(), 1); /* as with any signal that has to wait */
    CHECK_EQ(lm_load_seq_cst(&g_handled_by), g_main);
    lm__interrupt_end(g_main);
    CHECK_EQ(take_handled(), 0);
    CHECK_EQ(lm__interrupt_count(), count);
}

static void test_watch_to_take_is_told_once(void)
{
    struct lm_error cause = lm__error(-EINTR, "wait"), err;
    uint32_t count = lm__interrupt_count();
    lm__interrupt_watch(g_main);
    CHECK_EQ(lm__interrupt_take(g_main), 0); /* nothing has come */
    CHECK(!is_mine());
    raise(SIGINT);
    CHECK_EQ(lm__interrupt_take(g_main + 1), 0);
    CHECK_EQ(lm__interrupt_take(g_main), 1);
    CHECK(is_mine());
    CHECK_EQ(lm__interrupt_count(), count + 1);
    CHECK_EQ(lm__interrupt_take(g_main), 0);
    lm__interrupt_end(g_main);
    CHECK_EQ(take_handled(), 0);

    CHECK_EQ(lm__failure_report(g_main, &cause), 1);
    CHECK_EQ(lm__interrupt_is_pending(g_main + 1), 0);
    CHECK_EQ(lm__interrupt_is_pending(g_main), 1);
    CHECK_EQ(lm__interrupt_is_pending(g_main), 1);
    CHECK_EQ(lm_failure_take(g_main, &err), 1);
    CHECK_EQ(lm__interrupt_is_pending(g_main), 0);
    CHECK_EQ(lm__failure_report(g_main, &cause), 1); /* another one, not ours */
    CHECK_EQ(lm__interrupt_is_pending(g_main), 0);
    CHECK_EQ(lm_failure_take(g_main, &err), 1);
}

static void *be_interrupted(void *unused)
{
    (void)unused;
    CHECK_EQ(raise(SIGINT), 0);
    CHECK_EQ(lm_load_seq_cst(&g_handled_by), test_tid());
    return NULL;
}

static void end_the_watch(int number)
{
    (void)number;
    lm__interrupt_end(g_main);
}

/* SIGINT is on its way when the watch ends: another signal's handler comes first. */
static void test_one_that_comes_too_late_goes_to_the_handler(void)
{
    struct sigaction first = {.sa_handler = end_the_watch};
    sigset_t both, before;
    sigemptyset(&both);
    sigaddset(&both, SIGINT);
    sigaddset(&both, SIGUSR1);
    CHECK_EQ(sigaction(SIGUSR1, &first, NULL), 0);
    lm__interrupt_watch(g_main);
    pthread_sigmask(SIG_BLOCK, &both, &before);
    raise(SIGINT);
    raise(SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK_EQ(take_handled(), 1);
    lm__interrupt_watch(g_main); /* and that was it */
    lm__interrupt_end(g_main);
    CHECK_EQ(take_handled(), 0);
}

/* Of both kinds of handlers, with what such a one is told. */
static void test_another_thread_gets_it_as_ever(void)
{
    for (int i = 0; i < 2; i++) {
        if (i == 1)
            set_action((struct sigaction){.sa_sigaction = handle_info,
                                          .sa_flags = SA_SIGINFO});
        lm__interrupt_watch(g_main);
        pthread_join(test_thread(be_interrupted, NULL), NULL);
        CHECK_EQ(lm__interrupt_take(g_main), 0);
        lm__interrupt_end(g_main);
        CHECK_EQ(take_handled(), 1);
    }
    CHECK_EQ(lm_load_seq_cst(&g_code), SI_TKILL);
    set_handler();
}

/* ---- with threads that fault ------------------------------------------------------------------- */

static lm_region *open_region(void)
{
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    (void)*(volatile uint8_t *)lm_region_addr(region); /* reads the index */
    return region;
}

static void close_region(lm_region *region)
{
    lm_region_close(region);
    test_regions_gone();
    CHECK_EQ(lm_failure_take(g_main, NULL), 0);
    CHECK_EQ(take_handled(), 0);
}

static uint8_t *page_of(lm_region *region, size_t chunk_idx, size_t page_idx)
{
    return (uint8_t *)lm_region_addr(region) +
           (chunk_idx * CHUNK_PAGES + page_idx) * g_page;
}

static uint8_t stored(size_t chunk_idx, size_t page_idx)
{
    return g_store.data[(chunk_idx * CHUNK_PAGES + page_idx) * g_page + SEEN_AT];
}

/* TSan keeps a signal from a thread until it makes a call which TSan knows.  In one that may
 * block it does not: and so there the touch is that of a function which does not block here,
 * since what it waits for is not zero. */
static uint8_t touch(uint8_t *page)
{
#ifdef TEST_IS_TSAN
    CHECK_EQ(sem_wait((sem_t *)page), 0);
#endif
    return ((volatile uint8_t *)page)[SEEN_AT];
}

static void hang(void) { lm_inject(LM_INJECT_READ, 0, -1, LM_INJECT_HANG); }
static void let_read(void) { lm_inject(LM_INJECT_READ, 0, 0, 0); }

/* From another thread: the main thread is asleep in a fault when SIGINT is watched for. */
static void *interrupt_when_watched(void *unused)
{
    (void)unused;
    AWAIT(!is_mine());
    interrupt_main();
    return NULL;
}

static void touch_is_interrupted(lm_region *region, size_t chunk_idx, size_t page_idx)
{
    struct lm_error err;
    uint32_t count = lm__interrupt_count();
    pthread_t other = test_thread(interrupt_when_watched, NULL);
    CHECK_EQ(touch(page_of(region, chunk_idx, page_idx)), 0xFF);
    pthread_join(other, NULL);
    CHECK(is_mine());
    CHECK_EQ(lm__interrupt_count(), count + 1);

    /* Until it has its error the thread does not wait: neither for what is being filled, nor
     * for what is not yet. */
    CHECK_EQ(touch(page_of(region, chunk_idx, (page_idx + 1) % CHUNK_PAGES)), 0xFF);
    CHECK_EQ(touch(page_of(region, CHUNKS - 1, 0)), 0xFF);
    CHECK(is_mine());
    CHECK_EQ(lm__interrupt_count(), count + 1);

    CHECK_EQ(lm_failure_take(g_main, &err), 1);
    CHECK_EQ(err.code, -EINTR);
    CHECK_EQ(err.tid, g_main);
    CHECK_EQ(err.tag, 7);
    CHECK_EQ(err.chunk_idx, chunk_idx);
    CHECK_EQ(lm_failure_take(g_main, &err), 0);
    CHECK_EQ(take_handled(), 0); /* the runtime has it run, if it so wishes */
    lm_region_settle(region);
}

static void test_the_touch_ends_while_the_source_hangs(void)
{
    lm_region *region = open_region();
    hang();
    touch_is_interrupted(region, 1, 0);
    touch_is_interrupted(region, 1, 2); /* the same chunk, whose fill still hangs */
    touch_is_interrupted(region, 2, 0);
    let_read();
    for (size_t c = 0; c < CHUNKS; c++) /* what was late is as good, and no error */
        for (size_t p = 0; p < CHUNK_PAGES; p++)
            CHECK_EQ(touch(page_of(region, c, p)), stored(c, p));
    close_region(region);
}

/* Which does not hear of it; but one that waits for the very same page is woken as well, and
 * so it does. */
static void test_another_thread_waits_on_for_the_same_chunk(size_t page_idx)
{
    struct test_toucher other;
    int is_same_page = page_idx == 0;
    lm_region *region = open_region();
    hang();
    test_touch_start(&other, page_of(region, 3, page_idx) + SEEN_AT);
    AWAIT(lm__chunks_state(&region->chunks, 3) == LM_CHUNK_FILLING);
    touch_is_interrupted(region, 3, 0);
    if (is_same_page)
        test_touch_end(&other);
    let_read();
    if (!is_same_page)
        test_touch_end(&other);
    CHECK_EQ(other.got, is_same_page ? 0xFF : stored(3, page_idx));
    CHECK_EQ(other.has_error, is_same_page);
    if (is_same_page)
        CHECK_EQ(other.err.code, -EINTR);
    lm_region_settle(region);
    CHECK_EQ(touch(page_of(region, 3, 0)), stored(3, 0));
    close_region(region);
}

static void *interrupt_twice(void *arg)
{
    lm_region *region = arg;
    test_await_held(); /* the event is read, and nobody watches yet */
    interrupt_main();
    AWAIT(lm_load_seq_cst(&g_handled) == 1);
    AWAIT(
        !is_mine()); /* the thread has faulted again: another event of the same fault */
    uint64_t faults = lm_load_seq_cst(&region->faults);
    test_let_go();
    AWAIT(lm_load_seq_cst(&region->faults) == faults + 1);
    AWAIT(!is_mine());
    interrupt_main();
    return NULL;
}

/* The second event of a fault leaves the watch to the fill that the first one began. */
static void test_a_signal_before_the_watch_does_not_end_it(void)
{
    struct lm_error err;
    lm_region *region = open_region();
    if (test_two_handlers(region)) {
        hang();
        test_hold("waiter entered");
        pthread_t other = test_thread(interrupt_twice, region);
        CHECK_EQ(touch(page_of(region, 1, 0)), 0xFF);
        pthread_join(other, NULL);
        CHECK_EQ(lm_failure_take(g_main, &err), 1);
        CHECK_EQ(err.code, -EINTR);
        CHECK_EQ(take_handled(), 1); /* the first one */
        let_read();
    }
    close_region(region);
}

/* Here SIGINT has been noted, and the thread has faulted anew, but before a handler gets to
 * look at that the chunk is there. */
static void *interrupt_and_let_read(void *unused)
{
    (void)unused;
    AWAIT(!is_mine());
    test_hold("waiter entered");
    interrupt_main();
    test_await_held();
    let_read();
    AWAIT(is_mine());
    return NULL;
}

static void test_a_fill_that_ends_first_raises_it_anew(void)
{
    uint32_t count = lm__interrupt_count();
    lm_region *region = open_region();
    hang();
    pthread_t other = test_thread(interrupt_and_let_read, NULL);
    CHECK_EQ(touch(page_of(region, 1, 0)), stored(1, 0));
    CHECK_EQ(take_handled(), 1);
    CHECK_EQ(lm_load_seq_cst(&g_handled_by), g_main);
    CHECK_EQ(lm_failure_take(g_main, NULL), 0);
    CHECK_EQ(lm__interrupt_count(), count);
    pthread_join(other, NULL);
    test_let_go();
    close_region(region);
}

/* A read that had to wait, and a handler held where it has ended: SIGINT is watched for by
 * now, if it ever is. */
static void hold_after_a_wait(void)
{
    test_hold("install");
    lm_inject(LM_INJECT_READ, 0, 1, EINTR);
}

static void *look_and_let_go(void *is_ignored)
{
    test_await_held();
    CHECK(is_mine());
    if (*(int *)is_ignored)
        interrupt_main();
    test_let_go();
    return NULL;
}

static void test_a_fault_replaces_nothing_that_is_no_handler(void)
{
    for (int is_ignored = 0; is_ignored < 2; is_ignored++) {
        lm_region *region = open_region();
        set_action((struct sigaction){.sa_handler = is_ignored ? SIG_IGN : SIG_DFL});
        hold_after_a_wait();
        pthread_t other = test_thread(look_and_let_go, &is_ignored);
        CHECK_EQ(touch(page_of(region, 1, 0)), stored(1, 0));
        pthread_join(other, NULL);
        close_region(region);
    }
    set_handler();
}

static void test_a_fault_of_another_thread_is_not_watched(void)
{
    struct test_toucher other;
    lm_region *region = open_region();
    hold_after_a_wait();
    test_touch_start(&other, page_of(region, 1, 0) + SEEN_AT);
    test_await_held();
    CHECK(is_mine());
    raise(SIGINT);
    CHECK_EQ(take_handled(), 1);
    test_let_go();
    test_touch_end(&other);
    CHECK_EQ(other.got, stored(1, 0));
    CHECK(!other.has_error);
    close_region(region);
}

int main(void)
{
    lm_region *region;
    g_page = lm__page_bytes();
    g_main = test_tid();
    CHECK_EQ(g_main, getpid());
    set_handler();
    test_who_is_watched();
    test_what_is_no_handler_is_never_replaced();
    test_unwatched_the_handler_runs();
    test_watch_to_end_raises_anew();
    test_watch_to_take_is_told_once();
    test_another_thread_gets_it_as_ever();
    test_one_that_comes_too_late_goes_to_the_handler();

    g_store.enc = (struct lm_encoding){.object_bytes = CHUNKS * CHUNK_PAGES * g_page,
                                       .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    g_store.data = malloc(g_store.enc.object_bytes);
    CHECK(g_store.data);
    uint64_t state = 71;
    for (size_t i = 0; i < g_store.enc.object_bytes; i++) /* neither 0 nor 0xFF */
        g_store.data[i] = (uint8_t)(1 + test_random(&state) % 254);
    test_store_write(&g_store);
    test_store_open(&g_store);
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    test_regions_gone();
    test_the_touch_ends_while_the_source_hangs();
    test_another_thread_waits_on_for_the_same_chunk(2);
    test_another_thread_waits_on_for_the_same_chunk(0);
    test_a_signal_before_the_watch_does_not_end_it();
    test_a_fill_that_ends_first_raises_it_anew();
    test_a_fault_replaces_nothing_that_is_no_handler();
    test_a_fault_of_another_thread_is_not_watched();
    test_store_close(&g_store);
    return TEST_OK;
}
