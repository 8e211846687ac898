/* SPDX-License-Identifier: BSD-3-Clause
 * lazymem.h - the engine's public API: all that Python and C users include.
 *
 * Functions return 0 or a negative code: -errno for the system's causes, LM_E_* for ours;
 * lm_strerror() knows both.  Where a call takes a `struct lm_error *`, it may be NULL.
 * No function needs the GIL; every function may be called from any thread.
 * build_ffi.py feeds this file to cffi with the preprocessor's lines dropped.
 */
#ifndef LAZYMEM_H
#define LAZYMEM_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ------------------------------------------------------------------------ */

enum lm_code {
    LM_E_MAGIC = -20001,        /* not a lazymem file */
    LM_E_VERSION = -20002,      /* written by a newer format version */
    LM_E_FORMAT = -20003,       /* a field that contradicts the format */
    LM_E_CHECKSUM = -20004,     /* bytes that do not match their CRC32C */
    LM_E_TRUNCATED = -20005,    /* the file ends before the bytes it refers to */
    LM_E_NO_COMMIT = -20006,    /* no intact commit record */
    LM_E_DECODE = -20007,       /* the codec refused bytes whose checksum is right */
    LM_E_CODEC = -20008,        /* an unknown codec, or its library is missing */
    LM_E_CLOSED = -20009,       /* the store was closed under a live array */
    LM_E_NO_UFFD = -20010,      /* userfaultfd can't be opened here */
    LM_E_LOST_MAPPING = -20011, /* the array's mapping was changed from outside */
    LM_E_ORDER = -20012, /* blocks of an object must be written in ascending order */
    LM_E_CANCELLED = -20013,     /* the job was cancelled */
    LM_E_DANGLING = -20014,      /* a touch of memory whose array no longer exists */
    LM_E_NO_HUGE_PAGES = -20015, /* the system's pool has too few of them */
    LM_E_LOCKED = -20016,        /* another writer has the file open */
    LM_E_BUDGET =
        -20017, /* no room in the memory budget, and nothing that may be dropped */
};

/* What went wrong and where.  A field that does not apply is all ones. */
struct lm_error {
    int32_t code;
    int32_t tid;  /* of the thread that touched the memory; 0 if none did */
    uint64_t tag; /* of the object, see struct lm_object_spec */
    uint64_t chunk_idx;
    uint64_t offset;   /* in the file, bytes */
    uint64_t expected; /* checksum, length, ...: what `what` says */
    uint64_t found;
    char what[48]; /* the thing that is wrong: "payload", "index page", ... */
};

const char *lm_strerror(int code);

/* ---- codecs ------------------------------------------------------------------------ */

enum lm_codec { LM_CODEC_NONE = 0, LM_CODEC_LZ4 = 1, LM_CODEC_ZSTD = 2 };

/* Resolve the codecs' functions from shared objects, once per process.  A NULL path means
 * the system's library.  Fails with LM_E_CODEC; err->what names the missing one. */
int lm_codecs_load(const char *lz4_path, const char *zstd_path, struct lm_error *err);

/* How to store an object: what the writer and the trial need to know. */
struct lm_encoding {
    uint64_t object_bytes;
    uint32_t chunk_bytes;   /* power of two, LM_CHUNK_BYTES_MIN .. LM_CHUNK_BYTES_MAX */
    uint32_t shuffle_width; /* bytes per element to shuffle by; 0 or 1: no filter */
    int32_t codec;
    int32_t level;
    int32_t
        is_split; /* byte planes, and with lz4 every 64 KiB, compressed on their own */
};

enum lm_limits { LM_CHUNK_BYTES_MIN = 4096, LM_CHUNK_BYTES_MAX = 16777216 };

/* Bytes that `data_bytes` of data (one chunk at most) take when stored as `enc` says. */
int lm_encoded_bytes(const struct lm_encoding *enc, const void *data, size_t data_bytes,
                     uint64_t *out_bytes);

/* CRC32C (Castagnoli) of `data`; `crc` is 0 or the checksum of what came before. */
uint32_t lm_crc32c(uint32_t crc, const void *data, size_t data_bytes);

/* ---- jobs: work on all cores, watched from outside ---------------------------------- */

typedef struct lm_job lm_job;

struct lm_progress {
    uint64_t steps_done;
    uint64_t steps_total;
    uint64_t errors; /* steps that failed */
};

/* Wait until the job has ended, at most timeout_ms.  Returns 1 if it has, 0 if not. */
int lm_job_wait(lm_job *job, int timeout_ms);
void lm_job_progress(const lm_job *job, struct lm_progress *out);
/* The first errors of a job, up to `max` of them.  Returns how many were copied. */
int lm_job_errors(lm_job *job, struct lm_error *out, int max);
enum lm_job_end {
    LM_JOB_CANCEL =
        0, /* and wait: on return no thread uses memory that the job was given */
    LM_JOB_DETACH = 1, /* it runs on unwatched */
    LM_JOB_LEAVE = 2,  /* cancelled; steps that have begun end unwatched */
};
/* Give the job up, which may have ended. */
void lm_job_close(lm_job *job, enum lm_job_end how);

/* ---- store: one open file ----------------------------------------------------------- */

typedef struct lm_store lm_store;

/* Where the root page of an object's index is.  All zero: every chunk is zero. */
struct lm_root {
    uint64_t offset;
    uint32_t bytes;
    uint32_t crc;
    int32_t kind; /* enum lm_page_kind */
};

enum lm_page_kind { LM_PAGE_PLAIN = 0, LM_PAGE_PATCH = 3 }; /* see FORMAT.md */

struct lm_commit {
    uint8_t store_id[16];
    uint64_t offset;          /* of the commit record */
    uint64_t sequence;        /* 1 for the first commit of a file */
    uint64_t previous_offset; /* of the commit before; 0 if there is none */
    uint64_t time_ns;         /* since the epoch */
    uint64_t manifest_bytes;  /* decoded */
    uint64_t file_bytes;
    uint64_t torn_bytes; /* after the record: an unfinished commit, ignored */
};

int lm_store_open(const char *path, lm_store **out, struct lm_commit *commit,
                  struct lm_error *err);
/* The same for a store that lm_writer_open() is to append to.  There is one at a time: else
 * LM_E_LOCKED.  What an interrupted commit has left at the end stays, and is not read. */
int lm_store_open_write(const char *path, lm_store **out, struct lm_commit *commit,
                        struct lm_error *err);
/* The newest state whose commit record lies before an offset and makes sense; to look for an
 * intact one, and, with `is_writable`, to append to it. */
int lm_store_open_before(const char *path, int is_writable, uint64_t before,
                         lm_store **out, struct lm_commit *commit,
                         struct lm_error *err);
/* An earlier state of the same file, whose commit record is at `record_offset`. */
int lm_store_open_at(lm_store *store, uint64_t record_offset, lm_store **out,
                     struct lm_commit *commit, struct lm_error *err);
/* Decode the manifest (JSON, UTF-8) into `buf` of commit->manifest_bytes. */
int lm_store_manifest(lm_store *store, char *buf, struct lm_error *err);
/* Nothing is read from it any more, though objects may keep it open: its space may go. */
void lm_store_leave(lm_store *store);
/* Drop the caller's reference; open objects keep the file open. */
void lm_store_close(lm_store *store);

/* ---- object: the chunks of one stored array ------------------------------------------ */

typedef struct lm_object lm_object;

struct lm_object_spec {
    uint64_t tag; /* comes back in errors */
    uint64_t object_bytes;
    uint32_t chunk_bytes;
    uint32_t shuffle_width;
    struct lm_root root;
};

/* Reads nothing from the file. */
int lm_object_open(lm_store *store, const struct lm_object_spec *spec, lm_object **out,
                   struct lm_error *err);
void lm_object_close(lm_object *object);
/* Decode bytes [offset, offset + nbytes) into private memory, on all cores. */
int lm_object_read(lm_object *object, uint64_t offset, uint64_t nbytes, void *dst,
                   lm_job **out);
/* Check every checksum and decode every chunk, keeping nothing. */
int lm_object_verify(lm_object *object, lm_job **out);

/* Bytes that this process can have without anything being swapped out or killed; 0 if the
 * system does not say. */
uint64_t lm_memory_available(void);

/* ---- region: an object as plain memory ----------------------------------------------- */

typedef struct lm_region lm_region;

struct lm_region_stats {
    uint64_t page_bytes;
    uint64_t chunks_total; /* the region's chunks, here and below */
    uint64_t chunks_resident;
    uint64_t bytes_resident; /* chunk-rounded */
    uint64_t faults;         /* page faults served */
    uint64_t fills;          /* chunks that were brought to memory */
    uint64_t zero_fills; /* of these: zero chunks, which take no memory of one's own */
    uint64_t failures;   /* fills that failed */
    uint64_t stored_bytes_read;
    uint64_t chunks_dirty; /* written since the last snapshot */
    uint64_t write_faults; /* first writes to clean chunks */
    uint64_t ahead; /* chunks asked for by readahead, before anybody touched them */
    uint64_t ahead_wasted; /* of these, such as a run of accesses ended before */
    uint64_t fills_shared; /* of the fills: chunks in shared memory, decoded before */
};

/* What a touch of a chunk that can't be filled does: leave an error for the thread, or raise
 * SIGBUS there (a system call gets EFAULT), as a memory map would. */
enum lm_on_error { LM_ON_ERROR_RAISE = 0, LM_ON_ERROR_SIGBUS = 1 };

/* ---- budget: how much memory some regions may have, all in all ------------------------- */

typedef struct lm_budget lm_budget;

struct lm_budget_stats {
    uint64_t limit_bytes;
    uint64_t used_bytes; /* of whole chunks, those being filled among them */
    uint64_t pinned_bytes;
    uint64_t chunks_evicted; /* to make room, those that were spilled among them */
    uint64_t chunks_spilled; /* written to the spill file */
    uint64_t spilled_bytes;  /* that the spill file has now */
    uint64_t chunks_back;    /* filled again soon after they were dropped */
};

/* What was written goes to a file without a name in `spill_folder`, or, where that is NULL, stays
 * in memory.  0 or -ENOMEM. */
int lm_budget_open(uint64_t limit_bytes, const char *spill_folder, lm_budget **out);
/* What is too much is dropped at once, as far as it may be. */
void lm_budget_set_limit(lm_budget *budget, uint64_t limit_bytes);
void lm_budget_stats(const lm_budget *budget, struct lm_budget_stats *out);
/* Drop the caller's reference; regions keep it. */
void lm_budget_close(lm_budget *budget);

/* ---- memory that several processes have ------------------------------------------------ */

typedef struct lm_shared lm_shared;
/* Make a file in memory, of zeros, that keeps its length and goes with its last user.  The
 * descriptor, or -errno. */
int lm_shared_make(uint64_t bytes);
/* Map such a file.  Its first `states_bytes`, whole pages, have a byte for each chunk, zero at
 * first.  0 or -errno; the descriptor may be closed. */
int lm_shared_open(int fd, uint64_t states_bytes, lm_shared **out);
/* Drop the caller's reference; regions keep it. */
void lm_shared_close(lm_shared *shared);

/* All zero: read-only, errors raised, pages of the system's own size, no limit. */
struct lm_region_options {
    int32_t on_error;    /* enum lm_on_error */
    int32_t is_writable; /* what is written is to be there in a forked child, too */
    int32_t is_tracked;  /* find out which chunks are written, for snapshots */
    uint64_t
        page_bytes; /* of the system's pool of huge pages.  An object smaller than one
                          * has ordinary pages all the same */
    lm_budget *budget; /* may be NULL */
    lm_shared *
        shared; /* NULL: it has memory of its own; else where it is in there, and where the
                        * states of its chunks are: read-only, and without a budget */
    uint64_t shared_offset, shared_states;
};

/* Reserve address space for the object; touches nothing.  LM_E_NO_UFFD where
 * lm_pager_start() has not succeeded: read the object with lm_object_read() instead; or
 * where the kernel can't do what the options ask for.  LM_E_NO_HUGE_PAGES where the pool has
 * too few: they are reserved here, so that none is wanting later. */
int lm_region_open(lm_object *object, const struct lm_region_options *options,
                   lm_region **out, struct lm_error *err);
void *lm_region_addr(const lm_region *region);
/* Bytes of a region's chunk: what is filled as one.  The object's chunk, or, where a page is
 * larger, a page of them. */
uint64_t lm_region_chunk_bytes(const lm_region *region);
/* Free the memory now; views stay mapped and a touch of them is LM_E_CLOSED. */
void lm_region_release(lm_region *region);
/* A region has one reference when opened.  The last one dropped gives the address range
 * back, so whoever can reach the memory holds one. */
void lm_region_retain(lm_region *region);
void lm_region_close(lm_region *region);
/* Fill the chunks that overlap [offset, offset + nbytes), on all cores. */
int lm_region_prefetch(lm_region *region, uint64_t offset, uint64_t nbytes,
                       lm_job **out);
/* Fill the chunks of a list, in its order, on all cores: before other jobs, or behind them.  It
 * is copied; what is in memory is left out.  Nobody is to wait for the job: chunks that others
 * fill are not waited for, and it ends early when nobody else holds the region.  *out is NULL
 * where less than two chunks are left: a touch does as well. */
int lm_region_prefetch_chunks(lm_region *region, const uint64_t *chunks, uint64_t count,
                              int is_urgent, lm_job **out);
/* Fill the chunk of byte `offset` in the calling thread, if the page cache has it: what must
 * be waited for, and an error, is left to the touch that follows. */
void lm_region_fill_here(lm_region *region, uint64_t offset);
/* Give the memory of the chunks that lie in [offset, offset + nbytes) back; a later touch
 * fills them again, without what was written to them.  Returns their bytes. */
uint64_t lm_region_evict(lm_region *region, uint64_t offset, uint64_t nbytes);
/* Let the region's memory count for another budget, or for none (NULL), from now on.  0 or
 * -errno. */
int lm_region_set_budget(lm_region *region, lm_budget *budget);
/* Chunks that overlap the range are not dropped to make room, as often as they are pinned.  0,
 * -EINVAL, -ENOMEM, or LM_E_BUDGET: with these, too much would be. */
int lm_region_pin(lm_region *region, uint64_t offset, uint64_t nbytes,
                  struct lm_error *err);
void lm_region_unpin(lm_region *region, uint64_t offset, uint64_t nbytes);
/* One byte per chunk from first_chunk on, 1 if resident.  Returns how many are. */
uint64_t lm_region_residency(const lm_region *region, uint64_t first_chunk,
                             uint64_t chunks, uint8_t *mask);
struct lm_strip_cell {
    uint64_t chunks;
    uint64_t resident; /* of these, in memory */
    uint64_t dirty;    /* of these, written since the last snapshot */
};
/* The same in `count` cells of a picture, between which the chunks are shared out evenly. */
void lm_region_strip(const lm_region *region, uint64_t first_chunk, uint64_t chunks,
                     struct lm_strip_cell *cells, uint64_t count);
/* How it is going to be accessed: by runs, as faults show them; in no order, so that nothing is
 * filled ahead; or from front to back. */
enum lm_advice { LM_ADVICE_NORMAL = 0, LM_ADVICE_RANDOM = 1, LM_ADVICE_SEQUENTIAL = 2 };
void lm_region_advise(lm_region *region, enum lm_advice advice);
/* How many chunks are in memory: to be read in place, as long as the region is held. */
const uint64_t *lm_region_resident(const lm_region *region);
void lm_region_stats(const lm_region *region, struct lm_region_stats *out);
/* Chunks written since the last snapshot; 0 where writes are not tracked. */
uint64_t lm_region_dirty(const lm_region *region);
/* Failed fills of a region: begun, and with no false bytes left in memory.  An operation saw
 * no false bytes if `over` before it equals `begun` after it. */
struct lm_failure_counts {
    uint64_t begun;
    uint64_t over;
};

/* Counters to be read in place, as long as the region is held. */
const struct lm_failure_counts *lm_region_failures(const lm_region *region);
/* Wait, for a bounded time, until over == begun.  Returns `over`. */
uint64_t lm_region_settle(const lm_region *region);
/* The last failed fill of the region.  Returns 0 if there was none. */
int lm_region_last_error(lm_region *region, struct lm_error *out);

/* ---- failed fills: which thread must hear of them ------------------------------------ */

/* Take the error that waits for thread `tid`, so that no one else reports it.
 * Returns 1 if there was one, else 0. */
int lm_failure_take(int32_t tid, struct lm_error *out);

/* ---- userfaultfd --------------------------------------------------------------------- */

enum lm_uffd_mode { LM_UFFD_NONE = 0, LM_UFFD_FULL = 1, LM_UFFD_USER_ONLY = 2 };

struct lm_uffd_info {
    int32_t mode;       /* enum lm_uffd_mode */
    int32_t full_errno; /* why the system call failed; 0: that is how it was opened */
    int32_t dev_errno;  /* why /dev/userfaultfd failed; 0: worked, or was not tried */
    int32_t user_errno; /* why UFFD_USER_MODE_ONLY failed; 0 likewise */
    int32_t api_errno;  /* why the API handshake failed */
    uint64_t features;  /* offered by the kernel and not masked */
};

/* Open and close a userfaultfd to see what this process may do. */
void lm_uffd_probe(struct lm_uffd_info *out);
/* Name of feature bit `bit`, as LAZYMEM_MASK takes it; NULL past the last one. */
const char *lm_uffd_feature_name(int bit);

struct lm_pager_stats {
    uint64_t events;    /* page-fault events read */
    uint64_t copies;    /* UFFDIO_COPY calls */
    uint64_t zeropages; /* UFFDIO_ZEROPAGE calls */
    uint64_t moves;     /* UFFDIO_MOVE calls */
    uint64_t wakes;     /* UFFDIO_WAKE calls */
    uint64_t eexist;    /* answers by errno, see uffd.c */
    uint64_t eagain_partial;
    uint64_t eagain;
    uint64_t enoent;
    uint64_t enomem;
    uint64_t refused;   /* EINVAL and EFAULT */
    uint64_t poisons;   /* UFFDIO_POISON calls */
    uint64_t protects;  /* UFFDIO_WRITEPROTECT calls */
    uint64_t continues; /* UFFDIO_CONTINUE calls */
    uint64_t regions_live;
    uint64_t arenas;
    uint64_t handlers;
    uint64_t mode; /* enum lm_uffd_mode */
};

/* Have buffers and stacks ready for lm_pager_start() and the first fills.  No thread stays. */
void lm_warm(void);
/* Start the fault threads if they do not run.  Returns 0, or LM_E_NO_UFFD for good. */
int lm_pager_start(void);
/* How faults are served in this process: enum lm_uffd_mode; none before the start. */
int lm_pager_mode(void);
void lm_pager_stats(struct lm_pager_stats *out);

/* ---- writer: a new store file --------------------------------------------------------- */

typedef struct lm_writer lm_writer;
typedef struct lm_writer_object lm_writer_object;

struct lm_written {
    struct lm_root root;
    uint64_t stored_bytes; /* payloads; a repeated chunk counts once */
    uint64_t chunks_total;
    uint64_t chunks_zero;
    uint64_t chunks_repeated;
    uint64_t replaced_bytes; /* of a snapshot: the payloads whose place these take */
};

/* Create `path`, which must not exist, and write the superblock.  After an error there is no
 * such file. */
int lm_writer_create(const char *path, lm_writer **out, struct lm_error *err);
/* Append to a store that was opened by lm_store_open_write(); it stays open meanwhile.  What is
 * appended can be read at once, by lm_object_open() in `store`, and is there for others, and
 * after a crash, with the next commit. */
int lm_writer_open(lm_store *store, lm_writer **out, struct lm_error *err);
int lm_writer_begin(lm_writer *writer, const struct lm_encoding *enc,
                    lm_writer_object **out, struct lm_error *err);
/* Encode and append bytes [offset, offset + nbytes) of the object.  Offsets ascend; bytes
 * never given are zero.  `data` must stay valid until the job is closed; one job of a
 * writer at a time.  *out is NULL where nothing is left to wait for. */
int lm_writer_write(lm_writer_object *object, uint64_t offset, const void *data,
                    uint64_t nbytes, lm_job **out, struct lm_error *err);
/* Store what is left of the object and its index; frees `object` whatever happens. */
int lm_writer_end(lm_writer_object *object, struct lm_written *out,
                  struct lm_error *err);
/* Append manifest and commit record; on return both are on the disk. */
int lm_writer_commit(lm_writer *writer, const char *manifest, uint64_t manifest_bytes,
                     struct lm_commit *commit, struct lm_error *err);
/* Let the next commit have a number and a time of another file's, of which this one is a copy. */
void lm_writer_resume(lm_writer *writer, uint64_t sequence, uint64_t time_ns);
/* Close the file.  Its name is the caller's to rename or remove. */
void lm_writer_close(lm_writer *writer);
/* Make the names in the folder of `path` durable. */
int lm_sync_folder(const char *path);

/* ---- snapshots -------------------------------------------------------------------------- */

typedef struct lm_snapshot lm_snapshot;

struct lm_snapshot_part {
    lm_region *region; /* tracked, of an object in the writer's store */
    struct lm_encoding encoding;
};

struct lm_snapshot_stats {
    uint64_t chunks_frozen; /* a region's chunks */
    uint64_t pause_ns;      /* for which writers were held */
};

/* Freeze what was written to the regions: what threads write from here on does not belong to
 * the snapshot, at one moment for all regions.  One snapshot of a writer at a time, and none
 * of its other jobs meanwhile. */
int lm_snapshot_begin(lm_writer *writer, const struct lm_snapshot_part *parts,
                      int count, lm_snapshot **out, struct lm_snapshot_stats *stats,
                      struct lm_error *err);
/* Append it, on all cores.  *out is NULL where there is nothing to do. */
int lm_snapshot_write(lm_snapshot *snapshot, lm_job **out);
/* After the job: append what has changed of the indexes.  `out` has an element for each part:
 * the new root, and of the chunks that were frozen those that differ from what is stored. */
int lm_snapshot_end(lm_snapshot *snapshot, struct lm_written *out,
                    struct lm_error *err);
/* After the commit (1): what nobody has written to since is clean.  Or instead of it (0): all
 * that was frozen is dirty again. */
void lm_snapshot_close(lm_snapshot *snapshot, int is_committed);

/* Let the region show another state of its object: chunks that differ, and those written, are
 * dropped.  `*dropped`: how many were in memory.  On an error nothing has changed.  No snapshot
 * of the region is under way. */
int lm_region_restore(lm_region *region, lm_store *store, const struct lm_root *root,
                      uint64_t *dropped, struct lm_error *err);
/* Read the object from another index, of the same chunks, from now on; what is in memory
 * stays.  0 or -ENOMEM. */
int lm_object_rebase(lm_object *object, lm_store *store, const struct lm_root *root);
/* The next run of chunks, from `from` on, in which two objects of equal length and chunks
 * differ, by their index: equal bytes may be stored twice.  1, 0 if there is none, or an
 * error. */
int lm_object_diff(lm_object *a, lm_object *b, uint64_t from, uint64_t *first,
                   uint64_t *count, struct lm_error *err);

/* ---- pruning: the space of what no state refers to ---------------------------------------- */

typedef struct lm_prune lm_prune;

/* Begin to find out what is in use.  Whoever opens the store meanwhile waits. */
int lm_prune_begin(lm_writer *writer, lm_prune **out, struct lm_error *err);
/* The commit record of a state that a reader has open, at or behind `from`; 0: there is none. */
uint64_t lm_prune_reader(lm_prune *prune, uint64_t from);
/* A state of the store, which is in use. */
int lm_prune_open(lm_prune *prune, uint64_t record_offset, lm_store **out,
                  struct lm_commit *commit, struct lm_error *err);
/* An object of such a state; `before`, if not NULL, is one of equal length and chunks that was
 * given before, and shares most with it. */
int lm_prune_keep(lm_prune *prune, lm_object *object, lm_object *before,
                  struct lm_error *err);
/* Give back what is not in use (1), or nothing (0).  *freed: how many bytes.  Frees `prune`
 * whatever happens. */
int lm_prune_end(lm_prune *prune, int is_complete, uint64_t *freed,
                 struct lm_error *err);

/* ---- copying: an object of one file to another -------------------------------------------- */

typedef struct lm_copy lm_copy;

/* Begin to append `from`, as it is stored, or encoded anew.  `before`, if not NULL, is one of
 * equal length and chunks that was copied to `before_root`: only what differs is. */
int lm_copy_begin(lm_writer *to, lm_object *from, lm_object *before,
                  const struct lm_root *before_root, const struct lm_encoding *enc,
                  lm_copy **out, struct lm_error *err);
/* *out is NULL where there is nothing to do. */
int lm_copy_write(lm_copy *copy, lm_job **out);
/* After the job.  Frees `copy` whatever happens. */
int lm_copy_end(lm_copy *copy, struct lm_written *out, struct lm_error *err);

/* ---- switches for tests ---------------------------------------------------------------- */

enum lm_inject_point {
    LM_INJECT_READ = 0,
    LM_INJECT_WRITE = 1,
    LM_INJECT_SYNC = 2,
    LM_INJECT_UFFD_COPY = 3,
    LM_INJECT_POINTS = 4,
    LM_INJECT_KILL = -1, /* as an error: the process is killed */
    LM_INJECT_HANG = -2, /* the call waits until the switch is set anew */
};

/* Let calls at `point` fail with `error` (an errno): skip `skip` calls, then fail `count`
 * of them (negative: all).  error == 0 switches it off. */
void lm_inject(int point, int64_t skip, int64_t count, int error);

/* ---- Python: how errors reach the interpreter (python.c) ------------------------------- */

/* `make_exception` is a PyObject *: called with the address of a struct lm_error, gives an
 * exception class that takes no arguments; `find_thread`, called with a thread id of the
 * system, gives Python's identifier of that thread or 0. */
int lm_python_attach(void *make_exception, void *find_thread);
/* The calling thread has taken its error: it is not to be raised a second time. */
void lm_python_cancel(void);

#ifdef __cplusplus
}
#endif
#endif
