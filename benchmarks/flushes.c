/* Counts what makes a process wait for its disk, and makes each wait BENCH_FLUSH_DELAY_US longer.
 *
 * Writes to a file opened with O_SYNC or O_DSYNC are flushes too: LMDB writes its meta page so. sync_file_range is one
 * where it waits.
 * Loaded with LD_PRELOAD; bench_flushes(kind) tells the counts, in the order of the numbers below: of all processes that
 * have the same BENCH_FLUSH_COUNTS, a file, as a server has many.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
#include <sys/uio.h>

enum { FDATASYNC, FSYNC, MSYNC, SYNC_FILE_RANGE, SYNCHRONOUS_WRITE, KINDS };

static atomic_ulong own[KINDS], *counted = own;
static long delay_us;

__attribute__((constructor)) static void begin(void) {
    const char *given = getenv("BENCH_FLUSH_DELAY_US"), *path = getenv("BENCH_FLUSH_COUNTS");
    delay_us = given ? atol(given) : 0;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *shared = mmap(NULL, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED) counted = shared;
    close(fd);
}

unsigned long bench_flushes(int kind) { return kind >= 0 && kind < KINDS ? atomic_load(&counted[kind]) : 0; }

static void flushed(int kind) {
    atomic_fetch_add(&counted[kind], 1);
    if (delay_us > 0) {
        struct timespec pause = {delay_us / 1000000, (delay_us % 1000000) * 1000};
        nanosleep(&pause, NULL);
    }
}

static int is_synchronous(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_DSYNC); /* O_SYNC contains O_DSYNC */
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int fdatasync(int fd) { REAL(fdatasync); int r = real(fd); flushed(FDATASYNC); return r; }

int fsync(int fd) { REAL(fsync); int r = real(fd); flushed(FSYNC); return r; }

int msync(void *at, size_t size, int flags) {
    REAL(msync);
    int r = real(at, size, flags);
    if (flags & MS_SYNC) flushed(MSYNC);
    return r;
}

int sync_file_range(int fd, off64_t at, off64_t size, unsigned int flags) {
    REAL(sync_file_range);
    int r = real(fd, at, size, flags);
    if (flags & (SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER)) flushed(SYNC_FILE_RANGE);
    return r;
}

#define WRITES(name, params, args) \
    ssize_t name params { \
        REAL(name); \
        ssize_t r = real args; \
        if (is_synchronous(fd)) flushed(SYNCHRONOUS_WRITE); \
        return r; \
    }

WRITES(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITES(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITES(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRITES(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
WRITES(pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
WRITES(pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at))
