/* SPDX-License-Identifier: BSD-3-Clause
 * watchdog.h - what every thread of a stress run is doing, and an end to a run that hangs.
 *
 * A lost wake-up is a userfaultfd engine's likeliest bug, and a process that hangs tells
 * nothing.  So each thread notes what it begins; one that has begun nothing new for
 * WATCHDOG_S is dumped, with the kernel's and the debugger's view of the whole process and of
 * the child it waits for, and the process is aborted.
 */
#ifndef LM_STRESS_WATCHDOG_H
#define LM_STRESS_WATCHDOG_H
#include <dirent.h>
#include <spawn.h>
#include <time.h>

#include "test.h"

#define WATCHDOG_S     20
#define DEBUGGER_S     60 /* after which it is taken to hang, too */
#define WATCHDOG_POLLS 5  /* a second */

/* What a thread notes.  Written by it alone. */
struct watched {
    _Atomic(const char *) doing; /* NULL: it has ended */
    _Atomic uint64_t since_ns;
    _Atomic int32_t tid;
    _Atomic int32_t child; /* the process it waits for, or 0 */
};

static inline uint64_t watchdog_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void watchdog_note(struct watched *w, const char *doing)
{
    lm_store_relaxed(&w->since_ns, watchdog_now_ns());
    lm_store_release(&w->doing, doing);
}

static void watchdog_dump_file(int pid, const char *task, const char *name)
{
    char path[300], text[2048];
    snprintf(path, sizeof path, "/proc/%d/task/%s/%s", pid, task, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (got <= 0)
        return;
    text[got] = 0;
    fprintf(stderr, "  %s: %s%s", name, text, text[got - 1] == '\n' ? "" : "\n");
}

static void watchdog_dump_tasks(int pid)
{
    static const char *const files[] = {"comm", "wchan", "syscall", "stack", "status"};
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    for (struct dirent *e; tasks && (e = readdir(tasks));) {
        if (e->d_name[0] == '.')
            continue;
        fprintf(stderr, "process %d, task %s\n", pid, e->d_name);
        for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
            watchdog_dump_file(pid, e->d_name, files[i]);
    }
    if (tasks)
        closedir(tasks);
}

/* Not by fork(), whose hooks may be what hangs. */
static void watchdog_run_debugger(int pid)
{
    extern char **environ;
    char number[16];
    snprintf(number, sizeof number, "%d", pid);
    char *argv[] = {"gdb", "-nx",  "-batch", "-ex", "thread apply all backtrace",
                    "-p",  number, NULL};
    pid_t gdb;
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    if (posix_spawnp(&gdb, "gdb", NULL, NULL, argv, environ) != 0) {
        fprintf(stderr, "no gdb: no backtraces\n");
        return;
    }
    for (int i = 0; i < DEBUGGER_S * WATCHDOG_POLLS; i++) {
        if (waitpid(gdb, NULL, WNOHANG) != 0)
            return;
        usleep(1000000 / WATCHDOG_POLLS);
    }
    kill(gdb, SIGKILL);
}

/* A process, and the children that it waits for in its turn. */
static void watchdog_dump(int pid)
{
    char path[64], text[256];
    watchdog_dump_tasks(pid);
    watchdog_run_debugger(pid);
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
    for (char *child = strtok(text, " "); child; child = strtok(NULL, " "))
        if (atoi(child) > 0)
            watchdog_dump(atoi(child));
}

static void watchdog_bark(const struct watched *threads, int count)
{
    uint64_t now = watchdog_now_ns();
    fprintf(stderr, "stress: a thread has made no progress for %d s\n", WATCHDOG_S);
    for (int i = 0; i < count; i++) {
        const char *doing = lm_load_acquire(&threads[i].doing);
        if (doing)
            fprintf(stderr, "thread %d, task %d: %s for %.3f s\n", i,
                    lm_load_relaxed(&threads[i].tid), doing,
                    (double)(now - lm_load_relaxed(&threads[i].since_ns)) / 1e9);
    }
    watchdog_dump_tasks(getpid());
    watchdog_run_debugger(getpid());
    for (int i = 0; i < count; i++) {
        int child = lm_load_relaxed(&threads[i].child);
        if (child) {
            watchdog_dump(child);
            kill(child, SIGKILL);
        }
    }
    abort();
}

/* Bark if a thread hangs. */
static void watchdog_look(const struct watched *threads, int count)
{
    for (int i = 0; i < count; i++) {
        uint64_t since = lm_load_relaxed(&threads[i].since_ns);
        uint64_t now = watchdog_now_ns();
        if (lm_load_acquire(&threads[i].doing) && now > since &&
            now - since > WATCHDOG_S * 1000000000ull)
            watchdog_bark(threads, count);
    }
}

#endif
