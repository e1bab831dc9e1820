/* Preloaded into processes: counts their calls of fsync and fdatasync, all together, in the first
 * eight bytes of the file named by $COUNT_SYNC, which must be that long. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t *count;

__attribute__((constructor)) static void map_count(void)
{
    const char *path = getenv("COUNT_SYNC");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    void *mapped = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    count = mapped == MAP_FAILED ? NULL : mapped;
    close(fd);
}

static int counted(const char *name, int fd)
{
    if (count != NULL) {
        __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd)
{
    return counted("fsync", fd);
}

int fdatasync(int fd)
{
    return counted("fdatasync", fd);
}
