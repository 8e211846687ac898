/* SPDX-License-Identifier: BSD-3-Clause
 * python.c - the only file that knows Python: how a failed fill becomes an exception.
 *
 *   main thread     Py_AddPendingCall, which needs no GIL: the exception is raised by the
 *                   first bytecode after the operation that touched the memory.  Before
 *                   Python 3.13 nothing told a main thread that holds the GIL to look; it
 *                   looks when somebody else wants the GIL, and so the reporter asks for it
 *   other threads   PyThreadState_SetAsyncExc, which needs the GIL, so the reporter calls it
 *   threads that never run Python (BLAS, OpenMP)      the main thread hears of it
 *
 * An error stays with failure.c until it is raised, so that an exception raised by any of
 * these ways, or by LazyArray itself, is raised once.
 */
#define _GNU_SOURCE
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

static PyObject *g_make_exception, *g_find_thread;
static int g_main_looks; /* at pending calls that other threads have added */

/* A class whose instance, made without arguments, is the exception for `error`. */
static PyObject *exception_class(const struct lm_error *error)
{
    return PyObject_CallFunction(g_make_exception, "K",
                                 (unsigned long long)(uintptr_t)error);
}

static int raise_in_main(void *unused)
{
    (void)unused;
    struct lm_error error;
    if (!lm_failure_take((int32_t)getpid(), &error))
        return 0;               /* raised elsewhere meanwhile */
    if (error.code == -EINTR) { /* what the signal's handler raises is the exception */
        PyErr_SetInterrupt();
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
    PyObject *cls = exception_class(&error);
    if (cls) {
        PyErr_SetNone(cls);
        Py_DECREF(cls);
    }
    return -1;
}

static int announce_at_once(int32_t tid)
{
    if (tid <= 0) /* a kernel that does not tell who it was */
        lm__failure_bequeath(tid, (int32_t)getpid());
    else if (tid != (int32_t)getpid())
        return 0;
    return Py_AddPendingCall(raise_in_main, NULL) == 0 && g_main_looks;
}

static unsigned long python_thread(int32_t tid)
{
    PyObject *id = PyObject_CallFunction(g_find_thread, "i", (int)tid);
    unsigned long ident = id ? PyLong_AsUnsignedLong(id) : 0;
    Py_XDECREF(id);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        ident = 0;
    }
    return ident;
}

/* Calling Python may let the GIL go.  Meanwhile the thread may have raised the error itself,
 * or ended, and a new one may have its ident: that one must not be hit. */
static int is_to_hear(int32_t tid)
{
    return lm__failure_is_waiting(tid) && syscall(SYS_tgkill, getpid(), tid, 0) == 0;
}

/* With the GIL, which the calls into Python may drop for a while. */
static void announce(const struct lm_error *error)
{
    int32_t main_tid = (int32_t)getpid();
    int is_main = error->tid == main_tid;
    PyObject *cls = is_main ? NULL : exception_class(error);
    unsigned long ident = cls ? python_thread(error->tid) : 0;
    int is_set = ident != 0 && is_to_hear(error->tid) &&
                 PyThreadState_SetAsyncExc(ident, cls) == 1;
    if (!is_set) {
        PyErr_Clear();
        if (!is_main)
            lm__failure_bequeath(error->tid, main_tid);
        Py_AddPendingCall(raise_in_main, NULL); /* once too often does no harm */
    }
    Py_XDECREF(cls);
    /* Whoever takes an error cancels its exception, which did not exist yet. */
    if (!lm__failure_announced(error->tid) && is_set)
        PyThreadState_SetAsyncExc(ident, NULL);
}

static void announce_later(void)
{
    struct lm_error error;
    PyGILState_STATE gil = PyGILState_Ensure();
    while (lm__failure_next_queued(&error))
        announce(&error);
    PyGILState_Release(gil);
}

int lm_python_attach(void *make_exception, void *find_thread)
{
    static const struct lm__runtime runtime = {announce_at_once, announce_later, 1};
    PyGILState_STATE gil = PyGILState_Ensure(); /* cffi has dropped the GIL */
    g_make_exception = Py_NewRef((PyObject *)make_exception);
    g_find_thread = Py_NewRef((PyObject *)find_thread);
    g_main_looks = atoi(Py_GetVersion() + strlen("3.")) >= 13;
    PyGILState_Release(gil);
    lm__failure_set_runtime(&runtime);
    return 0;
}

void lm_python_cancel(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyThreadState_SetAsyncExc(PyThread_get_thread_ident(), NULL);
    PyGILState_Release(gil);
}
