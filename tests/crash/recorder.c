/* SPDX-License-Identifier: BSD-3-Clause
 * recorder.c - see, number, spoil and log what a process does to the files of one folder.
 *
 * Loaded by LD_PRELOAD.  After recorder_begin() every operation that changes a file or a name
 * in the folder, or makes one durable, is one record of the log, in the order in which the
 * operations were done.  Each calls the kernel itself: nothing here depends on the libc that
 * it stands in front of.
 *
 * (L1) An operation and its record are one step under the lock: the log's order is the order
 *      of the disk.
 * (L2) A record says what was done, not what was asked for: a short write is logged with the
 *      bytes that it wrote, a failed operation with its error and without data.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum kind {
    OPEN = 'o', /* for writing; flags: 1 created, 2 truncated */
    WRITE = 'w',
    TRUNCATE = 't',
    ALLOCATE = 'p', /* fallocate(); flags: its mode */
    SYNC = 's',     /* flags: 1 a folder */
    RENAME = 'r',   /* flags: those of renameat2() */
    LINK = 'l',
    UNLINK = 'u',
    CLOSE = 'c',
    MARK = 'm', /* offset: what recorder_mark() was given */
};

enum { CREATED = 1, TRUNCATED = 2, FOLDER = 1 };

/* What the log holds; path, new path and data follow. */
struct record {
    uint32_t kind, flags;
    int32_t error; /* errno, or 0 */
    uint32_t path_bytes, to_bytes, data_bytes;
    uint64_t inode, offset, bytes;
};

struct op {
    struct record record;
    const void *data;
    char path[PATH_MAX], to[PATH_MAX];
    int error;   /* to fail with */
    int is_half; /* a write is to be short */
    int is_swallowed;
};

/* What to spoil: operations of the kinds, counted from 1. */
struct fault {
    enum { NOTHING, KILL, FAIL, SHORT, FULL, SWALLOW } action;
    char kinds[16];
    long first, last;
    int error;
};

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static char g_folder[PATH_MAX];
static size_t g_folder_bytes; /* 0: nothing is recorded */
static int g_log = -1;
static struct fault g_fault;
static long g_count; /* of operations of the fault's kinds */

static void die(const char *why)
{
    fprintf(stderr, "recorder: %s: %s\n", why, strerror(errno));
    abort();
}

/* ---- the switches ---------------------------------------------------------------------- */

/* `fault`: "ACTION KINDS FIRST LAST ERRNO", or "".  LAZYMEM_RECORD_FOLDER (a real path) and
 * LAZYMEM_RECORD_LOG say where. */
void recorder_begin(const char *fault);
void recorder_begin(const char *fault)
{
    static const char *actions[] = {"", "kill", "fail", "short", "full", "swallow"};
    const char *folder = getenv("LAZYMEM_RECORD_FOLDER");
    const char *log = getenv("LAZYMEM_RECORD_LOG");
    char action[16] = "";
    if (*fault && sscanf(fault, "%15s %15s %ld %ld %d", action, g_fault.kinds,
                         &g_fault.first, &g_fault.last, &g_fault.error) != 5)
        die(fault);
    for (int i = 0; i < 6; i++)
        if (strcmp(action, actions[i]) == 0)
            g_fault.action = i;
    g_log = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (g_log < 0)
        die(log);
    strcpy(g_folder, folder);
    g_folder_bytes = strlen(folder);
}

/* Spoil nothing from here on. */
void recorder_relent(void);
void recorder_relent(void)
{
    pthread_mutex_lock(&g_lock);
    g_fault.action = NOTHING;
    pthread_mutex_unlock(&g_lock);
}

/* ---- one operation --------------------------------------------------------------------- */

static int is_inside(const char *path)
{
    return g_folder_bytes && strncmp(path, g_folder, g_folder_bytes) == 0 &&
           (path[g_folder_bytes] == '/' || path[g_folder_bytes] == 0);
}

static void spoil(struct op *op)
{
    if (g_fault.action == NOTHING || op->record.kind == MARK ||
        (g_fault.kinds[0] != '*' && !strchr(g_fault.kinds, (int)op->record.kind)))
        return;
    g_count++;
    if (g_count < g_fault.first || g_count > g_fault.last)
        return;
    switch (g_fault.action) {
    case NOTHING: break;
    case KILL: kill(getpid(), SIGKILL); break;
    case FAIL: op->error = g_fault.error; break;
    case SHORT: op->is_half = 1; break;
    case FULL: /* a disk is full in the midst of a write, and then it stays so */
        op->is_half = g_count == g_fault.first;
        op->error = op->is_half ? 0 : g_fault.error;
        break;
    case SWALLOW: op->is_swallowed = 1; break;
    }
}

static void enter(struct op *op)
{
    pthread_mutex_lock(&g_lock);
    spoil(op);
}

static void put(const void *bytes, size_t count)
{
    if (syscall(SYS_write, g_log, bytes, count) != (long)count)
        die("the log");
}

static long leave(struct op *op, long rc)
{
    struct record *r = &op->record;
    int error = rc < 0 ? errno : 0;
    r->error = error;
    r->path_bytes = (uint32_t)strlen(op->path);
    r->to_bytes = (uint32_t)strlen(op->to);
    if (r->kind == WRITE) {
        r->bytes = rc < 0 ? 0 : (uint64_t)rc;
        r->data_bytes = (uint32_t)r->bytes;
    }
    if (!op->is_swallowed) {
        put(r, sizeof *r);
        put(op->path, r->path_bytes);
        put(op->to, r->to_bytes);
        put(op->data, r->data_bytes);
    }
    pthread_mutex_unlock(&g_lock);
    errno = error;
    return rc;
}

static long fail(int error)
{
    errno = error;
    return -1;
}

/* 1, and the lock, if `fd` is a file or folder that is recorded. */
static int enter_fd(struct op *op, int fd)
{
    char link[32];
    struct stat st;
    if (!g_folder_bytes || fd == g_log)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, op->path, sizeof op->path - 1);
    op->path[bytes > 0 ? bytes : 0] = 0;
    if (!is_inside(op->path) || fstat(fd, &st) < 0)
        return 0;
    op->record.inode = st.st_ino;
    if (S_ISDIR(st.st_mode) && op->record.kind == SYNC)
        op->record.flags = FOLDER;
    enter(op);
    return 1;
}

static int resolve(char *out, int dirfd, const char *path)
{
    char link[32], base[PATH_MAX];
    if (!g_folder_bytes)
        return 0;
    if (path[0] == '/')
        return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX && is_inside(out);
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t bytes =
        readlink(dirfd == AT_FDCWD ? "/proc/self/cwd" : link, base, sizeof base - 1);
    base[bytes > 0 ? bytes : 0] = 0;
    return snprintf(out, PATH_MAX, "%s/%s", base, path) < PATH_MAX && is_inside(out);
}

/* What the program says has happened by now. */
void recorder_mark(long number);
void recorder_mark(long number)
{
    struct op op = {.record = {.kind = MARK, .offset = (uint64_t)number}};
    enter(&op);
    leave(&op, 0);
}

/* ---- files ----------------------------------------------------------------------------- */

static int do_open(int dirfd, const char *path, int flags, mode_t mode)
{
    struct op op = {.record = {.kind = OPEN}};
    struct stat st;
    int is_change = (flags & (O_ACCMODE | O_CREAT | O_TRUNC)) != O_RDONLY;
    if (!is_change || !resolve(op.path, dirfd, path))
        return (int)syscall(SYS_openat, dirfd, path, flags, mode);
    enter(&op);
    int is_there = stat(op.path, &st) == 0;
    long fd = op.error ? fail(op.error) : syscall(SYS_openat, dirfd, path, flags, mode);
    if (fd >= 0 && fstat((int)fd, &st) == 0) {
        op.record.inode = st.st_ino;
        op.record.flags = (is_there ? 0 : CREATED) | (flags & O_TRUNC ? TRUNCATED : 0);
    }
    return (int)leave(&op, fd);
}

static mode_t mode_of(int flags, va_list args)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
}

#define DEFINE_OPEN(name)                                                              \
    int name(const char *path, int flags, ...)                                         \
    {                                                                                  \
        va_list args;                                                                  \
        va_start(args, flags);                                                         \
        mode_t mode = mode_of(flags, args);                                            \
        va_end(args);                                                                  \
        return do_open(AT_FDCWD, path, flags, mode);                                   \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name)                                                            \
    int name(int dirfd, const char *path, int flags, ...)                              \
    {                                                                                  \
        va_list args;                                                                  \
        va_start(args, flags);                                                         \
        mode_t mode = mode_of(flags, args);                                            \
        va_end(args);                                                                  \
        return do_open(dirfd, path, flags, mode);                                      \
    }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

int creat(const char *path, mode_t mode)
{
    return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int close(int fd)
{
    struct op op = {.record = {.kind = CLOSE}};
    if (!enter_fd(&op, fd))
        return (int)syscall(SYS_close, fd);
    return (int)leave(&op, syscall(SYS_close, fd));
}

static size_t wanted(const struct op *op, size_t count)
{
    return op->is_half && count > 1 ? count / 2 : count;
}

ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset)
{
    struct op op = {.record = {.kind = WRITE, .offset = (uint64_t)offset}, .data = buf};
    if (!enter_fd(&op, fd))
        return syscall(SYS_pwrite64, fd, buf, count, offset);
    return leave(&op, op.error
                          ? fail(op.error)
                          : syscall(SYS_pwrite64, fd, buf, wanted(&op, count), offset));
}

ssize_t pwrite64(int fd, const void *buf, size_t count, off64_t offset)
{
    return pwrite(fd, buf, count, offset);
}

ssize_t write(int fd, const void *buf, size_t count)
{
    struct op op = {.record = {.kind = WRITE}, .data = buf};
    if (!enter_fd(&op, fd))
        return syscall(SYS_write, fd, buf, count);
    int is_append = (fcntl(fd, F_GETFL) & O_APPEND) != 0;
    op.record.offset = (uint64_t)lseek(fd, 0, is_append ? SEEK_END : SEEK_CUR);
    return leave(&op, op.error ? fail(op.error)
                               : syscall(SYS_write, fd, buf, wanted(&op, count)));
}

int ftruncate(int fd, off_t bytes)
{
    struct op op = {.record = {.kind = TRUNCATE, .bytes = (uint64_t)bytes}};
    if (!enter_fd(&op, fd))
        return (int)syscall(SYS_ftruncate, fd, bytes);
    return (int)leave(&op,
                      op.error ? fail(op.error) : syscall(SYS_ftruncate, fd, bytes));
}

int ftruncate64(int fd, off64_t bytes) { return ftruncate(fd, bytes); }

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    struct op op = {.record = {.kind = ALLOCATE,
                               .flags = (uint32_t)mode,
                               .offset = (uint64_t)offset,
                               .bytes = (uint64_t)bytes}};
    if (!enter_fd(&op, fd))
        return (int)syscall(SYS_fallocate, fd, mode, offset, bytes);
    return (int)leave(&op, op.error ? fail(op.error)
                                    : syscall(SYS_fallocate, fd, mode, offset, bytes));
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
    return fallocate(fd, mode, offset, bytes);
}

static int do_sync(long call, int fd)
{
    struct op op = {.record = {.kind = SYNC}};
    if (!enter_fd(&op, fd))
        return (int)syscall(call, fd);
    long rc = op.error ? fail(op.error) : op.is_swallowed ? 0 : syscall(call, fd);
    return (int)leave(&op, rc);
}

int fsync(int fd) { return do_sync(SYS_fsync, fd); }
int fdatasync(int fd) { return do_sync(SYS_fdatasync, fd); }

/* ---- names ----------------------------------------------------------------------------- */

int renameat2(int from_dir, const char *from, int to_dir, const char *to,
              unsigned flags)
{
    struct op op = {.record = {.kind = RENAME, .flags = flags}};
    int is_from = resolve(op.path, from_dir, from);
    int is_to = resolve(op.to, to_dir, to);
    if (!is_from && !is_to)
        return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    enter(&op);
    return (int)leave(
        &op, op.error ? fail(op.error)
                      : syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return renameat2(from_dir, from, to_dir, to, 0);
}

int rename(const char *from, const char *to)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    struct op op = {.record = {.kind = LINK}};
    struct stat st;
    resolve(op.path, from_dir, from);
    if (!resolve(op.to, to_dir, to))
        return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    enter(&op);
    long rc = op.error ? fail(op.error)
                       : syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    if (rc == 0 && stat(op.to, &st) == 0)
        op.record.inode = st.st_ino;
    return (int)leave(&op, rc);
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlinkat(int dirfd, const char *path, int flags)
{
    struct op op = {.record = {.kind = UNLINK}};
    if (!resolve(op.path, dirfd, path))
        return (int)syscall(SYS_unlinkat, dirfd, path, flags);
    enter(&op);
    return (int)leave(&op, op.error ? fail(op.error)
                                    : syscall(SYS_unlinkat, dirfd, path, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
