/* What a container of the soak does: it reads its image in many ways and compares every byte with what must be there.

   A file of the image is called <key>-<size>, and what it holds follows from that name, so the truth needs no file that
   could be wrong itself. Each fault is one line of output; the last line says that the program came to its end. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 16, PAGE = 4096, HELD = 8, MOST_FAULTS = 50, ANSWER = 42, PROGRAMS = 64 };

struct file {
    char *path;
    off_t size;
    uint64_t key;
};

struct held {
    struct file *file;
    int fd;
    char *mapped;
};

static struct file *files;
static size_t file_count, walked;
static uint64_t walked_sum;
static struct held held[HELD];
static char *programs[PROGRAMS];
static int program_count;
static unsigned long faults, actions, waits;
static unsigned long long verified;
static double worst_s;
static uint64_t dice;
static unsigned char piece[PIECE], truth[PIECE];

/* splitmix64. Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014. */
static uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static uint64_t roll(uint64_t sides) { return (dice = mix(dice)) % sides; }

/* FNV-1a, 64 bits. */
static uint64_t hash(const char *text, size_t length) {
    uint64_t sum = 0xCBF29CE484222325u;
    for (size_t i = 0; i < length; i++)
        sum = (sum ^ (unsigned char)text[i]) * 0x100000001B3u;
    return sum;
}

/* The bytes [offset, offset + length) of the content that `key` stands for. */
static void content(uint64_t key, off_t offset, unsigned char *out, size_t length) {
    uint64_t word = 0;
    for (size_t i = 0; i < length; i++, offset++) {
        if (i == 0 || offset % 8 == 0)
            word = mix(key + (uint64_t)(offset / 8));
        out[i] = word >> 8 * (offset % 8);
    }
}

static int parse(const char *path, struct file *file) {
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    const char *dash = strrchr(name, '-');
    if (!dash)
        return 0;
    file->size = atoll(dash + 1);
    file->key = hash(name, dash - name);
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void finish(void) {
    printf("done %lu %llu %lu %lu %.3f\n", actions, verified, faults, waits, worst_s);
    fflush(stdout);
    exit(faults != 0);
}

static void fault(const char *what, const char *path, off_t offset, const char *how) {
    printf("fault %s %s @%lld: %s\n", what, path, (long long)offset, how);
    fflush(stdout);
    if (++faults >= MOST_FAULTS)
        finish();
}

static void failed(const char *what, const char *path, off_t offset) {
    fault(what, path, offset, strerrorname_np(errno));
}

/* How long the kernel took, and how often that was as long as only an outage or a dead daemon takes. */
static void took(double since) {
    double s = now() - since;
    if (s > worst_s)
        worst_s = s;
    waits += s > 0.1;
}

static void compare(const char *what, struct file *file, off_t offset, const unsigned char *data, size_t length) {
    content(file->key, offset, truth, length);
    if (memcmp(data, truth, length)) {
        size_t at = 0;
        while (data[at] == truth[at])
            at++;
        fault(what, file->path, offset + at, "wrong byte");
    }
    verified += length;
}

static int open_file(const char *what, struct file *file, int flags) {
    double began = now();
    int fd = open(file->path, flags | O_CLOEXEC);
    took(began);
    if (fd < 0)
        failed(what, file->path, 0);
    return fd;
}

/* One read and its comparison; false once there is no sense in going on. */
static int read_piece(const char *what, struct file *file, int fd, off_t offset, size_t length) {
    double began = now();
    ssize_t got = pread(fd, piece, length, offset);
    took(began);
    off_t left = file->size - offset;
    size_t due = left < (off_t)length ? left : (off_t)length;
    if (got < 0)
        return failed(what, file->path, offset), 0;
    if ((size_t)got != due)
        return fault(what, file->path, offset, "wrong length"), 0;
    compare(what, file, offset, piece, got);
    return 1;
}

static void read_whole(const char *what, struct file *file, int fd) {
    off_t offset = 0;
    while (offset <= file->size && read_piece(what, file, fd, offset, PIECE))
        offset += PIECE;
}

static void whole(struct file *file) {
    int fd = open_file("whole", file, O_RDONLY);
    if (fd < 0)
        return;
    read_whole("whole", file, fd);
    close(fd);
}

static void somewhere(const char *what, struct file *file, int fd) {
    read_piece(what, file, fd, roll(file->size + 1), 1 + roll(PIECE));
}

static void scatter(struct file *file) {
    int fd = open_file("scatter", file, O_RDONLY);
    if (fd < 0)
        return;
    for (int i = 0; i < 8; i++)
        somewhere("scatter", file, fd);
    close(fd);
}

static sigjmp_buf after_bus;
static volatile sig_atomic_t in_mapping;

static void bus(int number) {
    if (in_mapping)
        siglongjmp(after_bus, 1);
    signal(number, SIG_DFL);
}

static void touch(const char *what, struct file *file, const char *mapped) {
    off_t offset = roll(file->size) / PAGE * PAGE;
    size_t length = file->size - offset < PAGE ? file->size - offset : PAGE;
    double began = now();
    in_mapping = 1;
    if (sigsetjmp(after_bus, 1)) {
        in_mapping = 0;
        fault(what, file->path, offset, "SIGBUS");
        return;
    }
    memcpy(piece, mapped + offset, length);
    in_mapping = 0;
    took(began);
    compare(what, file, offset, piece, length);
}

static char *map_file(const char *what, struct file *file, int fd) {
    if (!file->size)
        return NULL;
    char *mapped = mmap(NULL, file->size, PROT_READ, roll(2) ? MAP_SHARED : MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
        failed(what, file->path, 0);
        return NULL;
    }
    return mapped;
}

static void map(struct file *file) {
    int fd = open_file("map", file, O_RDONLY);
    if (fd < 0)
        return;
    char *mapped = map_file("map", file, fd);
    close(fd);
    if (!mapped)
        return;
    for (int i = 0; i < 8; i++)
        touch("map", file, mapped);
    munmap(mapped, file->size);
}

static void let_go(struct held *one) {
    if (one->mapped)
        munmap(one->mapped, one->file->size);
    close(one->fd);
    one->file = NULL;
}

/* Files that stay open and mapped for long; the kernel is asked to forget their pages now and then. */
static void hold(struct file *file) {
    struct held *one = &held[roll(HELD)];
    if (one->file && !roll(12)) {
        read_whole("held-whole", one->file, one->fd);
        let_go(one);
    }
    if (!one->file) {
        one->fd = open_file("held", file, O_RDONLY);
        if (one->fd < 0)
            return;
        one->file = file;
        one->mapped = map_file("held", file, one->fd);
    }
    if (roll(2))
        posix_fadvise(one->fd, 0, 0, POSIX_FADV_DONTNEED);
    somewhere("held", one->file, one->fd);
    if (one->mapped)
        touch("held-map", one->file, one->mapped);
}

static void look(struct file *file) {
    struct stat status;
    double began = now();
    int bad = stat(file->path, &status);
    took(began);
    if (bad)
        failed("stat", file->path, 0);
    else if (status.st_size != file->size)
        fault("stat", file->path, status.st_size, "wrong size");
}

static void miss(struct file *file) {
    char path[512];
    struct stat status;
    snprintf(path, sizeof path, "%s-%llu", file->path, (unsigned long long)roll(1000));
    if (!stat(path, &status))
        fault("miss", path, 0, "is there");
    else if (errno != ENOENT)
        failed("miss", path, 0);
}

/* Have the overlay copy a file up, whole or only its attributes: what it holds stays the same. */
static void change(struct file *file) {
    if (roll(2)) {
        if (chmod(file->path, 0600 | roll(0100)))
            failed("chmod", file->path, 0);
        return;
    }
    int fd = open_file("copy-up", file, O_RDWR);
    if (fd < 0)
        return;
    read_whole("copy-up", file, fd);
    close(fd);
}

static void execute(struct file *file) {
    (void)file;
    if (!program_count)
        return;
    const char *program = programs[roll(program_count)];
    double began = now();
    int ended;
    pid_t child = fork();
    if (child == 0) {
        execl(program, program, "answer", NULL);
        _exit(errno & 0x7f);
    }
    if (child < 0 || waitpid(child, &ended, 0) < 0)
        return failed("program", program, 0);
    took(began);
    if (WIFSIGNALED(ended))
        return fault("program", program, WTERMSIG(ended), "signal");
    if (WEXITSTATUS(ended) != ANSWER)
        return errno = WEXITSTATUS(ended), failed("program", program, 0);
}

static int meet(const char *path, const struct stat *status, int type, struct FTW *where) {
    struct file file;
    (void)where;
    if (type == FTW_DNR || type == FTW_NS)
        fault("walk", path, 0, "cannot be read");
    if (type != FTW_F || !parse(path, &file))
        return 0;
    if (status->st_size != file.size)
        fault("walk", path, status->st_size, "wrong size");
    walked_sum += hash(path, strlen(path));
    if (walked++ < file_count)
        return 0;
    files = realloc(files, sizeof *files * ++file_count);
    files[file_count - 1] = (struct file){strdup(path), file.size, file.key};
    return 0;
}

static const char *top;
static size_t due_files;
static uint64_t due_sum;

static void walk(struct file *file) {
    (void)file;
    walked = walked_sum = 0;
    if (nftw(top, meet, 16, FTW_PHYS))
        failed("walk", top, 0);
    if (walked != due_files || walked_sum != due_sum)
        fault("walk", top, walked, "other names than there should be");
}

static void find_programs(const char *folder) {
    DIR *listing = opendir(folder);
    struct dirent *entry;
    while (listing && (entry = readdir(listing)) && program_count < PROGRAMS)
        if (entry->d_name[0] != '.' && asprintf(&programs[program_count], "%s/%s", folder, entry->d_name) > 0)
            program_count++;
    if (listing)
        closedir(listing);
}

/* What is done how often, of a hundred. */
static const struct {
    void (*act)(struct file *);
    unsigned share;
} acts[] = {{scatter, 30}, {whole, 22}, {hold, 16}, {map, 12}, {look, 6}, {execute, 5}, {miss, 3}, {walk, 3}, {change, 3}};

static void act(void) {
    unsigned choice = roll(100), i = 0;
    while (choice >= acts[i].share)
        choice -= acts[i++].share;
    actions++;
    acts[i].act(&files[roll(file_count)]);
}

static void run(double seconds, unsigned pace_ms) {
    double end = now() + seconds;
    signal(SIGBUS, bus);
    walk(NULL);
    find_programs("/programs");
    if (!file_count)
        finish();
    while (now() < end) {
        act();
        if (pace_ms)
            usleep(roll(2000 * pace_ms));
    }
    for (int i = 0; i < HELD; i++)
        if (held[i].file)
            read_whole("held-whole", held[i].file, held[i].fd);
    finish();
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "answer"))
        return ANSWER;
    if (!strcmp(what, "run") && count == 8) {
        dice = strtoull(words[3], NULL, 10);
        top = words[5];
        due_files = strtoull(words[6], NULL, 10);
        due_sum = strtoull(words[7], NULL, 10);
        run(atof(words[2]), atoi(words[4]));
    }
    if (!strcmp(what, "contents")) {
        struct file file;
        for (int i = 2; i < count; i++)
            for (off_t at = 0; parse(words[i], &file) && at < file.size; at += PIECE) {
                size_t length = file.size - at < PIECE ? file.size - at : PIECE;
                content(file.key, at, piece, length);
                fwrite(piece, 1, length, stdout);
            }
        return fflush(stdout) || ferror(stdout);
    }
    fprintf(stderr, "usage: soak run SECONDS SEED PACE_MS FOLDER FILES SUM | contents NAME… | answer\n");
    return 2;
}
