/* Preloaded into a process: while the file named by $FAIL_SYNC exists, fsync and fdatasync of
 * files whose name ends in $FAIL_SYNC_SUFFIX fail with EIO, as they do when a disk does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd)
{
    const char *flag = getenv("FAIL_SYNC");
    const char *suffix = getenv("FAIL_SYNC_SUFFIX");
    char link[64], path[4096];
    if (flag == NULL || suffix == NULL || access(flag, F_OK) != 0) {
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < (ssize_t)strlen(suffix)) {
        return 0;
    }
    path[length] = '\0';
    return strcmp(path + length - strlen(suffix), suffix) == 0;
}

static int sync_or_fail(const char *name, int fd)
{
    if (fails(fd)) {
        errno = EIO;
        return -1;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd)
{
    return sync_or_fail("fsync", fd);
}

int fdatasync(int fd)
{
    return sync_or_fail("fdatasync", fd);
}
