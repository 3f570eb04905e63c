/* What tests have a container do: one action a call, and one line that says what came of it, errors by their names. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char piece[1 << 16];

static int say(const char *what, int good) {
    printf("%s %s\n", what, good ? "ok" : strerrorname_np(errno));
    fflush(stdout);
    return !good;
}

/* As zlib's crc32. */
static uint32_t checksum(uint32_t sum, const char *data, size_t size) {
    sum = ~sum;
    for (size_t i = 0; i < size; i++) {
        sum ^= (unsigned char)data[i];
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? 0xEDB88320u : 0);
    }
    return ~sum;
}

static int read_all(const char *what, int fd) {
    off_t size = 0;
    uint32_t sum = 0;
    ssize_t got;
    while ((got = pread(fd, piece, sizeof piece, size)) > 0) {
        sum = checksum(sum, piece, got);
        size += got;
    }
    if (got < 0)
        return say(what, 0);
    printf("%s ok %lld %u\n", what, (long long)size, sum);
    fflush(stdout);
    return 0;
}

static int read_file(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return say("open", 0);
    int failed = read_all("read", fd);
    close(fd);
    return failed;
}

static sigjmp_buf after_fault;

static void fault(int number) {
    (void)number;
    siglongjmp(after_fault, 1);
}

/* Keep a file open and mapped until `go` exists, then read it both ways. */
static int hold(const char *path, const char *go) {
    struct timespec pause = {0, 10000000};
    int fd = open(path, O_RDONLY);
    struct stat status;
    if (fd < 0 || fstat(fd, &status))
        return say("open", 0);
    char *mapped = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        return say("map", 0);
    say("hold", 1);
    while (access(go, F_OK))
        nanosleep(&pause, NULL);
    int failed = read_all("read", fd);
    signal(SIGBUS, fault);
    if (sigsetjmp(after_fault, 1))
        return say("map", (errno = EFAULT, 0));
    printf("map ok %lld %u\n", (long long)status.st_size, checksum(0, mapped, status.st_size));
    return failed;
}

/* The pages of a mapping, or pieces of a file, in an order that is none; every one is met since the step is prime. */
enum { STEP = 7919, PIECE = 4096 };

static int gather(int fd, char *all, off_t size, const char *mapped) {
    off_t pieces = (size + PIECE - 1) / PIECE;
    for (off_t i = 0; i < pieces; i++) {
        off_t offset = pieces % STEP ? i * STEP % pieces * PIECE : i * PIECE;
        off_t length = offset + PIECE < size ? PIECE : size - offset;
        if (mapped)
            memcpy(all + offset, mapped + offset, length);
        else if (pread(fd, all + offset, length, offset) != length)
            return -1;
    }
    return 0;
}

/* Read a file in order, piece by piece in disorder, or as memory. */
static int read_so(const char *how, const char *path) {
    if (!strcmp(how, "read"))
        return read_file(path);
    int fd = open(path, O_RDONLY);
    struct stat status;
    if (fd < 0 || fstat(fd, &status))
        return say("open", 0);
    char *all = malloc(status.st_size), *mapped = NULL;
    if (!strcmp(how, "map") && (mapped = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        return say("map", 0);
    signal(SIGBUS, fault);
    int failed = sigsetjmp(after_fault, 1) ? (errno = EFAULT, -1) : gather(fd, all, status.st_size, mapped);
    if (failed)
        say(how, 0);
    else
        printf("%s ok %lld %u\n", how, (long long)status.st_size, checksum(0, all, status.st_size));
    if (mapped)
        munmap(mapped, status.st_size);
    free(all);
    close(fd);
    return failed;
}

/* Go on after a file that cannot be read: the next line is the next file's. */
static int each(const char *how, char **paths) {
    int failed = 0;
    for (; *paths; paths++)
        failed |= read_so(how, *paths);
    return !!failed;
}

static int write_to(const char *what, int fd) { return say(what, fd >= 0 && pwrite(fd, "EVIL", 4, 0) == 4); }

/* Another descriptor of the same open file, for writing, by its name in /proc. */
static int again(const char *format, unsigned long a, unsigned long b) {
    char name[128];
    snprintf(name, sizeof name, format, a, b);
    return open(name, O_RDWR);
}

static int through_memory(int fd) {
    size_t page = sysconf(_SC_PAGESIZE);
    char *mapped = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        return say("proc-mem", 0);
    int memory = open("/proc/self/mem", O_RDWR);
    return say("proc-mem", memory >= 0 && pwrite(memory, "EVIL", 4, (off_t)(uintptr_t)mapped) == 4);
}

static int through_map_files(int fd) {
    size_t page = sysconf(_SC_PAGESIZE);
    char *mapped = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
    unsigned long start = (unsigned long)(uintptr_t)mapped;
    return write_to("map-files", again("/proc/self/map_files/%lx-%lx", start, start + page));
}

static int through_mapping(const char *what, int fd, int protection) {
    char *mapped = mmap(NULL, 4, protection, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, 4, PROT_READ | PROT_WRITE))
        return say(what, 0);
    memcpy(mapped, "EVIL", 4);
    return say(what, !msync(mapped, 4, MS_SYNC));
}

static int link_and_write(const char *path) {
    char name[512];
    snprintf(name, sizeof name, "%s.linked", path);
    return link(path, name) ? say("link", 0) : write_to("link", open(name, O_WRONLY));
}

static int set_flag(int fd) {
    int flags = FS_NODUMP_FL;
    return say("chattr", !ioctl(fd, FS_IOC_SETFLAGS, &flags));
}

static int attack(const char *how, const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0 || read(fd, piece, 1) < 0)
        return say("open", 0);
#define IS(name) (!strcmp(how, name))
    if (IS("write")) return write_to(how, open(path, O_WRONLY));
    if (IS("append")) return write_to(how, open(path, O_WRONLY | O_APPEND));
    if (IS("truncate")) return say(how, !truncate(path, 1));
    if (IS("trunc-open")) return write_to(how, open(path, O_RDWR | O_TRUNC));
    if (IS("punch")) return say(how, !fallocate(open(path, O_RDWR), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    if (IS("chattr")) return set_flag(fd);
    if (IS("map-write")) return through_mapping(how, open(path, O_RDWR), PROT_READ | PROT_WRITE);
    if (IS("map-protect")) return through_mapping(how, fd, PROT_READ);
    if (IS("map-files")) return through_map_files(fd);
    if (IS("proc-mem")) return through_memory(fd);
    if (IS("proc-fd")) return write_to(how, again("/proc/self/fd/%lu", fd, 0));
    if (IS("proc-path-fd")) return write_to(how, again("/proc/self/fd/%lu", open(path, O_PATH), 0));
    if (IS("write-read-only")) return write_to(how, fd);
    if (IS("link")) return link_and_write(path);
    if (IS("chmod")) return say(how, !fchmod(fd, 0777));
    if (IS("chown")) return say(how, !fchown(fd, 12, 34));
    if (IS("times")) return say(how, !futimens(fd, (struct timespec[2]){{1, 0}, {2, 0}}));
    if (IS("user-xattr")) return say(how, !fsetxattr(fd, "user.evil", "x", 1, 0));
    if (IS("trusted-xattr")) return say(how, !fsetxattr(fd, "trusted.evil", "x", 1, 0));
    if (IS("redirect-xattr")) return say(how, !fsetxattr(fd, "trusted.overlay.redirect", "/evil", 5, 0));
    fprintf(stderr, "no such attack: %s\n", how);
    return 2;
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "read") && count == 3) return read_file(words[2]);
    if (!strcmp(what, "each") && count > 3) return each(words[2], words + 3);
    if (!strcmp(what, "hold") && count == 4) return hold(words[2], words[3]);
    if (!strcmp(what, "rename") && count == 4) return say("rename", !rename(words[2], words[3]));
    if (!strcmp(what, "as") && count > 3) return setuid(atoi(words[2])) || execv(words[3], words + 3) ? say("as", 0) : 0;
    if (!strcmp(what, "uid")) return printf("%d %d\n", getuid(), geteuid()) < 0;
    if (!strcmp(what, "attack") && count == 4) return attack(words[2], words[3]);
    fprintf(stderr, "usage: probe read FILE | each read|map|scatter FILE… | hold FILE GO | rename FROM TO |\n"
                    "             as ID PROGRAM… | uid | attack HOW FILE\n");
    return 2;
}
