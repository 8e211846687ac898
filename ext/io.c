/* SPDX-License-Identifier: BSD-3-Clause
 * io.c - pread, pwrite, fsync: the only file I/O of the engine, and its test switch.
 *
 * Contract: a call transfers all bytes or fails; -errno, or LM_E_TRUNCATED where the file
 * ends first.  Interrupted and partial calls go on.  A read that fails with EIO or EAGAIN
 * is tried again as often as the caller says, with pauses: network file systems recover.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define IO_BYTES_MAX (1u << 30) /* Linux moves at most 2 GiB - 4 KiB a call */

static struct {
    _Atomic int error;
    _Atomic int64_t skip;
    _Atomic int64_t count;
} g_inject[LM_INJECT_POINTS];

void lm_inject(int point, int64_t skip, int64_t count, int error)
{
    if (point < 0 || point >= LM_INJECT_POINTS)
        return;
    lm_store_relaxed(&g_inject[point].skip, skip);
    lm_store_relaxed(&g_inject[point].count, count < 0 ? INT64_MAX : count);
    lm_store_release(&g_inject[point].error, error);
}

int lm__injected(int point)
{
    int error = lm_load_acquire(&g_inject[point].error);
    if (error == 0 || lm_sub_relaxed(&g_inject[point].skip, 1) > 0)
        return 0;
    if (lm_sub_relaxed(&g_inject[point].count, 1) <= 0)
        return 0;
    if (error == LM_INJECT_KILL)
        kill(getpid(), SIGKILL);
    if (error != LM_INJECT_HANG)
        return error;
    const struct timespec pause = {.tv_nsec = 1000000};
    while (lm_load_acquire(&g_inject[point].error) == LM_INJECT_HANG)
        nanosleep(&pause, NULL);
    return 0;
}

int lm__io_open(const char *path, int flags, unsigned mode)
{
    int fd = open(path, flags | O_CLOEXEC, mode);
    return fd < 0 ? -errno : fd;
}

int lm__io_pread_cached(int fd, uint64_t offset, size_t bytes, void *buf)
{
#ifdef RWF_NOWAIT
    struct iovec iov = {.iov_base = buf, .iov_len = bytes};
    if (lm_load_relaxed(&g_inject[LM_INJECT_READ].error) != 0)
        return -EAGAIN;
    ssize_t got = preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT);
    return got == (ssize_t)bytes ? 0 : -EAGAIN;
#else
    (void)fd, (void)offset, (void)bytes, (void)buf;
    return -EAGAIN;
#endif
}

static ssize_t pread_once(int fd, uint64_t offset, size_t bytes, void *buf)
{
    int error = lm__injected(LM_INJECT_READ);
    if (error) {
        errno = error;
        return -1;
    }
    return pread(fd, buf, bytes < IO_BYTES_MAX ? bytes : IO_BYTES_MAX, (off_t)offset);
}

int lm__io_pread(int fd, uint64_t offset, size_t bytes, void *buf, int retries)
{
    char *to = buf;
    for (int failed = 0; bytes > 0;) {
        ssize_t got = pread_once(fd, offset, bytes, to);
        if (got > 0) {
            to += got;
            offset += (uint64_t)got;
            bytes -= (size_t)got;
        } else if (got == 0) {
            return LM_E_TRUNCATED;
        } else if (errno == EINTR) {
            continue;
        } else if ((errno == EIO || errno == EAGAIN) && failed < retries) {
            struct timespec pause = {.tv_nsec = 1000000L << 2 * failed++};
            nanosleep(&pause, NULL);
        } else {
            return -errno;
        }
    }
    return 0;
}

int lm__io_pwrite(int fd, uint64_t offset, size_t bytes, const void *buf)
{
    const char *from = buf;
    while (bytes > 0) {
        int error = lm__injected(LM_INJECT_WRITE);
        if (error)
            return -error;
        ssize_t put = pwrite(fd, from, bytes < IO_BYTES_MAX ? bytes : IO_BYTES_MAX,
                             (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        from += put;
        offset += (uint64_t)put;
        bytes -= (size_t)put;
    }
    return 0;
}

int lm__io_sync(int fd)
{
    int error = lm__injected(LM_INJECT_SYNC);
    if (error)
        return -error;
    return fsync(fd) < 0 ? -errno : 0;
}

int lm__io_punch(int fd, uint64_t offset, uint64_t bytes)
{
    int error = lm__injected(LM_INJECT_WRITE);
    if (error)
        return -error;
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)bytes) < 0
               ? -errno
               : 0;
}

void lm__io_will_need(int fd, uint64_t offset, uint64_t bytes)
{
    posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

int lm__io_file_bytes(int fd, uint64_t *out)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (S_ISDIR(st.st_mode))
        return -EISDIR;
    off_t end = S_ISREG(st.st_mode) ? st.st_size : lseek(fd, 0, SEEK_END);
    if (end < 0)
        return -errno;
    *out = (uint64_t)end;
    return 0;
}

int lm__io_file_id(int fd, struct lm__file_id *out)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *out = (struct lm__file_id){st.st_dev, st.st_ino};
    return 0;
}

int lm__io_is_file(int fd, const struct lm__file_id *id)
{
    struct lm__file_id found;
    return lm__io_file_id(fd, &found) == 0 && found.device == id->device &&
           found.inode == id->inode;
}

int lm__io_used_bytes(int fd, uint64_t *out)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *out = (uint64_t)st.st_blocks * 512;
    return 0;
}

int lm_sync_folder(const char *path)
{
    char copy[PATH_MAX];
    if (strlen(path) >= sizeof copy)
        return -ENAMETOOLONG;
    strcpy(copy, path);
    int fd = lm__io_open(dirname(copy), O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return fd;
    int rc = lm__io_sync(fd);
    close(fd);
    return rc == -EINVAL ? 0 : rc; /* file systems without folder sync */
}
