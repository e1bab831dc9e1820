/*
 * A few bytes may honestly describe a ring of gigabytes. Memory that no input here needs is
 * refused (--wrap), which a target sees as RH_NO_MEMORY.
 */
#include <stddef.h>
#include <stdint.h>

enum { BYTES_MAX = 4 << 20 };

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);

void *__wrap_malloc(size_t size)
{
    return size > BYTES_MAX ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return size > 0 && count > BYTES_MAX / size ? NULL : __real_calloc(count, size);
}
