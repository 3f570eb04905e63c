/* Preloaded into a daemon: its disk, every path with BAD_DISK_PART in it, fails as the file BAD_DISK_ORDERS says, which holds two
 * numbers: the errno of all that writes, and that of reads of cached content; 0 is a disk that works. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static void orders(int *writes, int *reads) {
    char text[32] = "";
    int kept = errno;
    FILE *file = fopen(getenv("BAD_DISK_ORDERS"), "r");
    *writes = *reads = 0;
    if (file) {
        if (fgets(text, sizeof text, file))
            sscanf(text, "%d %d", writes, reads);
        fclose(file);
    }
    errno = kept;
}

/* Where a descriptor leads, or "" if that is not on the disk. */
static const char *on_disk(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    path[length > 0 ? length : 0] = 0;
    return strstr(path, getenv("BAD_DISK_PART")) ? path : "";
}

static int refuses_write(int fd) {
    char path[4096];
    int writes, reads;
    orders(&writes, &reads);
    if (!writes || (fd != AT_FDCWD && !*on_disk(fd, path, sizeof path)))
        return 0;
    errno = writes;
    return 1;
}

static int refuses_path(int directory, const char *path) {
    return path[0] == '/' ? strstr(path, getenv("BAD_DISK_PART")) && refuses_write(AT_FDCWD)
                          : directory != AT_FDCWD && refuses_write(directory);
}

static int refuses_read(int fd) {
    char path[4096];
    int writes, reads;
    orders(&writes, &reads);
    if (!reads || !*on_disk(fd, path, sizeof path) || !(strstr(path, "/objects/") || strstr(path, ".data")))
        return 0;
    errno = reads;
    return 1;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(type, name, words, fd, ...) \
    type name words { return refuses_write(fd) ? -1 : REAL(name)(__VA_ARGS__); }
#define READS(type, name, words, fd, ...) \
    type name words { return refuses_read(fd) ? -1 : REAL(name)(__VA_ARGS__); }
#define CHANGES(name, words, directory, path, ...) \
    int name words { return refuses_path(directory, path) ? -1 : REAL(name)(__VA_ARGS__); }

WRITES(ssize_t, write, (int fd, const void *data, size_t size), fd, fd, data, size)
WRITES(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, fd, data, size, at)
WRITES(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, fd, data, size, at)
WRITES(int, fsync, (int fd), fd, fd)
WRITES(int, fdatasync, (int fd), fd, fd)
WRITES(int, syncfs, (int fd), fd, fd)
WRITES(int, ftruncate, (int fd, off_t size), fd, fd, size)
WRITES(int, ftruncate64, (int fd, off64_t size), fd, fd, size)
WRITES(int, fallocate, (int fd, int mode, off_t at, off_t size), fd, fd, mode, at, size)
WRITES(int, fchmod, (int fd, mode_t mode), fd, fd, mode)
READS(ssize_t, pread, (int fd, void *data, size_t size, off_t at), fd, fd, data, size, at)
READS(ssize_t, pread64, (int fd, void *data, size_t size, off64_t at), fd, fd, data, size, at)
READS(ssize_t, preadv2, (int fd, const struct iovec *to, int count, off_t at, int flags), fd, fd, to, count, at, flags)
READS(ssize_t, preadv64v2, (int fd, const struct iovec *to, int count, off64_t at, int flags), fd, fd, to, count, at, flags)
CHANGES(rename, (const char *from, const char *to), AT_FDCWD, to, from, to)
CHANGES(renameat, (int a, const char *from, int b, const char *to), b, to, a, from, b, to)
CHANGES(linkat, (int a, const char *from, int b, const char *to, int flags), b, to, a, from, b, to, flags)
CHANGES(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
CHANGES(mkdirat, (int fd, const char *path, mode_t mode), fd, path, fd, path, mode)
CHANGES(unlink, (const char *path), AT_FDCWD, path, path)
CHANGES(unlinkat, (int fd, const char *path, int flags), fd, path, fd, path, flags)

static int making(const char *name, int directory, const char *path, int flags, mode_t mode) {
    int makes = (flags & O_TMPFILE) == O_TMPFILE || (flags & O_CREAT && faccessat(directory, path, F_OK, 0));
    if (makes && refuses_path(directory, path))
        return -1;
    return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, name))(directory, path, flags, mode);
}

#define OPENS(name, real, words, directory) \
    int name words { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return making(real, directory, path, flags, mode); \
    }

OPENS(open, "openat", (const char *path, int flags, ...), AT_FDCWD)
OPENS(open64, "openat64", (const char *path, int flags, ...), AT_FDCWD)
OPENS(openat, "openat", (int directory, const char *path, int flags, ...), directory)
OPENS(openat64, "openat64", (int directory, const char *path, int flags, ...), directory)
