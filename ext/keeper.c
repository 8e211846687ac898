/* SPDX-License-Identifier: BSD-3-Clause
 * keeper.c - the userfaultfd, kept where the program can't close it.
 *
 * A program may close all its descriptors, as daemons do.  When the last one of a userfaultfd
 * is gone the kernel unregisters its memory, and absent pages read as zeros: no error, wrong
 * data.  So one thread, the keeper, has a descriptor table of its own with nothing in it but
 * the userfaultfd.  While it lives all stays registered, and who touches a page waits.
 *
 *   program's table    0 1 2 3 ... 56          close(56): EBADF, or the number is a stranger's
 *   keeper's table                 56          hands it out again, over a socket
 *
 * A descriptor passes from table to table by SCM_RIGHTS only.  The receiver makes the socket,
 * and takes nothing from another process.  For some microseconds the keeper's table is a copy
 * of the program's, as a child's is between fork and exec.
 *
 * Before Linux 5.9 nobody keeps it: a program that closes it then ends at its next touch.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#ifndef SYS_close_range /* since Linux 5.9; one number everywhere */
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2u
#endif

enum keeper_state { NONE, PREPARED, STARTING, KEEPING, LEAVING };

static struct {
    _Atomic int state;
    _Atomic int fd; /* its number in the keeper's table */
    sem_t wake, answered;
    struct sockaddr_un to; /* whom to send it to; the keeper's from wake to answered */
    socklen_t to_bytes;
} g_keeper;

struct message {
    struct msghdr header;
    struct iovec part;
    char byte;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control;
};

static void message_init(struct message *m, size_t control_bytes)
{
    *m = (struct message){.part = {&m->byte, 1}};
    m->header = (struct msghdr){.msg_iov = &m->part,
                                .msg_iovlen = 1,
                                .msg_control = &m->control,
                                .msg_controllen = control_bytes};
}

/* ---- the keeper ----------------------------------------------------------------------------- */

static void send_descriptor(int fd)
{
    struct message m;
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    message_init(&m, CMSG_SPACE(sizeof fd));
    m.header.msg_name = &g_keeper.to;
    m.header.msg_namelen = g_keeper.to_bytes;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m.header);
    *c = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    sendmsg(s, &m.header, MSG_NOSIGNAL); /* where it fails, who asked asks again */
    close(s);
    sem_post(&g_keeper.answered);
}

static int table_of_one(int fd)
{
    return syscall(SYS_close_range, (unsigned)fd + 1, ~0u, CLOSE_RANGE_UNSHARE) == 0 &&
           (fd == 0 || syscall(SYS_close_range, 0u, (unsigned)fd - 1, 0) == 0);
}

static void keeper(void)
{
    int fd = lm_load_acquire(&g_keeper.fd);
    if (table_of_one(fd)) {
        lm_store_release(&g_keeper.state, KEEPING);
        while (lm_load_acquire(&g_keeper.state) != LEAVING)
            if (sem_wait(&g_keeper.wake) == 0 &&
                lm_load_acquire(&g_keeper.state) == KEEPING)
                send_descriptor(fd);
        close(fd);
    }
    lm_store_release(&g_keeper.state, NONE);
}

void lm__keeper_prepare(int fd)
{
    sem_init(&g_keeper.wake, 0, 0);
    sem_init(&g_keeper.answered, 0, 0);
    lm_store_release(&g_keeper.fd, fd);
    lm_store_release(&g_keeper.state, PREPARED);
}

void lm__keeper_start(void)
{
    static const struct lm__thread thread = {keeper, "lazymem-keep"};
    int prepared = PREPARED;
    if (lm_cas_acq_rel(&g_keeper.state, &prepared, STARTING) &&
        lm__thread_start(&thread) != 0)
        lm_store_release(&g_keeper.state, NONE);
}

int lm__keeper_await(void)
{
    const struct timespec pause = {.tv_nsec = 20000};
    while (lm_load_acquire(&g_keeper.state) == STARTING)
        nanosleep(&pause, NULL);
    return lm_load_acquire(&g_keeper.state) == KEEPING;
}

void lm__keeper_stop(void)
{
    int prepared = PREPARED, keeping = KEEPING;
    lm_cas_acq_rel(&g_keeper.state, &prepared, NONE);
    if (lm__keeper_await() && lm_cas_acq_rel(&g_keeper.state, &keeping, LEAVING))
        sem_post(&g_keeper.wake);
    const struct timespec pause = {.tv_nsec = 20000};
    while (lm_load_acquire(&g_keeper.state) != NONE)
        nanosleep(&pause, NULL);
}

void lm__keeper_fork_child(void) { lm_store_relaxed(&g_keeper.state, NONE); }

/* ---- who asks for it ----------------------------------------------------------------------------- */

/* A socket with a name that the system has chosen: numbers say nothing to the keeper. */
static int socket_named(void)
{
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1;
    g_keeper.to = (struct sockaddr_un){.sun_family = AF_UNIX};
    g_keeper.to_bytes = sizeof g_keeper.to;
    if (s >= 0 &&
        (setsockopt(s, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0 ||
         bind(s, (struct sockaddr *)&g_keeper.to, sizeof(sa_family_t)) != 0 ||
         getsockname(s, (struct sockaddr *)&g_keeper.to, &g_keeper.to_bytes) != 0)) {
        close(s);
        s = -1;
    }
    return s;
}

/* What has come, if it is from this process, or -1. */
static int receive_descriptor(int s)
{
    struct message m;
    struct ucred sender = {0};
    int fd = -1;
    message_init(&m, sizeof m.control);
    if (recvmsg(s, &m.header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1)
        return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m.header); c; c = CMSG_NXTHDR(&m.header, c))
        if (c->cmsg_type == SCM_CREDENTIALS)
            memcpy(&sender, CMSG_DATA(c), sizeof sender);
        else if (c->cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(c), sizeof fd);
    if (fd >= 0 && sender.pid != getpid()) {
        close(fd);
        fd = -1;
    }
    return fd;
}

int lm__keeper_fetch(void)
{
    int s = socket_named(), fd = -1;
    if (s >= 0) {
        sem_post(&g_keeper.wake);
        while (sem_wait(&g_keeper.answered) != 0)
            ;
        fd = receive_descriptor(s);
        close(s);
    }
    return fd;
}
