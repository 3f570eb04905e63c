/* Map a file and let a child touch its last byte: a page fault in a process that never opened the file. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **words) {
    struct stat status;
    int fd = count == 2 ? open(words[1], O_RDONLY) : -1;
    if (fd < 0 || fstat(fd, &status))
        return 1;
    const volatile char *mapped = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED)
        return 1;
    close(fd);
    if (fork() == 0)
        _exit(mapped[status.st_size - 1] != 'x');
    int ended;
    wait(&ended);
    return ended != 0;
}
