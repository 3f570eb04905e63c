/* Readers that go on until a file called STOP exists, and know what every byte must be. One line for each fault.
 *
 *     reader read TRUTH STOP SEED   opens, stats, lists, maps, executes what the image holds, at random
 *     reader probe FILE STOP        reads the same 4 KiB again and again, past the page cache, and prints what took long
 *     reader nothing                does nothing: to be executed
 *
 * TRUTH has a line for each file: path, size, and zlib's crc32 of every 64 KiB of it; for a directory: path, "-", count. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 65536
#define MOST 4096
#define SLOW 10000000

struct entry {
    char path[256];
    long long size;
    long count;
    uint32_t *sums;
    int fd;
};

static struct entry entries[MOST];
static int known;
static long operations, faults;
static char block[BLOCK];

static long long now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec * 1000000000LL + moment.tv_nsec;
}

static uint32_t checksum(const unsigned char *data, size_t size) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t sum = i;
            for (int bit = 0; bit < 8; bit++)
                sum = sum >> 1 ^ (sum & 1 ? 0xEDB88320u : 0);
            table[i] = sum;
        }
    uint32_t sum = ~0u;
    for (size_t i = 0; i < size; i++)
        sum = sum >> 8 ^ table[(sum ^ data[i]) & 255];
    return ~sum;
}

static void fault(const char *what, const char *path, const char *why) {
    printf("fault %lld %s %s %s\n", now(), what, path, why);
    fflush(stdout);
    faults++;
}

static int load(const char *path) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    if (!file)
        return 0;
    while (getline(&line, &room, file) > 0 && known < MOST) {
        struct entry *entry = &entries[known++];
        char *word = strtok(line, " \n");
        snprintf(entry->path, sizeof entry->path, "%s", word);
        word = strtok(NULL, " \n");
        entry->fd = -1;
        if (*word == '-') {
            entry->size = -1;
            entry->count = atol(strtok(NULL, " \n"));
            continue;
        }
        entry->size = atoll(word);
        entry->sums = calloc(entry->size / BLOCK + 1, sizeof(uint32_t));
        for (long i = 0; (word = strtok(NULL, " \n")); i++)
            entry->sums[i] = strtoul(word, NULL, 10);
    }
    fclose(file);
    free(line);
    return known;
}

static size_t expected(const struct entry *entry, long number) {
    long long left = entry->size - (long long)number * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

static int right(const struct entry *entry, const char *what, long number, const char *data, ssize_t size) {
    if (size < 0)
        return fault(what, entry->path, strerrorname_np(errno)), 0;
    if ((size_t)size != expected(entry, number))
        return fault(what, entry->path, "short"), 0;
    if (checksum((const unsigned char *)data, size) != entry->sums[number])
        return fault(what, entry->path, "wrong-bytes"), 0;
    return 1;
}

static long pick(const struct entry *entry) { return entry->size ? random() % ((entry->size - 1) / BLOCK + 1) : 0; }

static void whole(struct entry *entry) {
    int fd = open(entry->path, O_RDONLY);
    if (fd < 0)
        return fault("open", entry->path, strerrorname_np(errno));
    for (long i = 0; (long long)i * BLOCK < entry->size; i++)
        if (!right(entry, "read", i, block, pread(fd, block, BLOCK, (off_t)i * BLOCK)))
            break;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

/* On a descriptor that stays open as long as this program runs. */
static void part(struct entry *entry) {
    long number = pick(entry);
    if (entry->fd < 0 && (entry->fd = open(entry->path, O_RDONLY)) < 0)
        return fault("open", entry->path, strerrorname_np(errno));
    if (!entry->size)
        return;
    right(entry, "pread", number, block, pread(entry->fd, block, BLOCK, (off_t)number * BLOCK));
    posix_fadvise(entry->fd, 0, 0, POSIX_FADV_DONTNEED);
}

static void mapped(struct entry *entry) {
    long number = pick(entry);
    size_t size = expected(entry, number);
    int fd = open(entry->path, O_RDONLY);
    if (fd < 0)
        return fault("open", entry->path, strerrorname_np(errno));
    if (size) {
        char *data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)number * BLOCK);
        if (data == MAP_FAILED)
            fault("mmap", entry->path, strerrorname_np(errno));
        else {
            /* Through a pipe: what cannot be had is EFAULT there, and not the end of this program. */
            int ends[2];
            if (!pipe2(ends, O_CLOEXEC)) {
                size_t done = 0;
                ssize_t moved = 0;
                while (done < size && (moved = write(ends[1], data + done, size - done < 4096 ? size - done : 4096)) > 0)
                    done += read(ends[0], block + done, moved);
                right(entry, "map", number, block, moved < 0 ? -1 : (ssize_t)done);
                close(ends[0]);
                close(ends[1]);
            }
            munmap(data, size);
        }
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static void list(struct entry *entry) {
    DIR *directory = opendir(entry->path);
    struct dirent *name;
    long count = 0;
    if (!directory)
        return fault("opendir", entry->path, strerrorname_np(errno));
    errno = 0;
    while ((name = readdir(directory)))
        count += strcmp(name->d_name, ".") && strcmp(name->d_name, "..");
    if (errno)
        fault("readdir", entry->path, strerrorname_np(errno));
    else if (count != entry->count)
        fault("readdir", entry->path, "count");
    closedir(directory);
}

static void look(struct entry *entry) {
    struct stat status;
    char missing[300];
    if (stat(entry->path, &status))
        fault("stat", entry->path, strerrorname_np(errno));
    else if (entry->size >= 0 && status.st_size != entry->size)
        fault("stat", entry->path, "size");
    snprintf(missing, sizeof missing, "%s-%ld", entry->path, operations);
    if (!stat(missing, &status) || errno != ENOENT)
        fault("stat", missing, strerrorname_np(errno));
}

static void execute(const char *program) {
    int status = 0;
    pid_t child = vfork();
    if (!child) {
        execl(program, program, "nothing", NULL);
        _exit(100 + errno);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || status)
        fault("exec", program, WIFSIGNALED(status) ? "signal" : strerrorname_np(WEXITSTATUS(status) - 100));
}

static int reading(char **words) {
    srandom(atoi(words[4]));
    if (!load(words[2]))
        return fault("truth", words[2], strerrorname_np(errno)), 1;
    puts("begun");
    fflush(stdout);
    for (; access(words[3], F_OK); operations++) {
        struct entry *entry = &entries[random() % known];
        int what = random() % 16;
        if (entry->size < 0) list(entry);
        else if (what < 5) whole(entry);
        else if (what < 9) part(entry);
        else if (what < 12) mapped(entry);
        else if (what < 15) look(entry);
        else execute(words[0]);
    }
    printf("done %ld operations, %ld faults\n", operations, faults);
    return faults != 0;
}

static int probing(char **words) {
    struct timespec pause = {0, 2000000};
    int fd = open(words[2], O_RDONLY);
    if (fd < 0 || pread(fd, block, 4096, 0) != 4096)
        return fault("open", words[2], strerrorname_np(errno)), 1;
    uint32_t sum = checksum((unsigned char *)block, 4096);
    puts("begun");
    fflush(stdout);
    for (; access(words[3], F_OK); operations++) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        long long began = now();
        ssize_t got = pread(fd, block, 4096, 0);
        long long took = now() - began;
        if (got != 4096)
            fault("probe", words[2], got < 0 ? strerrorname_np(errno) : "short");
        else if (checksum((unsigned char *)block, 4096) != sum)
            fault("probe", words[2], "wrong-bytes");
        if (took > SLOW) {
            printf("gap %lld %lld\n", began, took);
            fflush(stdout);
        }
        nanosleep(&pause, NULL);
    }
    printf("done %ld operations, %ld faults\n", operations, faults);
    return faults != 0;
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "nothing")) return 0;
    if (count == 5 && !strcmp(words[1], "read")) return reading(words);
    if (count == 4 && !strcmp(words[1], "probe")) return probing(words);
    fprintf(stderr, "usage: reader read TRUTH STOP SEED | probe FILE STOP | nothing\n");
    return 2;
}
