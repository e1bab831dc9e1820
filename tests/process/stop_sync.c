/* Preloaded into a process: while the file named by $STOP_SYNC exists, a thread that syncs a file
 * whose name ends in $STOP_SYNC_SUFFIX stops its whole process first, as SIGSTOP from outside
 * would at that moment. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void stop_if_asked(int fd)
{
    const char *flag = getenv("STOP_SYNC");
    const char *suffix = getenv("STOP_SYNC_SUFFIX");
    char link[64], path[4096];
    if (flag == NULL || suffix == NULL || access(flag, F_OK) != 0) {
        return;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < (ssize_t)strlen(suffix)) {
        return;
    }
    path[length] = '\0';
    if (strcmp(path + length - strlen(suffix), suffix) == 0) {
        /* To this thread: one sent to the process may be taken by another while this goes on. */
        raise(SIGSTOP);
    }
}

static int stop_and_sync(const char *name, int fd)
{
    stop_if_asked(fd);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd)
{
    return stop_and_sync("fsync", fd);
}

int fdatasync(int fd)
{
    return stop_and_sync("fdatasync", fd);
}
