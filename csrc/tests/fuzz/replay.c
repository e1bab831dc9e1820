/*
 * Runs a fuzz target without a fuzzer: over every file of a corpus, and over a fixed number of
 * mutations of each, the same in every run.
 *
 *     fuzz_… [-m MUTATIONS] FILE-OR-DIRECTORY…
 */
#include <dirent.h>
#include <sys/stat.h>

#include "fuzz.h"

enum { INPUT_BYTES_MAX = 1 << 20, PATH_BYTES_MAX = 4096, FLIPS_MAX = 4, LONGER_MAX = 16 };

static size_t files_replayed;
static unsigned long mutations;

/* splitmix64 (Steele, Lea, Flood, 2014). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* A copy on the heap of exactly its size, where sanitizers see a read past the end. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);

    if (copy == NULL) {
        abort();
    }
    if (size > 0) {
        memcpy(copy, data, size);
    }
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void run_mutated(const uint8_t *data, size_t size, uint64_t *random)
{
    uint8_t *copy = calloc(1, size + LONGER_MAX);
    size_t kept = size;

    if (copy == NULL) {
        abort();
    }
    memcpy(copy, data, size);
    for (uint64_t flips = 1 + next_random(random) % FLIPS_MAX; flips > 0; flips--) {
        copy[next_random(random) % size] ^= (uint8_t)(1 + next_random(random) % 255);
    }
    if (next_random(random) % 4 == 0) {
        kept = next_random(random) % (size + LONGER_MAX);
    }
    run(copy, kept);
    free(copy);
}

static bool replay_file(const char *path)
{
    uint64_t random = 1;
    FILE *file = fopen(path, "rb");
    uint8_t *data = malloc(INPUT_BYTES_MAX);
    size_t size = 0;
    bool read = file && data;

    if (read) {
        size = fread(data, 1, INPUT_BYTES_MAX, file);
        read = !ferror(file);
    }
    if (read) {
        /* Told before it runs: whatever ends the process, this is where. */
        printf("%s\n", path);
        fflush(stdout);
        run(data, size);
        for (unsigned long i = 0; size > 0 && i < mutations; i++) {
            run_mutated(data, size, &random);
        }
        files_replayed++;
    }
    if (file) {
        fclose(file);
    }
    free(data);
    return read;
}

static bool replay(const char *path)
{
    struct stat found;
    DIR *directory;
    struct dirent *entry;
    bool done = true;

    if (stat(path, &found) != 0) {
        return false;
    }
    if (!S_ISDIR(found.st_mode)) {
        return replay_file(path);
    }
    directory = opendir(path);
    if (directory == NULL) {
        return false;
    }
    while (done && (entry = readdir(directory)) != NULL) {
        char inner[PATH_BYTES_MAX];
        int length = snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);

        if (entry->d_name[0] != '.') {
            done = length > 0 && (size_t)length < sizeof inner && replay(inner);
        }
    }
    closedir(directory);
    return done;
}

int main(int argc, char **argv)
{
    int first = 1;

    if (argc > 2 && strcmp(argv[1], "-m") == 0) {
        mutations = strtoul(argv[2], NULL, 10);
        first = 3;
    }
    for (int i = first; i < argc; i++) {
        if (!replay(argv[i])) {
            fprintf(stderr, "cannot be read: %s\n", argv[i]);
            return 1;
        }
    }
    printf("%zu files, %lu mutations of each\n", files_replayed, mutations);
    return files_replayed > 0 ? 0 : 1;
}
